"""`metrics.jsonl`: every metric of one run, one JSON object a line with its `step`."""

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, SupportsFloat

from torchtune_lite.utils import get_logger

Scalar = SupportsFloat  # a number, or a tensor or array holding one
FILE_NAME = "metrics.jsonl"


def number(value: Scalar) -> int | float:
    """Returns a scalar tensor's, array's or number's value as a Python number."""
    return value.item() if hasattr(value, "item") else value


def json_line(payload: Mapping[str, Scalar], step: int) -> str:
    """Writes one line of valid JSON: nan and infinities become null, and `nonfinite` says what each was."""
    values = {name: number(value) for name, value in payload.items()}
    nonfinite = {name: str(value) for name, value in values.items() if not math.isfinite(value)}
    row = {"step": step} | {name: None if name in nonfinite else value for name, value in values.items()}
    return json.dumps(row | ({"nonfinite": nonfinite} if nonfinite else {})) + "\n"


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Returns the rows of a metrics file in order, without a torn line that a killed run may have left."""
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(row, dict) and "step" in row:
            rows.append(row)
    return rows


class MetricsFile:
    """Appends to `metrics.jsonl` in `folder`, flushing each line.

    The file holds one run. A fresh start (`resumed_step` 0) sets an earlier run's file aside as `metrics-1.jsonl`
    (`-2`, …); a resumed run goes on in the file, cut back to the rows up to `resumed_step`. `cut_rows` has the step and
    the names of each row that was cut away.
    """

    def __init__(self, folder: str | Path, *, resumed_step: int = 0) -> None:
        self.path = Path(folder) / FILE_NAME
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.cut_rows: set[tuple[int, frozenset[str]]] = set()
        if self.path.exists():
            if resumed_step:
                self._cut_back(resumed_step)
            else:
                self._set_aside()
        self._file = self.path.open("a", encoding="utf-8")

    def log_dict(self, payload: Mapping[str, Scalar], step: int) -> None:
        self._file.write(json_line(payload, step))
        self._file.flush()

    def close(self) -> None:
        self._file.close()

    def _set_aside(self) -> None:
        count = 1
        while (aside := self.path.with_name(f"metrics-{count}.jsonl")).exists():
            count += 1
        self.path.rename(aside)
        get_logger().info(f"kept the metrics of an earlier run in {aside}")

    def _cut_back(self, last_step: int) -> None:
        rows = read_metrics(self.path)
        kept = [row for row in rows if row["step"] <= last_step]
        self.cut_rows = {(row["step"], frozenset(row) - {"step", "nonfinite"}) for row in rows if row not in kept}
        temporary = self.path.with_suffix(".tmp")
        temporary.write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")
        os.replace(temporary, self.path)
