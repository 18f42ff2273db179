"""Keys and values of the tokens already seen, so that generation computes each token once.

T new tokens; h heads, k kv heads, e head width.
"""

from collections.abc import Sequence
from functools import cached_property
from itertools import accumulate, takewhile
from typing import Any

import torch
from torch import Tensor

from torchtune_lite.modules.attention import PackedSequences, attention
from torchtune_lite.modules.replaceable import replaceable
from torchtune_lite.utils import to_device


class KVCache:
    """One layer's keys and values, `[num_slots, num_kv_heads, capacity, head_dim]` each: a slot for each sequence.

    Before each sequence it has `reserved` positions more, for virtual tokens, of which `capacity` and lengths count
    none.
    """

    def __init__(
        self,
        num_slots: int,
        capacity: int,
        num_kv_heads: int,
        head_dim: int,
        dtype: torch.dtype,
        device: torch.device,
        reserved: int = 0,
    ) -> None:
        self.reserved = reserved
        shape = (num_slots, num_kv_heads, reserved + capacity, head_dim)
        self.k = torch.zeros(shape, dtype=dtype, device=device)
        self.v = torch.zeros(shape, dtype=dtype, device=device)

    @property
    def capacity(self) -> int:
        """The positions that a slot holds."""
        return self.k.shape[2] - self.reserved

    def grow(self, capacity: int) -> None:
        """Make room for `capacity` positions; what the slots hold stays."""
        for name in ("k", "v"):
            old = getattr(self, name)
            new = old.new_zeros(*old.shape[:2], self.reserved + capacity, old.shape[3])
            new[:, :, : old.shape[2]] = old
            setattr(self, name, new)

    def write(self, k: Tensor, v: Tensor, sequences: "CachedSequences") -> None:
        """Put keys and values `[1, k, T, e]` of new tokens where they belong."""
        slots, positions = sequences.slot_of_token, sequences.positions()[0]
        self.k[slots, :, positions] = k[0].transpose(0, 1)
        self.v[slots, :, positions] = v[0].transpose(0, 1)

    def copy(self, source: int, target: int, length: int) -> None:
        """Copy the first `length` positions of one slot to another."""
        length += self.reserved
        self.k[target, :, :length] = self.k[source, :, :length]
        self.v[target, :, :length] = self.v[source, :, :length]


class CachedSequences(PackedSequences):
    """New tokens that lie one after the other in one row: of sequences whose earlier tokens are in KV caches.

    Sequence i goes on in slot `slots[i]` at position `starts[i]`, with `seq_lens[i]` tokens. `text_lens` are the
    lengths for which a rotation that depends on them is made (None: those up to here): the same in all calls for a
    text, since its earlier keys are rotated already.
    """

    def __init__(
        self,
        slots: Sequence[int],
        starts: Sequence[int],
        seq_lens: Sequence[int],
        device: torch.device,
        text_lens: Sequence[int] | None = None,
    ) -> None:
        super().__init__(seq_lens, device)
        self.slots, self.starts, self.text_lens = list(slots), list(starts), text_lens
        self.ends = [start + length for start, length in zip(starts, seq_lens, strict=True)]
        before = accumulate(self.seq_lens[:-1], initial=0)
        shifts = [start - count for start, count in zip(starts, before, strict=True)]  # from a place in the row
        of_token = torch.tensor([shifts, self.slots, text_lens or self.ends])
        of_token = of_token.repeat_interleave(torch.tensor(self.seq_lens), dim=1)
        of_token[0] += torch.arange(of_token.shape[1])
        self._positions, self.slot_of_token, self._lengths = to_device(of_token, device)

    @property
    def longest(self) -> int:
        """The most positions that a sequence has by now."""
        return max(self.ends)

    @cached_property
    def num_single(self) -> int:
        """How many sequences, from the first on, have one new token each."""
        return sum(1 for _ in takewhile(lambda length: length == 1, self.seq_lens))

    @cached_property
    def rest(self) -> "CachedSequences":
        """The sequences after these."""
        parts = (self.slots, self.starts, self.seq_lens)
        text_lens = self.text_lens and self.text_lens[self.num_single :]
        return CachedSequences(*(part[self.num_single :] for part in parts), self.device, text_lens)

    def positions(self) -> Tensor:
        """Return the position of each new token in its sequence: `[1, T] int64`."""
        return self._positions[None]

    def lengths(self) -> Tensor:
        """Return the length of the text that each new token belongs to: `[1, T] int64`."""
        return self._lengths[None]


@replaceable
def cached_attention(
    q: Tensor, k: Tensor, v: Tensor, cache: KVCache, sequences: CachedSequences, **options: Any
) -> Tensor:
    """Attend new tokens' `q [1, h, T, e]` to what their slots hold, `k, v [1, k, T, e]` included; `[1, h, T, e]`.

    `options` are those of `attention`.
    """
    cache.write(k, v, sequences)
    if max(sequences.starts) == 0:  # whole texts
        return attention(q, k, v, sequences, **options)
    parts = []
    for part, slot, end in zip(q.split(sequences.seq_lens, dim=2), sequences.slots, sequences.ends, strict=True):
        keys, values = (each[slot : slot + 1, :, :end] for each in (cache.k, cache.v))
        parts.append(attention(part, keys, values, **options))
    return torch.cat(parts, dim=2)
