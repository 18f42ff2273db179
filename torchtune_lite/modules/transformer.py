"""The Llama decoder, whole: sizes, rotary positions, attention, feed-forward, layer, model.

Llama 2 (arXiv 2307.09288): pre-norm with RMSNorm (arXiv 1910.07467), rotary positions (RoPE, arXiv 2104.09864), SwiGLU
(arXiv 2002.05202), grouped-query attention (arXiv 2305.13245).

b batch, s sequence, d embed_dim, h num_heads, k num_kv_heads, e head_dim, f intermediate_dim, v vocab_size.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from torchtune_lite.modules.attention import Documents, attention
from torchtune_lite.modules.kv_cache import KVCache
from torchtune_lite.modules.norm import RMSNorm

LinearFactory = Callable[[str, int, int], nn.Module]
"""`linear(name, in_dim, out_dim)` makes the projection of that name: the one seam for adapters and quantisation."""
Projections = Callable[..., Sequence[Tensor]]
"""`project(x, *projections)` gives what each projection makes of x: the seam for computing them together."""


def one_by_one(x: Tensor, *projections: nn.Module) -> list[Tensor]:
    """Applies each of `projections` to x."""
    return [projection(x) for projection in projections]


@dataclass(frozen=True)
class DecoderConfig:
    """The sizes of a decoder.

    `intermediate_dim` None is Llama's rule: 8/3 embed_dim, rounded up to a multiple of 256.
    """

    vocab_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    embed_dim: int
    max_seq_len: int
    intermediate_dim: int | None = None
    attn_dropout: float = 0.0
    norm_eps: float = 1e-5
    rope_base: float = 10_000.0

    def __post_init__(self) -> None:
        if self.intermediate_dim is None:
            object.__setattr__(self, "intermediate_dim", -(int(8 * self.embed_dim / 3) // -256) * 256)
        if self.embed_dim % (2 * self.num_heads):
            raise ValueError(f"embed_dim {self.embed_dim} is not an even multiple of num_heads {self.num_heads}")
        if self.num_heads % self.num_kv_heads:
            raise ValueError(f"num_heads {self.num_heads} is not a multiple of num_kv_heads {self.num_kv_heads}")

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.embed_dim // self.num_heads


class RotaryPositionalEmbeddings(nn.Module):
    """Turns pairs (i, i + e/2) of each head by position · base^(-2i/e): the half-split layout of Hugging Face.

    The angles are computed in float32 once per forward pass and shared by all layers; there is no table to size or to
    load.
    """

    def __init__(self, head_dim: int, base: float) -> None:
        super().__init__()
        self.head_dim, self.base = head_dim, base

    def forward(self, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Gives cosine `[b or 1, 1, s, e]`, for both halves, and sine `[.., e/2]` of `positions [b or 1, s] int64`."""
        exponents = torch.arange(0, self.head_dim, 2, device=positions.device, dtype=torch.float32) / self.head_dim
        angles = positions[:, None, :, None].float() * self.base**-exponents
        return angles.cos().to(dtype).repeat(1, 1, 1, 2), angles.sin().to(dtype)


def rotate(x: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
    """Applies the rotation `rope` to `x [b, h, s, e]`, in whose dtype it stays (under autocast not that of `rope`)."""
    return _Rotate.apply(x, *rope)


class _Rotate(torch.autograd.Function):
    """The rotation, whose gradient is turned back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _turned(x, cos, sin, 1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        cos, sin = ctx.saved_tensors
        return _turned(grad, cos, sin, -1), None, None


def _turned(x: Tensor, cos: Tensor, sin: Tensor, sign: int) -> Tensor:
    y = x * cos
    (x1, x2), (y1, y2) = x.chunk(2, dim=-1), y.chunk(2, dim=-1)
    y1.addcmul_(x2, sin, value=-sign)
    y2.addcmul_(x1, sin, value=sign)
    return y.to(x.dtype)


class TokenEmbedding(nn.Embedding):
    """torch's `nn.Embedding`, which on the meta device would load torch's compiler to fill what has no memory."""

    def reset_parameters(self) -> None:
        """Draws each weight from N(0, 1)."""
        if not self.weight.is_meta:
            super().reset_parameters()


class MultiHeadAttention(nn.Module):
    """Causal self-attention whose heads share keys and values in groups."""

    def __init__(self, config: DecoderConfig, linear: LinearFactory) -> None:
        super().__init__()
        d, kv_dim = config.embed_dim, config.num_kv_heads * config.head_dim
        self.head_dim, self.attn_dropout = config.head_dim, config.attn_dropout
        self.q_proj = linear("q_proj", d, d)
        self.k_proj = linear("k_proj", d, kv_dim)
        self.v_proj = linear("v_proj", d, kv_dim)
        self.output_proj = linear("output_proj", d, d)
        self.project: Projections = one_by_one
        self.kv_cache: KVCache | None = None

    def forward(self, x: Tensor, rope: tuple[Tensor, Tensor], mask: Tensor | Documents | None = None) -> Tensor:
        """Mixes `x [b, s, d]` over the sequence; `mask` as in `attention`."""
        q, k, v = map(self._heads, self.project(x, self.q_proj, self.k_proj, self.v_proj))
        q, k = rotate(q, rope), rotate(k, rope)
        if self.kv_cache is not None:
            k, v = self.kv_cache.update(k, v)
        y = attention(q, k, v, mask, self.attn_dropout if self.training else 0.0)
        [y] = self.project(y.transpose(1, 2).flatten(2), self.output_proj)  # [b, s, d]
        return y

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)  # [b, h or k, s, e]


class FeedForward(nn.Module):
    """SwiGLU: `w2(silu(w1 x) · w3 x)`."""

    def __init__(self, config: DecoderConfig, linear: LinearFactory) -> None:
        super().__init__()
        d, f = config.embed_dim, config.intermediate_dim
        self.w1 = linear("w1", d, f)
        self.w2 = linear("w2", f, d)
        self.w3 = linear("w3", d, f)

    def forward(self, x: Tensor) -> Tensor:
        """Maps `x [b, s, d]` to `[b, s, d]`."""
        return self.w2(F.silu(self.w1(x)) * self.w3(x))


class TransformerSelfAttentionLayer(nn.Module):
    """One layer: attention, then feed-forward, each on normed input and added to the residual stream."""

    def __init__(self, config: DecoderConfig, linear: LinearFactory) -> None:
        super().__init__()
        self.sa_norm = RMSNorm(config.embed_dim, config.norm_eps)
        self.attn = MultiHeadAttention(config, linear)
        self.mlp_norm = RMSNorm(config.embed_dim, config.norm_eps)
        self.mlp = FeedForward(config, linear)

    def forward(self, x: Tensor, rope: tuple[Tensor, Tensor], mask: Tensor | Documents | None = None) -> Tensor:
        """Maps `x [b, s, d]` to `[b, s, d]`."""
        h = x + self.attn(self.sa_norm(x), rope, mask)
        return h + self.mlp(self.mlp_norm(h))


class TransformerDecoder(nn.Module):
    """A decoder-only language model of the given sizes, every projection made by `linear`.

    `activation_checkpointing` (default False) recomputes each layer in the backward pass instead of keeping its
    activations; a collection of numbers does so with these layers.
    """

    def __init__(self, config: DecoderConfig, linear: LinearFactory) -> None:
        super().__init__()
        self.config = config
        self.activation_checkpointing: bool | Collection[int] = False
        self.tok_embeddings = TokenEmbedding(config.vocab_size, config.embed_dim)
        self.rope = RotaryPositionalEmbeddings(config.head_dim, config.rope_base)
        self.layers = nn.ModuleList(TransformerSelfAttentionLayer(config, linear) for _ in range(config.num_layers))
        self.norm = RMSNorm(config.embed_dim, config.norm_eps)
        self.output = linear("output", config.embed_dim, config.vocab_size)

    def forward(
        self,
        tokens: Tensor,
        *,
        input_pos: Tensor | None = None,
        mask: Tensor | Documents | None = None,
        seq_lens: Sequence[int] | None = None,
        skip_output: bool = False,
    ) -> Tensor:
        """Gives the logits `[b, s, v]` of `tokens [b, s] int64`, with `skip_output` the normed states `[b, s, d]`.

        `input_pos [b or 1, s]` are the positions (default 0, 1, …, after what a KV cache holds); `mask` as in
        `attention`. `seq_lens` are the lengths of documents that make up the one row of `tokens`: each is computed as
        if it were alone. Raises ValueError for more positions than max_seq_len.
        """
        if seq_lens is not None:
            if max(seq_lens) > self.config.max_seq_len:
                raise ValueError(f"{max(seq_lens)} tokens exceed max_seq_len {self.config.max_seq_len}")
            mask = Documents(seq_lens, tokens.device)
            input_pos = mask.positions()
        elif input_pos is None:
            cache = self.layers[0].attn.kv_cache
            start = cache.length if cache is not None else 0
            if start + tokens.shape[1] > self.config.max_seq_len:
                raise ValueError(f"{start + tokens.shape[1]} tokens exceed max_seq_len {self.config.max_seq_len}")
            input_pos = torch.arange(start, start + tokens.shape[1], device=tokens.device)[None]
        h = self.tok_embeddings(tokens)
        rope = self.rope(input_pos, h.dtype)
        recomputed = self.activation_checkpointing if self.training else ()
        if isinstance(recomputed, bool):
            recomputed = range(len(self.layers)) if recomputed else ()
        for number, layer in enumerate(self.layers):
            h = checkpoint(layer, h, rope, mask, use_reentrant=False) if number in recomputed else layer(h, rope, mask)
        h = self.norm(h)
        return h if skip_output else self.output(h)

    def setup_caches(self, batch_size: int, max_seq_len: int) -> None:
        """Gives every layer an empty KV cache for `max_seq_len` positions, in the dtype and device of the embedding."""
        weight, c = self.tok_embeddings.weight, self.config
        for layer in self.layers:
            layer.attn.kv_cache = KVCache(
                batch_size, max_seq_len, c.num_kv_heads, c.head_dim, weight.dtype, weight.device
            )

    def delete_caches(self) -> None:
        """Frees the KV caches; the model then sees each sequence whole again."""
        for layer in self.layers:
            layer.attn.kv_cache = None
