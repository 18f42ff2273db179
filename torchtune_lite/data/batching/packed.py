"""Packing: a micro-batch is filled with as many samples as it has room for."""

import tempfile
from array import array
from bisect import bisect_right
from itertools import accumulate
from typing import Any

from tqdm import tqdm

from torchtune_lite.data.batching.token_file import TokenFile
from torchtune_lite.errors import ConfigError
from torchtune_lite.utils import get_logger

log = get_logger()


class PackedDataset:
    """The samples of a data set, to be packed: a micro-batch takes as many as fit in `batch_size · max_seq_len` tokens.

    All of them are tokenised for their lengths. A sample longer than `max_seq_len` becomes several, none longer, whose
    labels go on across the cuts: each of its tokens is in the loss once. It is made once: its tokens are kept on disk,
    where the data set does not keep them.
    """

    def __init__(self, dataset: Any, max_seq_len: int | None) -> None:
        if max_seq_len is None:
            raise ConfigError("packed=True needs tokenizer.max_seq_len, the tokens of a pack")
        self.dataset, self.pack_len = dataset, max_seq_len
        self._kept = getattr(dataset, "keeps_samples", False)
        self._long = TokenFile()
        lengths = array("l")
        for i in tqdm(range(len(dataset)), desc="tokenising to pack", unit="row", delay=5):
            sample = dataset[i]
            lengths.append(len(sample["tokens"]))
            if lengths[-1] > max_seq_len + 1 and not self._kept:
                self._long.add(i, sample)
        if self._long.size:
            size, folder = f"{self._long.size / 1e6:,.1f} MB", tempfile.gettempdir()
            log.info(f"tokens of long samples: {size} of {folder} until the run ends; TMPDIR names another folder")
        starts = [range(0, max(n - 1, min(n, 1)), max_seq_len) for n in lengths]  # a last token alone has no label
        self._firsts = array("l", accumulate(map(len, starts), initial=0))
        self.lengths = array(
            "l", (min(max_seq_len, n - start) for n, each in zip(lengths, starts, strict=True) for start in each)
        )

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> dict[str, list[int]]:
        number, start = self._find(index)
        stop = start + self.pack_len
        if number in self._long:
            return self._long.part(number, start, stop)
        if self._kept:
            return self.dataset.part(number, start, stop)
        sample = self.dataset[number]
        return {name: sample[name][start:stop] for name in ("tokens", "labels")}

    def where(self, index: int) -> str:
        """Say where the row of a sample stands."""
        return self.dataset.where(self._find(index)[0])

    def _find(self, index: int) -> tuple[int, int]:
        """Return the number of the whole sample and the token that this one starts at."""
        number = bisect_right(self._firsts, index) - 1
        return number, (index - self._firsts[number]) * self.pack_len
