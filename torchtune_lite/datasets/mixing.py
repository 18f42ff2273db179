"""Several data sets as one: joined, or mixed by weights."""

from array import array
from collections import Counter
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from random import Random
from typing import Any

from torchtune_lite.data import PackedDataset, PreferenceDataset, SFTDataset, StreamDataset, find_part
from torchtune_lite.datasets.own import OwnDataset
from torchtune_lite.errors import ConfigError, DataError
from torchtune_lite.utils import counted, get_logger


class ConcatDataset:
    """The samples of several data sets, one after the other; `names` are those of their files.

    Packed data sets (all or none, of the same `pack_len`) make a packed one.
    """

    def __init__(self, datasets: Sequence[Any]) -> None:
        self.datasets = list(datasets)
        self._ends = list(accumulate(map(len, self.datasets)))
        self.names = _names(self.datasets)
        pack_lens = {getattr(dataset, "pack_len", None) for dataset in self.datasets}
        if len(pack_lens) > 1:
            raise ConfigError(
                "dataset: some data sets of the list are packed and others are not; set packed to one value in all"
            )
        self.pack_len = pack_lens.pop()
        if self.pack_len:
            self.lengths = array("l", (length for dataset in self.datasets for length in dataset.lengths))

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> dict[str, list[int]]:
        number, i = self._find(index)
        return self.datasets[number][i]

    def source(self, index: int) -> int:
        """Return the number of the data set that a sample is from."""
        return self._find(index)[0]

    def where(self, index: int) -> str:
        """Say where the row of a sample stands."""
        number, i = self._find(index)
        return self.datasets[number].where(i)

    def _find(self, index: int) -> tuple[int, int]:
        return find_part(self._ends, index, "sample")


class MixedDataset(ConcatDataset):
    """Data sets of which an epoch takes shares as `weights` (any positive numbers), in as many samples as all have.

    Each data set is gone through from end to end, in a new order each time, and the next epoch goes on where this one
    stopped: no sample comes again before all of its data set have come.
    """

    def __init__(self, datasets: Sequence[Any], weights: Sequence[float]) -> None:
        super().__init__(datasets)
        if len(weights) != len(self.datasets):
            numbers = counted(len(weights), "number")
            raise ConfigError(f"dataset_weights has {numbers} for {len(self.datasets)} data sets")
        if min(weights) <= 0:
            raise ConfigError(f"dataset_weights must be more than 0, got {min(weights)}; leave the data set out")
        total, ends = sum(weights), accumulate(weights)
        bounds = [0, *(round(len(self) * end / total) for end in ends)]
        self.counts = [stop - start for start, stop in zip(bounds[:-1], bounds[1:], strict=True)]
        shares = zip(self.names, self.counts, self.datasets, strict=True)
        said = [f"{name} {n:,} ({n / len(self):.1%}, {n / len(each):.2g} × each)" for name, n, each in shares]
        get_logger().info("an epoch's %s samples: %s", f"{len(self):,}", ", ".join(said))

    def order(self, seed: int, epoch: int, shuffle: bool) -> list[int]:
        """Return the samples of an epoch, those of each data set together."""
        order = []
        for number, (count, dataset) in enumerate(zip(self.counts, self.datasets, strict=True)):
            first, size = self._ends[number] - len(dataset), len(dataset)
            for turn in range(epoch * count // size, -(-(epoch + 1) * count // size)):
                each = list(range(size))
                if shuffle:
                    Random(f"{seed}/{number}/{turn}").shuffle(each)
                start, stop = (min(max(at - turn * size, 0), size) for at in (epoch * count, (epoch + 1) * count))
                order += [first + i for i in each[start:stop]]
        return order


def concatenated(built: Any, weights: Sequence[float] | None = None) -> Any:
    """Return one data set for what a config's `dataset` builds: one as it is, a list joined, or mixed by `weights`.

    Those of the user's own are checked, as `OwnDataset` says; pairs and empty ones are a DataError.
    """
    datasets = built if isinstance(built, list) else [built]
    several = len(datasets) > 1
    if not datasets:
        raise ConfigError("dataset is an empty list; give at least one data set")
    if several and any(isinstance(each, StreamDataset) for each in datasets):
        raise ConfigError("dataset: a stream cannot be one of a list; set streaming=False, or train on it alone")
    if weights and not several:
        raise ConfigError("dataset_weights needs a list of several data sets under dataset")
    checked = [_checked(each) for each in datasets]
    if empty := [each for each in checked if not isinstance(each, StreamDataset) and not len(each)]:
        instead = "leave it out of the list" if several else "no optimizer step would run"
        raise DataError(f"{getattr(empty[0], 'name', f'dataset ({type(empty[0]).__name__})')} has 0 samples: {instead}")
    if several:
        return MixedDataset(checked, weights) if weights else ConcatDataset(checked)
    return checked[0]


def _checked(dataset: Any) -> Any:
    """Return a data set that makes samples: one of this library as it is, the user's own with checks."""
    if isinstance(dataset, PreferenceDataset):
        raise DataError(
            "dataset makes pairs of answers, which no recipe here trains on; train on the chosen ones by "
            "instruct_dataset with column_map={input: prompt, output: chosen}, or write a recipe of your own "
            "(padded_collate_dpo)"
        )
    ours = SFTDataset | PackedDataset | StreamDataset | ConcatDataset
    return dataset if isinstance(dataset, ours) else OwnDataset(dataset)


def validation_sets(built: Any, key: str = "dataset_val") -> dict[str, Any]:
    """Return by name what a config's `key` builds: none, one (its name is empty), a list or a mapping of them.

    Those of a list are named as in `ConcatDataset`.
    """
    if built is None:
        return {}
    if isinstance(built, list) and len(built) != 1:
        built = dict(zip(_names(built), built, strict=True))
    sets = (
        {name: _checked(each) for name, each in built.items()} if isinstance(built, dict) else {"": concatenated(built)}
    )
    if not sets:
        raise ConfigError(f"{key} is empty; give at least one data set, or set {key}: null")
    for name, dataset in sets.items():
        if isinstance(dataset, StreamDataset):
            raise ConfigError(f"{key}: a stream has no end to validate on; set {key}.streaming=False")
        if not len(dataset):
            raise DataError(f"{key} ({name}) has 0 samples: leave it out")
    return sets


def _names(datasets: Sequence[Any]) -> list[str]:
    """Name each data set by its file, or by its class; those of the same name by their number too."""
    whole = [getattr(dataset, "dataset", dataset) for dataset in datasets]  # of packed ones and the user's own
    names = [Path(each.rows.name).stem if hasattr(each, "rows") else type(each).__name__ for each in whole]
    times = Counter(names)
    return [name if times[name] == 1 else f"{name}_{number}" for number, name in enumerate(names)]
