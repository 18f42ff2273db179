"""The decoder, whole: attention, feed-forward, layer, model.

Llama 2 (arXiv 2307.09288) is the plain case: pre-norm with RMSNorm, rotary positions, SwiGLU (arXiv 2002.05202),
grouped-query attention (arXiv 2305.13245). Other families differ in fields of `DecoderConfig`, named where they matter.

b batch, s sequence, d embed_dim, h num_heads, k num_kv_heads, e head_dim, f intermediate_dim, v vocab_size.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from torchtune_lite.modules.attention import PackedSequences, attention
from torchtune_lite.modules.config import DecoderConfig, LayerKind
from torchtune_lite.modules.kv_cache import CachedSequences, KVCache, cached_attention
from torchtune_lite.modules.norm import RMSNorm
from torchtune_lite.modules.replaceable import replaceable
from torchtune_lite.modules.rope import RotaryPositionalEmbeddings, Rotation, rotate

LinearFactory = Callable[..., nn.Module]
"""`linear(name, in_dim, out_dim, bias=False)` makes the projection of that name in the model, such as
`layers.0.attn.q_proj`: the seam for adapters and NF4."""
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"silu": F.silu, "gelu_tanh": partial(F.gelu, approximate="tanh")}


@replaceable
def project(x: Tensor, *linears: nn.Module) -> list[Tensor]:
    """Apply each projection to `x [..., in]`."""
    return [linear(x) for linear in linears]


@replaceable
def gated_mlp(x: Tensor, w1: nn.Module, w2: nn.Module, w3: nn.Module, activation: str, tile: int | None) -> Tensor:
    """Compute `w2(activation(w1 x) · w3 x)` of `x [b, s, d]`.

    With `tile`, so many tokens at a time, of which only the input is kept for the backward pass.
    """
    if tile is not None:
        recomputed = partial(checkpoint, gated_mlp, use_reentrant=False)
        parts = [recomputed(part, w1, w2, w3, activation, None) for part in x.flatten(0, -2).split(tile)]
        return torch.cat(parts).view(x.shape)
    return w2(ACTIVATIONS[activation](w1(x)) * w3(x))


class TokenEmbedding(nn.Embedding):
    """torch's `nn.Embedding`, which on the meta device would load torch's compiler to fill what has no memory."""

    def reset_parameters(self) -> None:
        """Draw each weight from N(0, 1)."""
        if not self.weight.is_meta:
            super().reset_parameters()

    def logits(self, x: Tensor) -> Tensor:
        """Project `x [..., d]` by the same weight to `[..., v]`."""
        return F.linear(x, self.weight)


class TiedOutput(nn.Module):
    """An output projection without a weight of its own: that of the embedding.

    `softcap` c makes the logits c · tanh(logit / c). The embedding is not registered here, so that it has one name in
    the model; `parameters()` gives its own to who asks what this module computes with.
    """

    def __init__(self, embedding: TokenEmbedding, softcap: float | None = None) -> None:
        super().__init__()
        self._embedding, self.softcap = (embedding,), softcap

    @property
    def embedding(self) -> TokenEmbedding:
        """The embedding."""
        return self._embedding[0]

    @property
    def weight(self) -> Tensor:
        """The embedding's weight `[v, d]`."""
        return self.embedding.weight

    def named_parameters(
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield the embedding's parameters; none to who asks for this module's own (`recurse` False), as FSDP does."""
        if recurse:
            yield from self.embedding.named_parameters(prefix, recurse, remove_duplicate)

    def forward(self, x: Tensor) -> Tensor:
        """Map `x [..., d]` to logits `[..., v]`."""
        logits = self.embedding.logits(x)
        return logits if self.softcap is None else self.softcap * torch.tanh(logits / self.softcap)


class MultiHeadAttention(nn.Module):
    """Causal self-attention whose heads share keys and values in groups."""

    def __init__(self, config: DecoderConfig, linear: LinearFactory, kind: LayerKind = "full") -> None:
        super().__init__()
        c, width, kv_width = config, config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
        self.head_dim, self.qk_norm = c.head_dim, c.qk_norm
        self.q_proj = linear("q_proj", c.embed_dim, width, bias="q_proj" in c.biased)
        self.k_proj = linear("k_proj", c.embed_dim, kv_width, bias="k_proj" in c.biased)
        self.v_proj = linear("v_proj", c.embed_dim, kv_width, bias="v_proj" in c.biased)
        self.output_proj = linear("output_proj", width, c.embed_dim, bias="output_proj" in c.biased)
        if c.qk_norm:
            dims = (c.head_dim, c.head_dim) if c.qk_norm == "head" else (width, kv_width)
            self.q_norm, self.k_norm = (RMSNorm(dim, c.norm_eps, c.norm_offset) for dim in dims)
        self.dropout, self.scale, self.softcap = c.attn_dropout, c.attn_scale, c.attn_softcap
        self.window = c.window if kind == "sliding" else None
        self.kv_cache: KVCache | None = None

    def forward(self, x: Tensor, rotation: Rotation | None, mask: Tensor | PackedSequences | None = None) -> Tensor:
        """Mix `x [b, s, d]` over the sequence; `mask` as in `attention`, no `rotation` in a layer that has none."""
        q, k, v = project(x, self.q_proj, self.k_proj, self.v_proj)
        if self.qk_norm == "width":
            q, k = self.q_norm(q), self.k_norm(k)
        q, k, v = (y.unflatten(-1, (-1, self.head_dim)).transpose(1, 2) for y in (q, k, v))  # [b, h or k, s, e]
        if self.qk_norm == "head":
            q, k = self.q_norm(q), self.k_norm(k)
        if rotation is not None:
            q, k = rotate(q, rotation), rotate(k, rotation)
            q = q if rotation.query_scale is None else q * rotation.query_scale
        [y] = project(self.attend(q, k, v, mask).transpose(1, 2).flatten(2), self.output_proj)
        return y  # [b, s, d]

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | PackedSequences | None) -> Tensor:
        """Attend rotated `q [b, h, s, e]` to `k, v [b, k, s, e]`, and to what stands before them in the KV cache."""
        options = {"scale": self.scale, "window": self.window, "softcap": self.softcap}
        if isinstance(mask, CachedSequences):
            return cached_attention(q, k, v, self.kv_cache, mask, **options)
        return attention(q, k, v, mask, dropout=self.dropout if self.training else 0.0, **options)


class FeedForward(nn.Module):
    """A gated feed-forward; `tile` computes so many tokens at a time (None: all), in less memory."""

    def __init__(self, config: DecoderConfig, linear: LinearFactory) -> None:
        super().__init__()
        d, f = config.embed_dim, config.intermediate_dim
        self.w1 = linear("w1", d, f)
        self.w2 = linear("w2", f, d)
        self.w3 = linear("w3", d, f)
        self.activation, self.tile = config.activation, None

    def forward(self, x: Tensor) -> Tensor:
        """Map `x [b, s, d]` to `[b, s, d]`."""
        return gated_mlp(x, self.w1, self.w2, self.w3, self.activation, self.tile)


def within(part: str, linear: LinearFactory) -> LinearFactory:
    """Return the factory for the projections within a part of the model, which know their names there alone."""
    return lambda name, *args, **kwargs: linear(f"{part}.{name}", *args, **kwargs)


class TransformerSelfAttentionLayer(nn.Module):
    """One layer: attention, then feed-forward, each added to the residual stream."""

    def __init__(self, config: DecoderConfig, linear: LinearFactory, kind: LayerKind = "full") -> None:
        super().__init__()
        norm = partial(RMSNorm, config.embed_dim, config.norm_eps, config.norm_offset)
        self.kind, self.residual_scale = kind, config.residual_scale
        self.sa_norm = norm() if config.pre_norm else nn.Identity()
        self.attn = MultiHeadAttention(config, within("attn", linear), kind)
        self.sa_post_norm = norm() if config.post_norm else nn.Identity()
        self.mlp_norm = norm() if config.pre_norm else nn.Identity()
        self.mlp = FeedForward(config, within("mlp", linear))
        self.mlp_post_norm = norm() if config.post_norm else nn.Identity()

    def forward(self, x: Tensor, rotation: Rotation | None, mask: Tensor | PackedSequences | None = None) -> Tensor:
        """Map `x [b, s, d]` to `[b, s, d]`."""
        y = self.sa_post_norm(self.attn(self.sa_norm(x), rotation, mask))
        x = torch.add(x, y, alpha=self.residual_scale)
        y = self.mlp_post_norm(self.mlp(self.mlp_norm(x)))
        return torch.add(x, y, alpha=self.residual_scale)


class TransformerDecoder(nn.Module):
    """A decoder-only language model of the given shape, every projection made by `linear`.

    `activation_checkpointing` (default False) recomputes each layer in the backward pass instead of keeping its
    activations; a collection of numbers does so with these layers. `added_rows` counts the tokens by which it embeds
    more than its checkpoint.
    """

    def __init__(self, config: DecoderConfig, linear: LinearFactory) -> None:
        super().__init__()
        self.config = c = config
        self.activation_checkpointing: bool | Collection[int] = False
        self.tok_embeddings = TokenEmbedding(c.vocab_size, c.embed_dim)
        rope = partial(RotaryPositionalEmbeddings, c.rotary_dim or c.head_dim)
        self.rope = rope(c.rope_base, c.rope_scaling, c.max_seq_len)
        self.local_rope = rope(c.local_rope_base) if c.local_rope_base else self.rope
        self.layers = nn.ModuleList(
            TransformerSelfAttentionLayer(c, within(f"layers.{number}", linear), kind)
            for number, kind in enumerate(c.layers)
        )
        self.norm = RMSNorm(c.embed_dim, c.norm_eps, c.norm_offset)
        if c.tie_word_embeddings:
            self.output = TiedOutput(self.tok_embeddings, c.logit_softcap)
        else:
            self.output = linear("output", c.embed_dim, c.num_classes or c.vocab_size)
        self.added_rows = 0

    def forward(
        self,
        tokens: Tensor,
        *,
        input_pos: Tensor | None = None,
        mask: Tensor | PackedSequences | None = None,
        seq_lens: Sequence[int] | None = None,
        skip_output: bool = False,
    ) -> Tensor:
        """Return the logits `[b, s, v]` of `tokens [b, s] int64`, with `skip_output` the final states `[b, s, d]`.

        `input_pos [b or 1, s]` are the positions (default 0, 1, …); `mask` as in `attention`. `seq_lens` are the
        lengths of the sequences that make up the one row of `tokens`: each is computed as if it were alone. Those that
        go on where a KV cache ends are a `mask` of the kind `CachedSequences`. Raise ValueError for more positions than
        max_seq_len.
        """
        rotations, mask = self.rotations(tokens, input_pos, mask, seq_lens)
        h = self.transform(self.embed(tokens), rotations, [mask] * len(self.layers))
        return h if skip_output else self.logits(h)

    def embed(self, tokens: Tensor) -> Tensor:
        """Embed `tokens [b, s] int64` as the first layer takes them: `[b, s, d]`."""
        h = self.tok_embeddings(tokens)
        if self.config.embed_scale != 1:
            h = h * h.new_full((), self.config.embed_scale)  # rounded as the embeddings are
        return h

    def transform(
        self,
        h: Tensor,
        rotations: Mapping[LayerKind, Rotation | None],
        masks: Sequence[Tensor | PackedSequences | None],
    ) -> Tensor:
        """Map embedded tokens `h [b, s, d]` to final states, by the rotation of each kind of layer, the mask of each.

        With `activation_checkpointing`, layers are recomputed in the backward pass.
        """
        recomputed = self.activation_checkpointing if self.training else ()
        if isinstance(recomputed, bool):
            recomputed = range(len(self.layers)) if recomputed else ()
        for number, (layer, mask) in enumerate(zip(self.layers, masks, strict=True)):
            call = partial(checkpoint, layer, use_reentrant=False) if number in recomputed else layer
            h = call(h, rotations[layer.kind], mask)
        h = self.norm(h)
        return h if self.config.logit_scale == 1 else h * self.config.logit_scale

    def logits(self, hidden: Tensor) -> Tensor:
        """Project final states `[..., d]`, as `forward` returns them with `skip_output`, to logits `[..., v]`."""
        return self.output(hidden)

    def rotations(
        self,
        tokens: Tensor,
        input_pos: Tensor | None = None,
        mask: Tensor | PackedSequences | None = None,
        seq_lens: Sequence[int] | None = None,
    ) -> tuple[dict[LayerKind, Rotation | None], Tensor | PackedSequences | None]:
        """Return the rotation for each kind of layer and the mask; the arguments are those of `forward`."""
        s, dtype = tokens.shape[1], self.tok_embeddings.weight.dtype
        if seq_lens is not None:
            mask = PackedSequences(seq_lens, tokens.device)
        if isinstance(mask, PackedSequences):
            input_pos, lengths = mask.positions(), mask.lengths()
            self._check_length(mask.longest)
        else:
            if input_pos is None:
                input_pos = torch.arange(s, device=tokens.device)[None]
                self._check_length(s)
            lengths = torch.full((1, 1), s, device=tokens.device)
        full = local = self.rope(input_pos, dtype, lengths)
        if self.local_rope is not self.rope:
            local = self.local_rope(input_pos, dtype, lengths)
        return {"full": full, "sliding": local, "nope": None}, mask

    def _check_length(self, length: int) -> None:
        if length > self.config.max_seq_len:
            raise ValueError(f"{length} tokens exceed max_seq_len {self.config.max_seq_len}")

    def setup_caches(self, num_slots: int, capacity: int, reserved: int = 0) -> None:
        """Give every layer an empty KV cache: so many sequences of so many positions, in the embedding's dtype.

        `reserved` positions more stand before each sequence.
        """
        weight, c = self.tok_embeddings.weight, self.config
        for layer in self.layers:
            shape = num_slots, capacity, c.num_kv_heads, c.head_dim
            layer.attn.kv_cache = KVCache(*shape, weight.dtype, weight.device, reserved)

    def delete_caches(self) -> None:
        """Free the KV caches."""
        for layer in self.layers:
            layer.attn.kv_cache = None
