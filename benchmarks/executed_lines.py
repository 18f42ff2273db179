"""How much of this project a run goes through: the files and lines that Python executes.

    python benchmarks/executed_lines.py                                       a QLoRA run of the demo, two steps
    python benchmarks/executed_lines.py run generate --config demo/...       any other `tune` command
    python benchmarks/executed_lines.py --files                               the files, too

Lines that run at import, such as `def`, count; those in the bodies of functions are counted by themselves, too. What
worker processes and compiled kernels execute does not count.
"""

import inspect
import sys
import tempfile
import threading
from collections import defaultdict
from pathlib import Path
from types import FrameType
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
QLORA = "run lora_finetune_single_device --config demo/address_qlora max_steps_per_epoch=2 metric_logger=null"
PARTS = tuple(str(ROOT / part) + "/" for part in ("torchtune_lite", "recipes"))
lines: dict[str, set[int]] = defaultdict(set)
in_functions: dict[str, set[int]] = defaultdict(set)


def trace(frame: FrameType, event: str, argument: Any) -> Any:
    """Record the lines of this project's files."""
    file = frame.f_code.co_filename
    if not file.startswith(PARTS):
        return None
    lines[file].add(frame.f_lineno)
    if event == "line" and frame.f_code.co_flags & inspect.CO_OPTIMIZED:  # not the body of a module or class
        in_functions[file].add(frame.f_lineno)
    return trace


def main() -> None:
    """Run the command and print what it went through."""
    list_files = "--files" in sys.argv
    words = [word for word in sys.argv[1:] if word != "--files"]
    sys.path.insert(0, str(ROOT))
    with tempfile.TemporaryDirectory() as folder:
        sys.argv[1:] = words or [*QLORA.split(), f"output_dir={folder}/run"]
        threading.settrace(trace)
        sys.settrace(trace)
        from torchtune_lite.cli.main import main as tune

        try:
            tune()
        except SystemExit:
            pass
        finally:
            sys.settrace(None)
            threading.settrace(None)
    for file, found in sorted(lines.items()) if list_files else ():
        print(f"{len(found):5} {Path(file).relative_to(ROOT)}")
    print(f"{len(lines)} files, {sum(map(len, lines.values())):,} lines")
    print(f"of them in functions: {len(in_functions)} files, {sum(map(len, in_functions.values())):,} lines")


if __name__ == "__main__":
    main()
