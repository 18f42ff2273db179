"""Texts to measure: a file as a whole, or a column of its rows."""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from torchtune_lite.data import ColumnText, DataFiles, load_rows
from torchtune_lite.errors import DataError


class Documents:
    """The texts in `column` of the rows of a source, as `data.load_rows` reads them, or without one the file's text.

    `max_rows` takes the first ones (None: all). Raise DataError for what cannot be read: of rows when it is their turn.
    """

    def __init__(
        self, source: str | Path, data_files: DataFiles = None, column: str | None = None, max_rows: int | None = None
    ) -> None:
        self._column, self._max_rows = column, max_rows
        if column is None:
            if data_files is not None or max_rows is not None:
                raise DataError("data_files and max_rows are for rows; name the column that has their text")
            self._text = _read(Path(source).expanduser())
            if not self._text.strip():
                raise DataError(f"source {source} has no text whose perplexity could be measured")
        else:
            self._rows = load_rows(str(source), data_files=data_files)

    def __iter__(self) -> Iterator[str]:
        if self._column is None:
            yield self._text
            return
        prepare = ColumnText(self._column)
        for number in islice(range(len(self._rows)), self._max_rows):
            try:
                yield prepare(self._rows[number])["text"]
            except DataError as error:
                where = self._rows.where(number)
                raise DataError(f"{where}: {str(error).removeprefix(f'{where}: ')}") from None


def _read(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise DataError(f"source {path} cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise DataError(f"source {path} is not UTF-8 at byte {error.start:,}; convert it first") from None
