"""Streams: data sets read part by part, of which only the part being read is opened.

A part is a file, or some thousand rows in turn of a data set of the hub.
"""

import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any

from torchtune_lite.data.batching.batches import Batches, WaitClock
from torchtune_lite.data.batching.collate import Batch
from torchtune_lite.data.batching.fingerprints import Fingerprint, digest, samples_line
from torchtune_lite.data.readers.byte_files import stream_bytes
from torchtune_lite.data.readers.local_files import read_files
from torchtune_lite.data.readers.rows import Rows
from torchtune_lite.errors import ConfigError, DataError
from torchtune_lite.utils import counted, get_logger

log = get_logger()

PART = 10_000  # rows of a part of a stream from the hub
HASHED_WHOLE = 2**30  # bytes of a stream's files up to which all of them are read at the start
Part = tuple[Any, Any]
"""Rows, and the state that opens the stream at them: what JSON can hold."""


class FileStream:
    """Each file is a part; with an `rng` in its order. The state is the number of the part."""

    def __init__(self, paths: Sequence[Path], kind: str | None, field: str | None) -> None:
        self.paths, self.kind, self.field = list(paths), kind, field
        self.name = f"{self.paths[0]} and {counted(len(self.paths) - 1, 'more file')}"

    def content_hash(self) -> str:
        """Hash the files, unpacked; of more than `HASHED_WHOLE` bytes only how each starts, and its size."""
        whole = sum(path.stat().st_size for path in self.paths) <= HASHED_WHOLE
        if not whole:
            log.info(
                f"{self.name}: more than {HASHED_WHOLE / 2**30:.0f} GiB, of which the start of each file is compared "
                "when this run is resumed; changes after it will not be noticed"
            )
        return digest(part for path in self.paths for part in self._content(path, whole))

    def _content(self, path: Path, whole: bool) -> Iterator[bytes]:
        yield b"\0"  # where a file begins, in which the rows are shuffled
        yield from islice(stream_bytes(path, 2**16), None if whole else 1)
        if not whole and path.suffix != ".gz":
            yield str(path.stat().st_size).encode()

    def parts(self, state: Any, rng: Random | None) -> Iterator[Part]:
        """Yield the parts from `state` on; None: all."""
        order = list(range(len(self.paths)))
        if rng is not None:
            rng.shuffle(order)
        for number in range(state or 0, len(order)):
            yield read_files([self.paths[order[number]]], self.kind, self.field), number


class HubStream:
    """`PART` rows at a time of an iterable data set of the library `datasets`, in its order; the state is its own."""

    def __init__(self, name: str, open_stream: Callable[[], Any]) -> None:
        self.name, self._open = name, open_stream

    def content_hash(self) -> None:
        """Hash nothing: what is not downloaded yet is not known."""
        log.info(
            f"{self.name}: the first {counted(PART, 'row')} of the stream are compared when this run is resumed; a "
            "change to later ones will not be noticed"
        )

    def parts(self, state: Any, rng: Random | None) -> Iterator[Part]:
        """Yield the parts from `state` on; None: all."""
        stream = self._open()
        if state is not None:
            stream.load_state_dict(state)
        rows = iter(stream)
        number = 0
        while True:
            here = stream.state_dict()
            part = list(islice(rows, PART))
            if not part:
                return
            yield Rows(self.name, part, f"{self.name}, part {number}[{{}}]".format), here
            number += 1


class StreamDataset:
    """A stream whose parts `make` turns from rows to data sets."""

    def __init__(self, stream: FileStream | HubStream, make: Callable[[Any], Any]) -> None:
        self.stream, self._make = stream, make

    def parts(self, state: Any = None, rng: Random | None = None) -> Iterator[Part]:
        """Yield the data set of each part, and the state that opens the stream at it."""
        for rows, here in self.stream.parts(state, rng):
            yield self._make(rows), here

    def first(self) -> Any:
        """Return the data set of the first part."""
        for dataset, _ in self.parts():
            return dataset
        raise DataError(f"{self.stream.name}: the stream is empty")


class StreamBatches:
    """Micro-batches of a stream, part after part, and of the whole stream again when it has ended.

    With `shuffle` the files come in an order that `seed` and the number of the turn decide, and the rows of a part in
    one that its number decides too. `cursor` says which batch was yielded last, or where several processes take them in
    turn, which the last of them has; set it to go on after that one: what is read for it is its part. An epoch has no
    end. The other arguments are those of `Batches`.
    """

    def __init__(
        self,
        dataset: StreamDataset,
        batch_size: int,
        *,
        seed: int,
        shuffle: bool,
        rank: int = 0,
        processes: int = 1,
        **options: Any,
    ) -> None:
        self.rank, self.processes = rank, processes
        self.dataset, self.batch_size, self.seed, self.shuffle = dataset, batch_size, seed, shuffle
        self.pad_id, self._options = options["pad_id"], options
        self.cursor: Mapping[str, Any] | None = None
        self._clock = WaitClock()
        self._part: Batches | None = None
        self._first: Batches | None = None  # part, until training begins
        self.take_wait_share = self._clock.take_share

    def __len__(self) -> int:
        return sys.maxsize

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Yield micro-batches after the `cursor`, whatever the epoch."""
        return self._clock.through(self._batches())

    def largest(self) -> Batch:
        """Make a micro-batch as large as one of the first part may be."""
        return self._first_part().largest()

    def where(self, epoch: int, start: int, num_batches: int, shown: int = 16) -> str:
        """Say where the rows of the last `num_batches` of each process stand, as far as they are of the same part."""
        done = self.cursor["batch"]
        first = max(done - num_batches * self.processes, 0)
        return self._part.where(0, first, done - first, shown)

    def fingerprint(self) -> Fingerprint:
        """Say what the stream is known by when the run is resumed: its first part, in tokens, and its files."""
        first, stream = self._first_part().dataset, self.dataset.stream
        line = samples_line(first, getattr(first, "pack_len", None))
        return {
            "samples": f"a stream that begins with {line}",
            "rows": [(Path(stream.name).name, stream.content_hash())],
        }

    def _first_part(self) -> Batches:
        if self._first is None:
            self._first = self._batches_of(self.dataset.first(), 0, 0)
        return self._first

    def report_read(self) -> None:
        """Say the same of the part that is being read as was said of each before it when it ended."""
        if self._part is not None:
            self._part.report_read()

    def _batches(self) -> Iterator[Batch]:
        at = self.cursor or {"turn": 0, "part": 0, "state": None, "batch": 0}
        turn, number, state, done = at["turn"], at["part"], at["state"], at["batch"]
        self._first = None  # one part is in memory at a time
        while True:
            rng = Random(f"{self.seed}/{turn}") if self.shuffle else None
            empty = True
            for dataset, here in self.dataset.parts(state, rng):
                self._part = self._batches_of(dataset, turn, number)
                empty = empty and not len(self._part)
                for batch in self._part.every(self.processes, done + self.rank):
                    done += self.processes
                    self.cursor = {"turn": turn, "part": number, "state": here, "batch": done}
                    yield batch
                self._part.report_read()
                number, done = number + 1, done - len(self._part)
            if empty and state is None:
                raise DataError(f"{self.dataset.stream.name}: the stream is empty")
            turn, number, state = turn + 1, 0, None

    def _batches_of(self, dataset: Any, turn: int, number: int) -> Batches:
        seed = f"{self.seed}/{turn}/{number}"
        return Batches(dataset, self.batch_size, seed=seed, shuffle=self.shuffle, **self._options)


AnyBatches = Batches | StreamBatches


def report_read(*several: AnyBatches) -> None:
    """Say of each large data set how many of the rows that were read were cut or left out."""
    for batches in several:
        batches.report_read()


def make_batches(dataset: Any, batch_size: int, **options: Any) -> AnyBatches:
    """Make the micro-batches of a data set or of a stream."""
    return (StreamBatches if isinstance(dataset, StreamDataset) else Batches)(dataset, batch_size, **options)


def steps_per_epoch(batches: AnyBatches, gradient_accumulation_steps: int, max_steps_per_epoch: int | None) -> int:
    """Count the optimizer steps of an epoch; ConfigError for a stream whose epochs have no end."""
    if isinstance(batches, StreamBatches) and max_steps_per_epoch is None:
        raise ConfigError("dataset.streaming: a stream has no known length; set max_steps_per_epoch")
    steps = math.ceil(len(batches) / gradient_accumulation_steps)
    return min(steps, max_steps_per_epoch or steps)
