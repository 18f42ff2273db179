"""The encoding of a text file: UTF-8 with line feeds, or an error that says what it is instead."""

import json

from torchtune_lite.errors import DataError


def check_encoding(path: str, head: bytes) -> None:
    """Raise DataError for a text file whose first bytes are UTF-16 or UTF-32, with a byte-order mark or without."""
    found = json.detect_encoding(head[:4])  # by the NULs in the first two characters
    if not found.startswith("utf-8"):
        name = found[:6].upper()
        raise DataError(f"{path} is {name}; save it as UTF-8, e.g. iconv -f {name} -t UTF-8")


def check_line_ends(path: str, head: bytes) -> None:
    """Raise DataError for a file whose lines end with a carriage return alone."""
    if b"\r" in head and b"\n" not in head:
        raise DataError(f"{path}: its lines end with a carriage return alone; convert it, e.g. tr '\\r' '\\n'")


def not_utf8(place: str, data: bytes, error: UnicodeDecodeError) -> DataError:
    """Make the error for a byte of `data` that is not UTF-8."""
    return DataError(
        f"{place}: byte 0x{data[error.start]:02x} is not UTF-8; unpack or convert the file, e.g. "
        "iconv -f CP1252 -t UTF-8 where Windows wrote it"
    )
