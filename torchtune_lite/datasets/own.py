"""Data sets of the user's own: what they must give, checked at the first sample and at each that is read."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset

from torchtune_lite.data import CROSS_ENTROPY_IGNORE_IDX
from torchtune_lite.errors import DataError
from torchtune_lite.utils import counted, get_logger

NAMES = ("tokens", "labels")


class OwnDataset:
    """The samples of a data set of the user's own, as lists of ints.

    It must have `__len__` and `__getitem__`, which gives `{"tokens", "labels"}`: two lists, arrays or tensors of ints,
    of one length. The label of a token is the next one, or -100 where that has no loss. Anything else is a DataError,
    of the first sample at once. `where(index)`, if it has that, names a sample in messages.
    """

    def __init__(self, dataset: Any) -> None:
        self.dataset, self.class_name = dataset, type(dataset).__name__
        self.name = f"dataset ({self.class_name})"
        has_samples = _has(dataset, "__len__") and _has(dataset, "__getitem__")
        if not has_samples or isinstance(dataset, IterableDataset | Mapping):
            raise DataError(
                f"{self.name} needs __len__ and __getitem__ by number: an iterable cannot be shuffled or resumed; read "
                "large files with a builder and streaming=True"
            )
        if len(dataset):
            self._check_first()

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict[str, list[int]]:
        sample = self.dataset[index]
        if not isinstance(sample, Mapping) or not set(NAMES) <= set(sample):
            got = f"the keys {', '.join(map(str, sample))}" if isinstance(sample, Mapping) else type(sample).__name__
            raise DataError(f"{self._place(index)} must be a mapping with 'tokens' and 'labels', got {got}")
        tokens, labels = (self._ints(sample[name], index, name) for name in NAMES)
        if len(tokens) != len(labels):
            raise DataError(
                f"{self._place(index)} has {counted(len(labels), 'label')} for {counted(len(tokens), 'token')}; "
                f"give each token one, {CROSS_ENTROPY_IGNORE_IDX} for none"
            )
        return {"tokens": tokens, "labels": labels}

    def where(self, index: int) -> str:
        """Say where a sample stands, if the data set does."""
        return getattr(self.dataset, "where", "sample {}".format)(index)

    def _place(self, index: int) -> str:
        return f"{self.name}: {self.where(index)}"

    def _ints(self, value: Any, index: int, name: str) -> list[int]:
        try:
            array = np.asarray(value.detach().cpu() if isinstance(value, Tensor) else value)
        except (TypeError, ValueError, RuntimeError):  # lists of several lengths
            array = np.asarray(None)
        if array.ndim != 1 or (array.dtype.kind not in "iu" and array.size):
            got = f"{array.ndim} dimensions of {array.dtype}" if array.dtype != object else type(value).__name__
            raise DataError(f"{self._place(index)}: {name!r} must be one row of ints, got {got}")
        lowest = array.min(initial=0, where=array != CROSS_ENTROPY_IGNORE_IDX if name == "labels" else True)
        if lowest < 0:
            only = f"; the label of no loss is {CROSS_ENTROPY_IGNORE_IDX}" if name == "labels" else ""
            raise DataError(f"{self._place(index)}: {name!r} has {lowest}, which is not the id of a token{only}")
        return array.astype(int).tolist()

    def _check_first(self) -> None:
        """Raise DataError where the first sample's labels are not shifted; warns of keys that are not read."""
        tokens, labels = self[0].values()
        places = [i for i, label in enumerate(labels) if label != CROSS_ENTROPY_IGNORE_IDX]
        following = [*tokens[1:], None]
        own = len(places) > 0 and all(labels[i] == tokens[i] for i in places)
        if own and any(labels[i] != following[i] for i in places):
            raise DataError(
                f"{self._place(0)}: the label of each token is the token itself, and must be the next one; shift them: "
                f"labels = labels[1:] + [{CROSS_ENTROPY_IGNORE_IDX}]"
            )
        if others := [str(key) for key in self.dataset[0] if key not in NAMES]:
            get_logger().warning(f"{self.name}: not read: {', '.join(others)} of its samples")


def _has(dataset: Any, method: str) -> bool:
    """Return whether a class has a method of its own; that of torch's `Dataset` only says that there is none."""
    found = getattr(type(dataset), method, None)
    return found is not None and found is not getattr(Dataset, method, None)
