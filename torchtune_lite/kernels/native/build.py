"""The building of C++ loops with the machine's own compiler.

Optional: without a compiler, or with TORCHTUNE_LITE_NATIVE=0, there are none. A build takes a second and is kept in
$TORCH_EXTENSIONS_DIR, or ~/.cache/torch_extensions where that is unset: a file for each source, compiler and set of CPU
instructions, so that the machines of a cluster may share the folder.
"""

import ctypes
import hashlib
import os
import shlex
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

from torchtune_lite.utils import get_logger

HEADER = Path(__file__).with_name("numbers.h")
FLAGS = ["-std=c++17", "-O3", "-march=native", *(["-fopenmp"] if sys.platform == "linux" else [])]
FLAGS += ["-I", str(HEADER.parent)]
TIMEOUT = 120  # seconds


def is_wanted() -> bool:
    """Return whether compiled loops are not switched off."""
    return os.environ.get("TORCHTUNE_LITE_NATIVE") != "0"


def load(source: Path) -> ctypes.CDLL | None:
    """Return the library of a C++ file, built where nobody has; None where that cannot be done."""
    try:
        return ctypes.CDLL(str(_build(source)))
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:  # RuntimeError: no home folder
        get_logger().debug("%s is not used, its plain form runs: %s", source.name, error)
        return None


def _build(source: Path) -> Path:
    """Compile a file, unless its library is there, and return the path of that."""
    compiler = [*shlex.split(os.environ.get("CXX") or "c++"), *FLAGS]
    run = partial(subprocess.run, check=True, capture_output=True, stdin=subprocess.DEVNULL, timeout=TIMEOUT)
    macros = run(
        [*compiler, "-dM", "-E", "-x", "c++", os.devnull]
    ).stdout  # they name its version and the CPU's abilities
    texts = source.read_bytes() + HEADER.read_bytes()
    key = hashlib.sha256(texts + shlex.join(compiler).encode() + macros).hexdigest()[:16]
    cache_folder = os.environ.get("TORCH_EXTENSIONS_DIR") or "~/.cache/torch_extensions"
    library = Path(cache_folder).expanduser() / "torchtune_lite" / f"{source.parent.name}_{source.stem}-{key}.so"
    if not library.exists():
        library.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=library.parent) as folder:  # a process beside this one may build, too
            built = Path(folder) / library.name
            run([*compiler, "-shared", "-fPIC", str(source), "-o", str(built)])
            built.replace(library)
    return library
