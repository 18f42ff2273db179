"""Builds any family's decoder from its sizes, plain or with adapters."""

import inspect
from collections.abc import Callable, Sequence

from torch import nn

from torchtune_lite.modules import DecoderConfig, FeedForward, TransformerDecoder
from torchtune_lite.peft import (
    DoRALinear,
    FrozenNF4Linear,
    LoRAFeedForward,
    LoRALinear,
    fits_nf4,
    freeze_base,
    shared_input,
    upcast_state_dict,
)
from torchtune_lite.utils import get_logger

ATTN_MODULES = ("q_proj", "k_proj", "v_proj", "output_proj")
MLP_MODULES = ("w1", "w2", "w3")


def plain_linear(name: str, in_dim: int, out_dim: int) -> nn.Module:
    """Makes an ordinary projection."""
    return nn.Linear(in_dim, out_dim, bias=False)


def decoder(config: DecoderConfig) -> TransformerDecoder:
    """Builds a decoder in which every parameter is trained."""
    return TransformerDecoder(config, plain_linear)


def lora_decoder(
    config: DecoderConfig,
    lora_attn_modules: Sequence[str],
    apply_lora_to_mlp: bool = False,
    apply_lora_to_output: bool = False,
    lora_rank: int = 8,
    lora_alpha: float = 16,
    lora_dropout: float = 0.0,
    use_dora: bool = False,
    quantize_base: bool = False,
    quantize_frozen: bool = False,
    quantize_output: bool = False,
    quantize_unsupported: str = "error",
    fused_lora: bool = True,
    mlp_tile: int | None = None,
) -> TransformerDecoder:
    """Builds a frozen decoder with trained adapters on the projections named.

    `lora_attn_modules` are any of q_proj, k_proj, v_proj, output_proj; `apply_lora_to_mlp` adds w1, w2, w3 and
    `apply_lora_to_output` the output projection. `use_dora` trains magnitudes too.

    With `quantize_base`, exactly the adapted projections are kept in NF4, the output projection excepted;
    `quantize_frozen` adds those of the layers that carry no adapter, `quantize_output` the output projection. One
    whose `in_dim · out_dim` is no multiple of 16,384 is an error, or with `quantize_unsupported: skip` stays as it is,
    with one warning that lists all of them.

    `fused_lora` False computes projection by projection, which is slower and keeps more for the backward pass; where
    there is dropout or DoRA that is done anyway. `mlp_tile` computes the feed-forward so many tokens at a time and
    keeps only its input, for long sequences: with `enable_activation_checkpointing` at no cost; it needs `fused_lora`
    and adapters on the MLP, without dropout and DoRA.
    """
    unknown = sorted(set(lora_attn_modules) - set(ATTN_MODULES))
    if unknown:
        raise ValueError(f"lora_attn_modules has {', '.join(unknown)}; allowed are {', '.join(ATTN_MODULES)}")
    if quantize_unsupported not in ("error", "skip"):
        raise ValueError(f"quantize_unsupported is {quantize_unsupported!r}; allowed are error, skip")
    if lora_rank < 1:
        raise ValueError(f"lora_rank {lora_rank} must be at least 1")
    if not quantize_base and (quantize_frozen or quantize_output):
        raise ValueError("quantize_frozen and quantize_output extend quantize_base, which is off")
    mlp = MLP_MODULES if apply_lora_to_mlp else ()
    adapted = {*lora_attn_modules, *mlp, *(("output",) if apply_lora_to_output else ())}
    if not adapted:
        raise ValueError("no projection carries an adapter; name some in lora_attn_modules or set apply_lora_to_mlp")
    adapter = DoRALinear if use_dora else LoRALinear
    misfits: dict[str, str] = {}

    def linear(name: str, in_dim: int, out_dim: int) -> nn.Module:
        quantize = quantize_output if name == "output" else quantize_base and (quantize_frozen or name in adapted)
        if quantize and not fits_nf4(in_dim, out_dim):
            misfits[name] = f"{name} ({in_dim} -> {out_dim})"
            quantize = False
        if name in adapted:
            return adapter(in_dim, out_dim, lora_rank, lora_alpha, lora_dropout, quantize_base=quantize)
        return FrozenNF4Linear(in_dim, out_dim) if quantize else plain_linear(name, in_dim, out_dim)

    model = TransformerDecoder(config, linear)
    if misfits:
        problem = f"NF4 needs in_dim * out_dim divisible by 16384, which {', '.join(misfits.values())} are not"
        if quantize_unsupported == "error":
            instead = "set quantize_unsupported: skip to leave them unquantised, or quantize_base: False"
            raise ValueError(f"{problem}; {instead}")
        get_logger().warning("%s; they stay unquantised", problem)
    freeze_base(model)
    for layer in model.layers:
        if fused_lora:
            layer.attn.project = shared_input
        if fused_lora and type(layer.mlp) is FeedForward and LoRAFeedForward.fits(layer.mlp):
            layer.mlp = LoRAFeedForward(layer.mlp, mlp_tile)
        elif mlp_tile is not None:
            raise ValueError("mlp_tile needs fused_lora and apply_lora_to_mlp, without lora_dropout and use_dora")
    if quantize_base:
        model.register_state_dict_post_hook(upcast_state_dict)
    return model


def from_sizes(build: Callable[..., TransformerDecoder]) -> Callable[..., TransformerDecoder]:
    """Turns `build(config, ...)` into a builder that takes the fields of `DecoderConfig` as keywords of its own.

    A size left out is None, for a recipe to fill in from the checkpoint; ValueError names those still missing.
    """
    sizes = inspect.signature(DecoderConfig).parameters

    def builder(**kwargs: object) -> TransformerDecoder:
        missing = [name for name, size in sizes.items() if size.default is size.empty and kwargs.get(name) is None]
        if missing:
            raise ValueError(f"sizes are missing: {', '.join(missing)}")
        config = DecoderConfig(**{name: kwargs.pop(name) for name in sizes if name in kwargs})
        return build(config, **kwargs)

    both = [
        *(size.replace(default=None) if size.default is size.empty else size for size in sizes.values()),
        *list(inspect.signature(build).parameters.values())[1:],
    ]
    keywords = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in both]
    builder.__signature__ = inspect.Signature(keywords, return_annotation=TransformerDecoder)
    builder.__doc__ = build.__doc__
    return builder
