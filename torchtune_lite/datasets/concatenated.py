"""Several data sets as one."""

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

from torchtune_lite.errors import ConfigError, DataError


class ConcatDataset:
    """The samples of several data sets, one after the other."""

    def __init__(self, datasets: Sequence[Any]) -> None:
        self.datasets = list(datasets)
        self._ends = list(accumulate(map(len, self.datasets)))

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> dict[str, list[int]]:
        dataset, i = self._find(index)
        return dataset[i]

    def where(self, index: int) -> str:
        """Says where the row of a sample stands."""
        dataset, i = self._find(index)
        return dataset.where(i)

    def _find(self, index: int) -> tuple[Any, int]:
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        number = bisect_right(self._ends, index)
        return self.datasets[number], index - (self._ends[number - 1] if number else 0)


def concatenated(built: Any) -> Any:
    """Gives one data set for what a config's `dataset` builds: a data set as it is, a list of them joined."""
    if isinstance(built, list):
        if not built:
            raise ConfigError("dataset is an empty list; give at least one data set")
        built = built[0] if len(built) == 1 else ConcatDataset(built)
    if not len(built):
        raise DataError(f"dataset ({type(built).__name__}) has 0 samples: no optimizer step would run")
    return built
