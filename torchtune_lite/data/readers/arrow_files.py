"""Parquet and Arrow files, by the package pyarrow (extra `[data]`)."""

import mmap
import tempfile
from collections.abc import Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np

from torchtune_lite.data.readers.rows import Row, find_part
from torchtune_lite.errors import DataError
from torchtune_lite.utils import get_logger

TEXTS = ("string", "large_string", "binary", "large_binary")  # types whose values are bytes in a row

log = get_logger()


class ArrowRows:
    """The rows of record batches, which lie in a file that is mapped into memory."""

    def __init__(self, path: Path, batches: Sequence[Any]) -> None:
        self.name, self._batches = str(path), [batch for batch in batches if len(batch)]
        self._ends = list(accumulate(map(len, self._batches)))
        self.num_bytes = sum(batch.nbytes for batch in self._batches)

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, index: int) -> Row:
        number, i = find_part(self._ends, index)
        return self._batches[number].slice(i, 1).to_pylist()[0]

    def where(self, index: int) -> str:
        """Say which row of the file it is, the first one being 0."""
        return f"{self.name}[{index}]"

    def content(self, start: int, stop: int) -> Iterator[bytes]:
        """Yield the values of the rows from `start` to `stop` as bytes."""
        import pyarrow as pa

        return table_content(pa.Table.from_batches(self._batches).slice(start, stop - start))


def arrow_rows(path: Path) -> ArrowRows:
    """Map an Arrow file into memory, in the file or the stream format."""
    pa = _pyarrow(path)
    try:
        return ArrowRows(path, _batches(pa, pa.memory_map(str(path))))
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: not an Arrow file ({_first_line(error)}); fetch it again") from None


def parquet_rows(path: Path) -> ArrowRows:
    """Unpack a Parquet file, which gives no single row, into a mapped Arrow file that ends with the process."""
    pa = _pyarrow(path)
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path, buffer_size=2**20, pre_buffer=False) as file:  # no row group whole
            batches = _unpack(pa, path, file)
        pa.default_memory_pool().release_unused()
        return ArrowRows(path, batches)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: not a readable Parquet file ({_first_line(error)})") from None


def table_content(table: Any) -> Iterator[bytes]:
    """Yield the values of an Arrow table as bytes, which do not tell in what batches or encodings they lie."""
    for name in sorted(table.column_names) if len(table) else ():
        yield from _values(table.column(name).chunks)


def _values(chunks: Sequence[Any]) -> Iterator[bytes]:
    """Yield the lengths of values, -1 of a null, then what they hold: each of all chunks, one after the other."""
    import pyarrow as pa
    import pyarrow.compute

    kind = chunks[0].type
    if pa.types.is_dictionary(kind):
        yield from _values([chunk.dictionary_decode() for chunk in chunks])
    elif pa.types.is_struct(kind):
        yield from (chunk.is_valid().to_numpy(zero_copy_only=False).tobytes() for chunk in chunks)
        for i in range(kind.num_fields):
            yield from _values([chunk.flatten()[i] for chunk in chunks])
    elif pa.types.is_list(kind) or pa.types.is_large_list(kind):
        yield from (_lengths(chunk.value_lengths()) for chunk in chunks)
        yield from _values([chunk.flatten() for chunk in chunks])
    elif str(kind) in TEXTS:
        yield from (_lengths(pa.compute.binary_length(chunk)) for chunk in chunks)
        for chunk in chunks:
            values = chunk.drop_null().cast(pa.large_binary())
            _, ends, data = values.buffers()
            ends = np.frombuffer(ends, np.int64)[values.offset : values.offset + len(values) + 1]
            yield memoryview(data or b"")[ends[0] : ends[-1]]
    else:
        for chunk in chunks:
            for at in range(0, len(chunk), 1000):
                yield "".join(f"{value!r}," for value in chunk.slice(at, 1000).to_pylist()).encode()


def _lengths(lengths: Any) -> bytes:
    return lengths.fill_null(-1).to_numpy().astype(np.int64).tobytes()


def _unpack(pa: Any, path: Path, file: Any) -> list[Any]:
    folder = tempfile.gettempdir()
    with tempfile.TemporaryFile(dir=folder) as unpacked:  # what is mapped stays
        with pa.ipc.new_file(unpacked, file.schema_arrow) as writer:
            for batch in file.iter_batches(batch_size=4096):
                writer.write_batch(batch)
        unpacked.flush()
        size = f"{unpacked.tell() / 1e6:,.1f} MB"
        log.info(f"{path}: unpacked into {size} of {folder} until the run ends; TMPDIR names another folder")
        mapped = mmap.mmap(unpacked.fileno(), 0, access=mmap.ACCESS_READ)
    return _batches(pa, pa.BufferReader(pa.py_buffer(mapped)))


def _batches(pa: Any, source: Any) -> list[Any]:
    try:
        reader = pa.ipc.open_file(source)
    except pa.ArrowInvalid:
        return list(pa.ipc.open_stream(source))
    return [reader.get_batch(i) for i in range(reader.num_record_batches)]


def _pyarrow(path: Path) -> Any:
    try:
        import pyarrow
    except ImportError:
        raise DataError(f"{path} needs the package pyarrow: pip install 'torchtune_lite[data]'") from None
    return pyarrow


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
