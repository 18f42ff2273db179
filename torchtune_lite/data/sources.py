"""Sources: from what a YAML names (files, a hub data set) to rows."""

import glob
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torchtune_lite import config
from torchtune_lite.data.json_files import read_json
from torchtune_lite.data.rows import OnBadSample, Row, Rows
from torchtune_lite.errors import DataError

JSON_SUFFIXES = (".json", ".jsonl", ".ndjson")
OTHER_SUFFIXES = (".csv", ".tsv", ".txt", ".parquet", ".arrow", ".gz", ".zst", ".zip")

DataFiles = str | Sequence[str] | Mapping[str, str | Sequence[str]] | None
"""A path or pattern, several, or a mapping split → those."""

Filter = config.DottedPath | Callable[[Row], bool]
"""A function that keeps the rows for which it is true, or its dotted path."""

_SLICE = re.compile(
    r"(?P<name>\w+)(\[((?P<start>-?\d+)(?P<start_percent>%)?)?:((?P<stop>-?\d+)(?P<stop_percent>%)?)?\])?"
)


def load_rows(
    source: str,
    *,
    data_files: DataFiles = None,
    field: str | None = None,
    name: str | None = None,
    split: str = "train",
    filter_fn: Filter | None = None,
    on_bad_sample: OnBadSample = "error",
) -> Rows:
    """Reads the rows of a source.

    `source`: a path to a .json or .jsonl file; or `json` with the paths or patterns in `data_files` (a mapping gives
    them by split) and, for a file that is one object, the `field` that holds its rows; or a data set of the Hugging
    Face hub with its configuration `name`, loaded by the library `datasets`. `split`: `train`, or a part as
    `train[:95%]`, `train[100:]`. `filter_fn`, a function or its dotted path, keeps the rows for which it is true.
    `on_bad_sample="skip"` leaves out the lines that are no JSON object; `split` counts the rows that are left. Raises
    DataError for whatever can't be read, and for 0 samples.
    """
    bad = [] if on_bad_sample == "skip" else None
    if isinstance(filter_fn, str):
        filter_fn = config.find(filter_fn)
    if source == "json":
        if data_files is None:
            raise DataError("source: json needs data_files, the path of a .json or .jsonl file")
        rows = _local_rows(data_files, field, split, bad)
    elif _is_local(source):
        if data_files is not None:
            raise DataError(f"source {source} is a file itself; leave out data_files, or set source: json")
        rows = _local_rows(source, field, split, bad)
    else:
        rows = _hub_rows(source, {"name": name, "data_files": data_files, "field": field}, split)
    if filter_fn is not None:
        rows = _selected(rows, [i for i in range(len(rows)) if filter_fn(rows[i])])
    if not len(rows):
        raise DataError(f"{rows.name}: 0 samples in split={split!r}" + " after filter_fn" * (filter_fn is not None))
    return rows


def _is_local(source: str) -> bool:
    return source.endswith(JSON_SUFFIXES + OTHER_SUFFIXES) or Path(source).expanduser().exists()


def _local_rows(data_files: Any, field: str | None, split: str, bad: list[str] | None) -> Rows:
    parts = _SLICE.fullmatch(split)
    if not parts:
        raise DataError(f"split={split!r} is neither a name nor a part such as train[:95%] or train[100:]")
    files = data_files if isinstance(data_files, Mapping) else {"train": data_files}
    if parts["name"] not in files:
        raise DataError(
            f"split={split!r}: local files have only {', '.join(files)}; data_files: {{name: path}} names more"
        )
    patterns = files[parts["name"]]
    paths = [path for pattern in ([patterns] if isinstance(patterns, str) else patterns) for path in _matches(pattern)]
    if not paths:
        raise DataError("data_files is an empty list; name at least one file")
    rows: list[Row] = []
    places: list[str] = []
    for path in paths:
        more_rows, more_places = read_json(path, field, bad)
        rows += more_rows
        places += more_places
    name = str(paths[0]) if len(paths) == 1 else f"{paths[0]} and {len(paths) - 1} more files"
    every = Rows(name, rows, places.__getitem__, bad or ())
    part = _slice(parts, len(rows))
    return every if len(part) == len(rows) else _selected(every, part)


def _matches(pattern: str) -> list[Path]:
    path = Path(pattern).expanduser()
    if path.suffix in OTHER_SUFFIXES:
        raise DataError(f"data file {pattern}: only .json and .jsonl files are read; convert or unpack it")
    if path.is_dir():
        raise DataError(f"data file {pattern} is a folder; name the files in it, e.g. {path / '*.jsonl'}")
    paths = [path] if path.exists() else sorted(map(Path, glob.glob(str(path))))
    if not paths:
        raise DataError(f"no file matches {pattern!r} (cwd {Path.cwd()})")
    return paths


def _slice(parts: re.Match, length: int) -> range:
    """Gives the rows that `train[10%:]` means, as `datasets` does: rounded to the nearest row, bounds outside cut."""
    percent = parts["start_percent"] or parts["stop_percent"]

    def bound(text: str | None, default: int) -> int:
        value = default if text is None else round(int(text) * length / 100) if percent else int(text)
        return min(max(value + length, 0) if value < 0 else value, length)

    return range(bound(parts["start"], 0), bound(parts["stop"], length))


def _selected(rows: Rows, indices: Sequence[int]) -> Rows:
    return Rows(rows.name, [rows[i] for i in indices], lambda i: rows.where(indices[i]), rows.bad)


def _hub_rows(source: str, options: Mapping[str, Any], split: str) -> Rows:
    try:
        from datasets import load_dataset
    except ImportError:
        raise DataError(
            f"source {source!r} is no local file, and data from the Hugging Face hub comes through the library "
            "'datasets': pip install datasets, or give a file (source: json, data_files: PATH)"
        ) from None
    try:
        data = load_dataset(source, split=split, **{key: value for key, value in options.items() if value is not None})
    except Exception as error:
        reason = str(error).partition("\n")[0]
        raise DataError(f"source {source!r}: the library 'datasets' cannot load it ({reason})") from error
    return Rows(source, data, lambda i: f"{source}[{i}]")
