"""Files on this machine: which ones a path, a pattern or a folder means, of which kind they are, and their rows."""

import glob
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torchtune_lite.data.readers.arrow_files import arrow_rows, parquet_rows
from torchtune_lite.data.readers.csv_files import CsvRows
from torchtune_lite.data.readers.json_files import json_rows
from torchtune_lite.data.readers.rows import JoinedRows
from torchtune_lite.data.readers.text_files import TextLines
from torchtune_lite.data.tokenizers.files import read_json
from torchtune_lite.errors import DataError

KINDS: dict[str, Callable[[Path], Any]] = {
    "json": json_rows,
    "csv": CsvRows,
    "text": TextLines,
    "parquet": parquet_rows,
    "arrow": arrow_rows,
}
SUFFIXES = {
    ".json": "json",
    ".jsonl": "json",
    ".ndjson": "json",
    ".csv": "csv",
    ".tsv": "csv",
    ".txt": "text",
    ".parquet": "parquet",
    ".arrow": "arrow",
}
PACKED = (".gz", ".zst", ".zip", ".bz2", ".xz")  # only the first is unpacked here

_ADDRESS = re.compile(r"[a-z][a-z0-9+.-]+://", re.I)
_SPLIT = re.compile(r"(?:^|[\W_])(train|training|test|testing|val|valid|validation|dev|eval)(?:[\W_]|$)", re.I)


def kind_of(path: Path) -> str | None:
    """Tell the kind of a file by the end of its name; None for a name that tells nothing."""
    return SUFFIXES.get((path.with_suffix("") if path.suffix == ".gz" else path).suffix.lower())


def named_kind(name: str) -> str | None:
    """Return the kind of files that a name such as `json`, `jsonl` or `txt` means; None for any other name."""
    return name if name in KINDS else SUFFIXES.get(f".{name}")


def refuse_address(text: str) -> None:
    """Raise DataError for an address of the network."""
    if _ADDRESS.match(text):
        raise DataError(
            f"{text} is an address, and only local files are read; download the file first, or name a data set of the "
            "Hugging Face hub as source: owner/name"
        )


def saved_splits(folder: Path) -> dict[str, str] | None:
    """Return the folder of each split that `datasets.DatasetDict.save_to_disk` wrote; None for anything else."""
    splits = read_json(folder / "dataset_dict.json").get("splits")
    return {name: str(folder / name) for name in splits} if splits else None


def find_files(patterns: str | Sequence[str]) -> list[Path]:
    """List the files that paths, patterns and folders mean, those of each in the order of their names."""
    paths = [path for each in ([patterns] if isinstance(patterns, str) else patterns) for path in _matches(each)]
    if not paths:
        raise DataError("data_files is an empty list; name at least one file")
    return paths


def read_files(paths: Sequence[Path], kind: str | None, field: str | None) -> Any:
    """Return the rows of files that are all of one kind, the one named or the one that their names tell.

    Raise DataError for a mix of kinds, a kind that is not read, and a file without rows.
    """
    kinds = {_readable(path, kind) for path in paths}
    if len(kinds) > 1:
        raise DataError(
            f"data files of several kinds ({', '.join(sorted(kinds))}), from {paths[0]} on; name one kind with a "
            f"pattern, e.g. {paths[0].parent / ('*' + paths[0].suffix)}"
        )
    [kind] = kinds
    if field is not None and kind != "json":
        raise DataError(f"field={field!r} is for JSON files, and {paths[0]} is {kind}; leave it out")
    parts = []
    for path in paths:
        parts.append(json_rows(path, field) if kind == "json" else KINDS[kind](path))
        if not len(parts[-1]):
            raise DataError(f"{path}: 0 samples")
    return parts[0] if len(parts) == 1 else JoinedRows(parts)


def _readable(path: Path, kind: str | None) -> str:
    if path.suffix in PACKED and (path.suffix != ".gz" or kind_of(path) in ("parquet", "arrow")):
        raise DataError(f"data file {path}: {path.suffix} is not unpacked here; unpack it first")
    told = kind_of(path)
    if kind is None and told is None:
        raise DataError(f"data file {path}: its name ends in none of {', '.join(SUFFIXES)}; set source to its kind")
    if kind is not None and told not in (None, "text", kind):
        raise DataError(f"data file {path} is {told}, and source says {kind}; set source: {told}")
    return kind or told


def _matches(pattern: str) -> list[Path]:
    refuse_address(pattern)
    path = Path(pattern).expanduser()
    if path.is_dir():
        return _in_folder(path)
    paths = [path] if path.exists() else sorted(each for each in map(Path, glob.glob(str(path))) if each.is_file())
    if not paths:
        raise DataError(f"no file matches {pattern!r} (cwd {Path.cwd()})")
    return paths


def _in_folder(folder: Path) -> list[Path]:
    """List the files of a folder; in one that `datasets.Dataset.save_to_disk` wrote, those it names."""
    if saved := read_json(folder / "state.json").get("_data_files"):
        return [folder / Path(each["filename"]).name for each in saved]
    paths = sorted(path for path in folder.iterdir() if path.is_file() and kind_of(path) and path.name[0] != ".")
    if not paths:
        raise DataError(f"folder {folder} has no file that ends in {', '.join(SUFFIXES)}, plain or with .gz")
    splits = {found[1].lower() for path in paths if (found := _SPLIT.search(path.name))}
    if len(splits) > 1:
        raise DataError(
            f"folder {folder} has files of several splits ({', '.join(sorted(splits))}); say which is which with "
            f"data_files: {{train: {paths[0].parent / 'FILE'}, …}}"
        )
    return paths
