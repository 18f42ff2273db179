"""Sources: from what a YAML names (files, a hub data set) to rows."""

import os
import re
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from torchtune_lite import config
from torchtune_lite.data.batching.streams import FileStream, HubStream
from torchtune_lite.data.readers.arrow_files import table_content
from torchtune_lite.data.readers.local_files import (
    PACKED,
    find_files,
    kind_of,
    named_kind,
    read_files,
    refuse_address,
    saved_splits,
)
from torchtune_lite.data.readers.rows import Row, Rows, SelectedRows
from torchtune_lite.errors import DataError

DataFiles = str | Path | Sequence[str | Path] | Mapping[str, str | Path | Sequence[str | Path]] | None
"""A path, pattern or folder, several, or a mapping split → those."""

Filter = config.DottedPath | Callable[[Row], bool]
"""A function that keeps the rows for which it is true, or its dotted path."""

WINDOW = 1000
"""Rows of a data set of the hub that are hashed together."""

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
) -> Any:
    """Return the rows of a source, each read when it is asked for.

    `source`: a file, a pattern or a folder, of .json, .jsonl, .ndjson, .csv, .tsv, .txt (these also with .gz), .parquet
    or .arrow files, or a folder that `datasets` saved; or one of `json`, `csv`, `text`, `parquet`, `arrow`, or of those
    endings, with files in `data_files` (a mapping gives them by split); or a data set of the Hugging Face hub with its
    configuration `name`, loaded by the library `datasets`. `field`: for a JSON file that is one object, the key that
    holds its rows. `split`: `train`, or a part as `train[:95%]`, `train[100:]`. `filter_fn`, a function or its dotted
    path, keeps the rows for which it is true; it sees every row at once, but for broken ones, which are kept. Raise
    DataError for whatever can't be read, and for 0 samples.
    """
    files, kind = _local_files(source, data_files)
    if files is None:
        rows = _hub_rows(source, {"name": name, "data_files": data_files, "field": field}, split)
    else:
        paths, parts = _files_of_split(files, split)
        rows = read_files(paths, kind, field)
        part = _slice(parts, len(rows))
        rows = rows if len(part) == len(rows) else SelectedRows(rows, part)
    rows = filtered(rows, filter_fn)
    if not len(rows):
        raise DataError(f"{rows.name}: 0 samples in split={split!r}" + " after filter_fn" * (filter_fn is not None))
    return rows


def open_stream(
    source: str,
    *,
    data_files: DataFiles = None,
    field: str | None = None,
    name: str | None = None,
    split: str = "train",
) -> FileStream | HubStream:
    """Open a source as a stream, file by file; a data set of the hub as `datasets` streams it.

    The arguments are those of `load_rows`; `split` cannot be a part of a split.
    """
    files, kind = _local_files(source, data_files)
    if files is None:
        options = {"name": name, "data_files": data_files, "field": field, "streaming": True}
        return HubStream(source, lambda: _load_from_hub(source, options, split))
    paths, parts = _files_of_split(files, split)
    if parts[2]:
        raise DataError(f"split={split!r}: a stream is read whole; set split={parts['name']}")
    return FileStream(paths, kind, field)


def filtered(rows: Any, filter_fn: Filter | None) -> Any:
    """Select the rows for which a function is true, and broken ones; None selects all."""
    if filter_fn is None:
        return rows
    passes = config.find(filter_fn) if isinstance(filter_fn, str) else filter_fn
    return SelectedRows(rows, array("q", (i for i in range(len(rows)) if _passes(passes, rows, i))))


def _local_files(source: str, data_files: DataFiles) -> tuple[DataFiles, str | None]:
    """Return the files that are meant and their kind, where it is named; no files for a data set of the hub."""
    if kind := named_kind(source):
        if data_files is None:
            raise DataError(f"source: {source} needs data_files, the path of a file, a pattern or a folder")
        return data_files, kind
    refuse_address(source)
    if not _is_local(source):
        return None, None
    if data_files is not None:
        raise DataError(f"source {source} is a file itself; leave out data_files, or set source: json")
    return source, None


def _is_local(source: str) -> bool:
    path = Path(source)
    return kind_of(path) is not None or path.suffix in PACKED or path.expanduser().exists()


def _files_of_split(data_files: DataFiles, split: str) -> tuple[list[Path], re.Match]:
    """List the files of a split, and say which part of their rows it means."""
    parts = _SLICE.fullmatch(split)
    if not parts:
        raise DataError(f"split={split!r} is neither a name nor a part such as train[:95%] or train[100:]")
    files = data_files
    if not isinstance(files, Mapping):
        saved = saved_splits(Path(files).expanduser()) if isinstance(files, str) else None
        files = saved or {"train": files}
    if parts["name"] not in files:
        raise DataError(
            f"split={split!r}: local files have only {', '.join(files)}; data_files: {{name: path}} names more"
        )
    return find_files(files[parts["name"]]), parts


def _slice(parts: re.Match, length: int) -> range:
    """Return the rows that `train[10%:]` means, as `datasets` does: rounded to the nearest row, bounds outside cut."""
    percent = parts["start_percent"] or parts["stop_percent"]

    def bound(text: str | None, default: int) -> int:
        value = default if text is None else round(int(text) * length / 100) if percent else int(text)
        return min(max(value + length, 0) if value < 0 else value, length)

    return range(bound(parts["start"], 0), bound(parts["stop"], length))


def _passes(filter_fn: Callable[[Row], bool], rows: Any, index: int) -> bool:
    try:
        row = rows[index]
    except DataError:  # for on_bad_sample to decide about
        return True
    return bool(filter_fn(row))


class HubRows(Rows):
    """The rows of a data set of the hub, which has them in Arrow's form."""

    def content(self, start: int, stop: int) -> Iterator[bytes]:
        """Yield the values of the rows from `start` to `stop` as bytes."""
        if not hasattr(self._rows, "with_format"):
            yield from super().content(start, stop)
            return
        tables = self._rows.with_format("arrow")
        for at in range(start, stop, WINDOW):  # a part of a data set that is shuffled or filtered is a copy
            yield from table_content(tables[at : min(at + WINDOW, stop)])


def _hub_rows(source: str, options: Mapping[str, Any], split: str) -> Rows:
    return HubRows(source, _load_from_hub(source, options, split), f"{source}[{{}}]".format)


def _load_from_hub(source: str, options: Mapping[str, Any], split: str) -> Any:
    os.environ.setdefault("HF_DATASETS_TRUST_REMOTE_CODE", "0")  # read at the import: run no script of a data set
    try:
        from datasets import load_dataset
    except ImportError:
        raise DataError(
            f"source {source!r} is not a local file, and data from the Hugging Face hub comes through the library "
            "'datasets': pip install datasets, or give a file (source: json, data_files: PATH)"
        ) from None
    try:
        return load_dataset(source, split=split, **{key: value for key, value in options.items() if value is not None})
    except Exception as error:
        reason = str(error).partition("\n")[0]
        raise DataError(f"source {source!r}: the library 'datasets' cannot load it ({reason})") from error
