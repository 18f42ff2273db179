"""`metrics.jsonl`: every metric of one run, one JSON object a line with its `step`."""

import json
import math
import os
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, SupportsFloat

from torchtune_lite.utils import get_logger

Scalar = SupportsFloat  # a number, or a tensor or array holding one
FILE_NAME = "metrics.jsonl"


def number(value: Scalar) -> int | float:
    """Return a scalar tensor's, array's or number's value as a Python number."""
    return value.item() if hasattr(value, "item") else value


def json_line(payload: Mapping[str, Scalar], step: int) -> str:
    """Write one line of valid JSON: nan and infinities become null, and `nonfinite` says what each was."""
    values = {name: number(value) for name, value in payload.items()}
    nonfinite = {name: str(value) for name, value in values.items() if not math.isfinite(value)}
    row = {"step": step} | {name: None if name in nonfinite else value for name, value in values.items()}
    return json.dumps(row | ({"nonfinite": nonfinite} if nonfinite else {})) + "\n"


def read_metrics(path: Path, names: Collection[str] | None = None) -> list[dict[str, Any]]:
    """Return the rows of a metrics file in order, of each the step and the metrics `names` (None: all)."""
    rows = _rows(path)
    if names is None:
        return list(rows)
    return [{"step": row["step"]} | {name: row[name] for name in names if name in row} for row in rows]


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the rows of a file, without a torn line that a killed run may have left."""
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            try:
                row = json.loads(line)
            except json.JSONDecodeError:
                continue
            if isinstance(row, dict) and "step" in row:
                yield row


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
        temporary = self.path.with_suffix(".tmp")
        with temporary.open("w", encoding="utf-8") as kept:
            for row in _rows(self.path):
                if row["step"] <= last_step:
                    kept.write(json.dumps(row) + "\n")
                else:
                    self.cut_rows.add((row["step"], frozenset(row) - {"step", "nonfinite"}))
        os.replace(temporary, self.path)
