"""Text files: one document a line, in the column `text`."""

from pathlib import Path

from torchtune_lite.data.readers.byte_files import ByteFile
from torchtune_lite.data.readers.line_index import LineIndex
from torchtune_lite.data.readers.rows import Row


class TextLines:
    """The lines of a file that are not blank, each read when it is asked for."""

    def __init__(self, path: Path) -> None:
        file = ByteFile(path)
        self.name, self.num_bytes, self._lines = file.path, file.size, LineIndex(file)
        self.where, self.content = self._lines.place, self._lines.content

    def __len__(self) -> int:
        return len(self._lines)

    def __getitem__(self, index: int) -> Row:
        return {"text": self._lines.text(index).removesuffix("\r")}
