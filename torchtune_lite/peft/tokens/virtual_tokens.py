"""Decoders with virtual tokens before each sequence: as embeddings before its own, or as keys and values of each layer.

b batch, s sequence, d embed, k virtual tokens, h heads, g kv heads, e head width.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from torchtune_lite.modules import CachedSequences, MultiHeadAttention, TransformerDecoder
from torchtune_lite.modules.attention import PackedSequences
from torchtune_lite.modules.rope import Rotation


class Room(NamedTuple):
    """Room for virtual tokens in sequences of `lens` tokens, one after the other: before each so many as `counts`."""

    lens: Sequence[int]
    counts: Sequence[int]

    def put(self, x: Tensor, virtual: Tensor, dim: int) -> Tensor:
        """Return `x` with the first rows of `virtual`, which has a batch of 1, before each sequence along `dim`."""
        virtual = virtual.to(x.dtype).expand(x.shape[0], *virtual.shape[1:])
        parts = zip(x.split(self.lens, dim), self.counts, strict=True)
        return torch.cat([each for part, count in parts for each in (virtual.narrow(dim, 0, count), part)], dim)

    def take(self, x: Tensor, dim: int) -> Tensor:
        """Return `x` without them."""
        both = [count + length for length, count in zip(self.lens, self.counts, strict=True)]
        parts = zip(x.split(both, dim), self.counts, self.lens, strict=True)
        return torch.cat([part.narrow(dim, count, length) for part, count, length in parts], dim)

    def take_rotation(self, rotation: Rotation | None) -> Rotation | None:
        """Return the rotation of the other tokens."""
        return rotation and Rotation(*(each if each is None else self.take(each, 2) for each in rotation))


class Prefixed(NamedTuple):
    """What the attention of a layer has in the place of a mask: its virtual tokens, where they go, and their mask."""

    keys: Tensor  # [1, g, k, e]
    values: Tensor
    room: Room
    mask: PackedSequences | None


class PrefixAttention(MultiHeadAttention):
    """Attention that also sees keys and values which stand before each sequence, and are not rotated."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Prefixed | CachedSequences) -> Tensor:
        """Attend as `MultiHeadAttention` does, with virtual tokens that ask for nothing; a cache has them already."""
        if not isinstance(mask, Prefixed):
            return super().attend(q, k, v, mask)
        room = mask.room
        q = room.put(q, q.new_zeros(1, q.shape[1], *mask.keys.shape[2:]), 2)
        k, v = room.put(k, mask.keys, 2), room.put(v, mask.values, 2)
        return room.take(super().attend(q, k, v, mask.mask), 2)


class VirtualTokensDecoder(TransformerDecoder):
    """A decoder whose module `prompt` makes virtual tokens that stand before each sequence, alone or joined in a row.

    They take positions, so that `config.max_seq_len` is smaller by their number. What is returned are the states or
    logits of the other tokens: the virtual ones have no label. A KV cache holds them once for each slot. As long as
    `prompt.enabled` is False, it is the decoder without them.
    """

    prompt: nn.Module
    attention: ClassVar[type[MultiHeadAttention]] = MultiHeadAttention

    def forward(
        self,
        tokens: Tensor,
        *,
        input_pos: Tensor | None = None,
        mask: Tensor | PackedSequences | None = None,
        seq_lens: Sequence[int] | None = None,
        skip_output: bool = False,
    ) -> Tensor:
        """Return what `TransformerDecoder` does, of sequences that see the virtual tokens; with the same arguments.

        ValueError for `input_pos` and for a mask of booleans, which do not say where a sequence begins.
        """
        if not self.prompt.enabled:
            options = {"input_pos": input_pos, "mask": mask, "seq_lens": seq_lens, "skip_output": skip_output}
            return super().forward(tokens, **options)
        if input_pos is not None or isinstance(mask, Tensor):
            raise ValueError("virtual tokens stand before whole sequences: give seq_lens, not input_pos or a mask")
        sequences = mask if seq_lens is None else PackedSequences(seq_lens, tokens.device)
        h = self.states(tokens, sequences)
        return h if skip_output else self.logits(h)

    def states(self, tokens: Tensor, sequences: PackedSequences | None) -> Tensor:
        """Return the final states of `tokens [b, s]`; without `sequences` each row is one."""
        raise NotImplementedError

    def room(self, tokens: Tensor, sequences: PackedSequences | None) -> Room:
        """Return room before each sequence; of those that go on where a cache ends, before none but the new ones."""
        lens = [tokens.shape[1]] if sequences is None else sequences.seq_lens
        starts = sequences.starts if isinstance(sequences, CachedSequences) else [0] * len(lens)
        return Room(lens, [0 if start else self.prompt.num_tokens for start in starts])

    def with_room(self, tokens: Tensor, seq_lens: Sequence[int] | None) -> tuple[Tensor, Sequence[int] | None]:
        """Return a batch in which zeros stand for the virtual tokens, and its lengths."""
        sequences = seq_lens and PackedSequences(seq_lens, tokens.device)
        k = self.prompt.num_tokens
        longer = self.room(tokens, sequences).put(tokens, tokens.new_zeros(1, k), 1)
        return longer, seq_lens and [k + length for length in seq_lens]

    def _check_length(self, length: int) -> None:
        super()._check_length(length - self.prompt.num_tokens)

    def setup_caches(self, num_slots: int, capacity: int, reserved: int = 0) -> None:
        """Give every layer an empty KV cache with room for the virtual tokens before each sequence."""
        super().setup_caches(num_slots, capacity, reserved + self.prompt.num_tokens)


class PromptDecoder(VirtualTokensDecoder):
    """Virtual tokens as embeddings `[k, d]`, which pass through all layers as a text's do."""

    def states(self, tokens: Tensor, sequences: PackedSequences | None) -> Tensor:
        """Return the final states of `tokens [b, s]`; without `sequences` each row is one."""
        room, k = self.room(tokens, sequences), self.prompt.num_tokens
        longer = [count + length for length, count in zip(room.lens, room.counts, strict=True)]
        if isinstance(sequences, CachedSequences):
            starts = [start and k + start for start in sequences.starts]
            sequences = moved(sequences, starts, longer, k)
        elif sequences is not None:
            sequences = PackedSequences(longer, tokens.device)
        h = self.embed(tokens)
        begins = any(room.counts)
        if begins:
            h, tokens = room.put(h, self.prompt()[None], 1), room.put(tokens, tokens.new_zeros(1, k), 1)
        rotations, mask = self.rotations(tokens, mask=sequences)
        h = self.transform(h, rotations, [mask] * len(self.layers))
        return room.take(h, 1) if begins else h


class PrefixDecoder(VirtualTokensDecoder):
    """Virtual tokens as keys and values of each layer: `[k, 2 · layers, g, e]`, a layer's keys before its values."""

    attention = PrefixAttention

    def states(self, tokens: Tensor, sequences: PackedSequences | None) -> Tensor:
        """Return the final states of `tokens [b, s]`; without `sequences` each row is one."""
        k = self.prompt.num_tokens
        if isinstance(sequences, CachedSequences):
            mask = moved(sequences, [k + start for start in sequences.starts], sequences.seq_lens, k)
            rotations, mask = self.rotations(tokens, mask=mask)
            return self.transform(self.embed(tokens), rotations, [mask] * len(self.layers))
        room = self.room(tokens, sequences)
        if sequences is not None:
            sequences = PackedSequences([k + length for length in room.lens], tokens.device)
        rotations, mask = self.rotations(room.put(tokens, tokens.new_zeros(1, k), 1), mask=sequences)
        rotations = {kind: room.take_rotation(each) for kind, each in rotations.items()}
        masks = [Prefixed(keys, values, room, mask) for keys, values in self.prefixes()]
        return self.transform(self.embed(tokens), rotations, masks)

    def prefixes(self) -> list[tuple[Tensor, Tensor]]:
        """Return the keys and the values `[1, g, k, e]` of each layer."""
        c = self.config
        both = self.prompt().unflatten(1, (2 * c.num_layers, c.num_kv_heads, c.head_dim)).permute(1, 2, 0, 3)
        return list(zip(both[0::2, None], both[1::2, None], strict=True))

    @torch.no_grad()
    def setup_caches(self, num_slots: int, capacity: int, reserved: int = 0) -> None:
        """Give every layer a KV cache that holds its keys and values in each slot."""
        super().setup_caches(num_slots, capacity, reserved)
        for layer, (keys, values) in zip(self.layers, self.prefixes(), strict=True):
            layer.attn.kv_cache.k[:, :, : self.prompt.num_tokens] = keys
            layer.attn.kv_cache.v[:, :, : self.prompt.num_tokens] = values


def moved(sequences: CachedSequences, starts: Sequence[int], lens: Sequence[int], count: int) -> CachedSequences:
    """Return sequences of a KV cache that start elsewhere, in texts that are longer by `count`."""
    text_lens = sequences.text_lens and [count + length for length in sequences.text_lens]
    return CachedSequences(sequences.slots, starts, lens, sequences.device, text_lens)


def put_before(model: TransformerDecoder, prompt: nn.Module, kind: type[VirtualTokensDecoder]) -> None:
    """Make `model` a decoder of this kind, its other modules as they are; ValueError where no position is left."""
    left = model.config.max_seq_len - prompt.num_tokens
    if left < 2:
        raise ValueError(
            f"num_virtual_tokens {prompt.num_tokens} leaves no room for a text: the model has "
            f"{model.config.max_seq_len} positions"
        )
    model.prompt, model.config = prompt, replace(model.config, max_seq_len=left)
    model.__class__ = kind
    for layer in model.layers:
        layer.attn.__class__ = kind.attention
