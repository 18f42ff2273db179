"""Worker processes that make micro-batches ahead of the step."""

import atexit
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from torchtune_lite.errors import DataError
from torchtune_lite.worker import end_with_parent

AHEAD = 4  # micro-batches that a worker makes before they are asked for


class Made(Dataset):
    """A function's results by item; its errors are returned rather than raised, to keep their one line."""

    def __init__(self, make: Callable[[Any], Any], items: Sequence[Any]) -> None:
        self.make, self.items = make, items

    def __getitem__(self, index: int) -> Any:
        try:
            return self.make(self.items[index])
        except DataError as error:
            return error


_loading: dict[object, Iterator[Any]] = {}
"""The only references to running workers' iterators: dropping one ends its workers."""

atexit.register(_loading.clear)  # as after a stop in the middle of an epoch; later, Python would wait for them


def made_ahead(make: Callable[[Any], Any], items: Sequence[Any], num_workers: int, start: int = 0) -> Iterator[Any]:
    """Yield `make(item)` for each from number `start` on, made by `num_workers` processes; 0: here, when asked for.

    Draws nothing from the global random state. A worker that is killed is a DataError.
    """
    numbers = range(start, len(items))
    if num_workers == 0:
        yield from (make(items[number]) for number in numbers)
        return
    key = object()
    _loading[key] = iter(
        DataLoader(
            Made(make, items),
            batch_size=None,
            sampler=numbers,
            num_workers=num_workers,
            prefetch_factor=AHEAD,
            collate_fn=_as_it_is,
            worker_init_fn=_start,
            generator=torch.Generator(),
            multiprocessing_context="fork" if sys.platform == "linux" else None,  # without new imports
        )
    )
    try:
        for _ in numbers:
            made = next(_loading[key])
            if isinstance(made, DataError):
                raise made
            yield made
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        reason = str(error).partition("\n")[0].rstrip(".")
        raise DataError(f"{reason}: out of memory, perhaps; set num_workers=0") from error
    finally:
        _loading.pop(key, None)


def _as_it_is(made: Any) -> Any:
    return made


def _start(number: int) -> None:
    """Leave signals to the training process, and ends with it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    end_with_parent(signal.SIGKILL)
