"""Build any family's decoder from its sizes, plain or with adapters."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from torch import nn

from torchtune_lite import kernels  # noqa: F401 (puts the fast paths beside the plain functions)
from torchtune_lite.modules import DecoderConfig, TransformerDecoder
from torchtune_lite.peft import (
    DoRALinear,
    FrozenNF4Linear,
    LoRALinear,
    Method,
    VirtualTokensMethod,
    fits_nf4,
    freeze_base,
    upcast_state_dict,
)
from torchtune_lite.peft.projections.initialisation import starting_factors
from torchtune_lite.peft.targets import choose
from torchtune_lite.peft.tokens.trained_tokens import train_embeddings as train_whole_embeddings
from torchtune_lite.utils import get_logger

Builder = Callable[..., TransformerDecoder]

FIELDS = inspect.signature(DecoderConfig).parameters
ATTN_MODULES = ("q_proj", "k_proj", "v_proj", "output_proj")
MLP_MODULES = ("w1", "w2", "w3")
TRAIN_EMBEDDINGS = ("new", "all", None)
OF_LORA = ("lora_rank", "lora_alpha", "lora_dropout", "use_dora", "use_rslora", "init_lora_weights")
OF_LORA += ("rank_pattern", "alpha_pattern")
"""Arguments that another method of adaptation has no use for."""
TARGETS = ("lora_attn_modules", "apply_lora_to_mlp", "apply_lora_to_output", "layers_to_transform")
"""Arguments that choose projections, besides `target_modules`."""


def plain_linear(name: str, in_dim: int, out_dim: int, bias: bool = False) -> nn.Module:
    """Make an ordinary projection."""
    return nn.Linear(in_dim, out_dim, bias=bias)


def decoder(config: DecoderConfig) -> TransformerDecoder:
    """Build a decoder in which every parameter is trained."""
    return TransformerDecoder(config, plain_linear)


def lora_decoder(
    config: DecoderConfig,
    lora_attn_modules: Sequence[str] = (),
    apply_lora_to_mlp: bool = False,
    apply_lora_to_output: bool = False,
    lora_rank: int = 8,
    lora_alpha: float = 16,
    lora_dropout: float = 0.0,
    use_dora: bool = False,
    use_rslora: bool = False,
    init_lora_weights: str | None = None,
    target_modules: str | Sequence[str] | None = None,
    layers_to_transform: int | Sequence[int] | None = None,
    rank_pattern: Mapping[str, int] | None = None,
    alpha_pattern: Mapping[str, float] | None = None,
    adapter: Method | None = None,
    train_embeddings: str | None = None,
    quantize_base: bool = False,
    quantize_frozen: bool = False,
    quantize_output: bool = False,
    quantize_unsupported: str = "error",
    fused_lora: bool = True,
    mlp_tile: int | None = None,
) -> TransformerDecoder:
    """Build a frozen decoder with trained adapters on the projections named.

    `lora_attn_modules` are any of q_proj, k_proj, v_proj, output_proj; `apply_lora_to_mlp` adds w1, w2, w3 and
    `apply_lora_to_output` the output projection. `target_modules`, where it is given, takes the place of these three:
    it, `layers_to_transform`, `rank_pattern` and `alpha_pattern` are PEFT's, as `peft.targets.choose` says. `use_dora`
    trains magnitudes too, `use_rslora` scales an update by alpha / √rank instead of alpha / rank. `init_lora_weights`
    starts A and B from the base's weights instead of from zero: pissa, pissa_niter_N, olora, or loftq over NF4
    (`peft.projections.initialisation`). `adapter` puts another method in the place of LoRA: `peft.IA3`, `peft.VeRA`.

    `train_embeddings: new` trains the rows of the tokens that the tokenizer adds, in the embedding and in an output of
    its own, as is done anyway where `tokenizer.add_tokens` names some; no projection need then carry an adapter. `all`
    trains both matrices whole.

    With `quantize_base`, exactly the adapted projections are kept in NF4, the output projection excepted;
    `quantize_frozen` adds those of the layers that carry no adapter, `quantize_output` the output projection. One
    whose `in_dim · out_dim` is not a multiple of 16,384 is an error; `quantize_unsupported: skip` leaves it as it is,
    with one warning that lists all of them.

    `fused_lora` False computes projection by projection, which is slower and keeps more for the backward pass; where
    there is dropout or DoRA that is done anyway. `mlp_tile` computes the feed-forward so many tokens at a time and
    keeps only its input, for long sequences: with `enable_activation_checkpointing` at no cost.
    """
    unknown = sorted(set(lora_attn_modules) - set(ATTN_MODULES))
    if unknown:
        raise ValueError(f"lora_attn_modules has {', '.join(unknown)}; allowed are {', '.join(ATTN_MODULES)}")
    if quantize_unsupported not in ("error", "skip"):
        raise ValueError(f"quantize_unsupported is {quantize_unsupported!r}; allowed are error, skip")
    if not quantize_base and (quantize_frozen or quantize_output):
        raise ValueError("quantize_frozen and quantize_output extend quantize_base, which is off")
    if target_modules is None:
        mlp = MLP_MODULES if apply_lora_to_mlp else ()
        target_modules = [*lora_attn_modules, *mlp, *(("output",) if apply_lora_to_output else ())]
    if train_embeddings not in TRAIN_EMBEDDINGS:
        raise ValueError(f"train_embeddings is {train_embeddings!r}; allowed are new, all, or null")
    is_prompt = isinstance(adapter, VirtualTokensMethod)
    if is_prompt and (target_modules or train_embeddings):
        raise ValueError(
            f"{type(adapter).__name__} puts virtual tokens before each text and nothing on a projection; leave "
            "lora_attn_modules, apply_lora_to_mlp, apply_lora_to_output, target_modules and train_embeddings out"
        )
    if not target_modules and train_embeddings != "new" and not is_prompt:
        raise ValueError(
            "no projection carries an adapter; name some in lora_attn_modules or target_modules, or set "
            "apply_lora_to_mlp"
        )
    adapted = choose(
        projections(config),
        target_modules,
        lora_rank,
        lora_alpha,
        layers_to_transform=layers_to_transform,
        rank_pattern=rank_pattern,
        alpha_pattern=alpha_pattern,
    )
    if train_embeddings and config.num_classes:
        raise ValueError("train_embeddings is not served for a classifier; leave it out")
    if config.tie_word_embeddings and ("output" in adapted or quantize_output):
        argument = "quantize_output" if quantize_output else "apply_lora_to_output"
        raise ValueError(
            f"{argument} is for a separate output projection; this model's is its embedding (tie_word_embeddings), "
            "which stays as it is; leave the argument out"
        )
    if init_lora_weights is not None:
        starting_factors(init_lora_weights)
    if init_lora_weights is not None and use_dora:
        raise ValueError("init_lora_weights is for LoRA; with use_dora it is not served, leave one of them out")
    if init_lora_weights == "loftq" and not quantize_base:
        raise ValueError("init_lora_weights: loftq makes up for what NF4 loses; set quantize_base: True")
    if adapter is not None:
        check_method(adapter, {name: value for name, value in locals().items() if name in OF_LORA})
    misfits: dict[str, str] = {}

    def linear(path: str, in_dim: int, out_dim: int, bias: bool = False) -> nn.Module:
        name = path.rpartition(".")[2]
        in_layers = quantize_base and (quantize_frozen or is_prompt or path in adapted)
        quantize = quantize_output if name == "output" else in_layers
        if quantize and not fits_nf4(in_dim, out_dim):
            misfits[name] = f"{name} ({in_dim} -> {out_dim})"
            quantize = False
        base = FrozenNF4Linear(in_dim, out_dim, bias) if quantize else plain_linear(path, in_dim, out_dim, bias)
        if path not in adapted:
            return base
        if adapter is not None:
            projection = adapter.put(path, base)
        else:
            kind = DoRALinear if use_dora else LoRALinear
            init = None if init_lora_weights == "loftq" and not quantize else init_lora_weights  # nothing is lost there
            options = {"use_rslora": use_rslora, "init_lora_weights": init}
            projection = kind.from_linear(base, *adapted[path], lora_dropout, **options)
        projection.fused = fused_lora
        return projection

    model = TransformerDecoder(config, linear)
    if misfits:
        problem = f"NF4 needs in_dim * out_dim divisible by 16384, which {', '.join(misfits.values())} are not"
        if quantize_unsupported == "error":
            instead = "set quantize_unsupported: skip to leave them unquantised, or quantize_base: False"
            raise ValueError(f"{problem}; {instead}")
        get_logger().warning("%s; they stay unquantised", problem)
    if is_prompt:
        adapter.put_on(model)
    freeze_base(model)
    model.train_embeddings = train_embeddings
    if train_embeddings == "all":
        train_whole_embeddings(model)
    for layer in model.layers:
        layer.mlp.tile = mlp_tile
    if quantize_base:
        model.register_state_dict_post_hook(upcast_state_dict)
    return model


def check_method(adapter: Any, of_lora: Mapping[str, Any]) -> None:
    """Raise ValueError for an `adapter` that is none, and for arguments of LoRA beside it."""
    if not isinstance(adapter, Method | VirtualTokensMethod):
        raise ValueError(f"adapter is {adapter!r}; it needs a _component_, such as torchtune_lite.peft.IA3")
    arguments = inspect.signature(lora_decoder).parameters
    if given := [name for name, value in of_lora.items() if value != arguments[name].default]:
        raise ValueError(
            f"{', '.join(given)} {'is' if len(given) == 1 else 'are'} for LoRA, and adapter puts "
            f"{type(adapter).__name__} in its place; leave them out, and see its own arguments"
        )


def arguments_of(adapter: Method, targets: Sequence[str]) -> dict[str, Any]:
    """Return the arguments of a builder that put an adapter on these projections, whatever others it is given."""
    parameters = inspect.signature(lora_decoder).parameters
    defaults = {name: parameters[name].default for name in (*OF_LORA, *TARGETS, "train_embeddings")}
    return defaults | {"adapter": adapter, "target_modules": targets}


def projections(config: DecoderConfig) -> list[str]:
    """Return the names of a decoder's projections."""
    within = [*(f"attn.{name}" for name in ATTN_MODULES), *(f"mlp.{name}" for name in MLP_MODULES)]
    return [*(f"layers.{number}.{name}" for number in range(config.num_layers) for name in within), "output"]


def any_decoder(
    config: DecoderConfig,
    lora_attn_modules: Sequence[str] = (),
    apply_lora_to_mlp: bool = False,
    apply_lora_to_output: bool = False,
    **lora: Any,
) -> TransformerDecoder:
    """Build a decoder: with adapters on the projections named, or trained whole where none is.

    The arguments after `config` are those of `lora_decoder`.
    """
    named = lora.get("target_modules") or lora.get("adapter") or lora.get("train_embeddings") == "new"
    if lora_attn_modules or apply_lora_to_mlp or apply_lora_to_output or named:
        return lora_decoder(config, lora_attn_modules, apply_lora_to_mlp, apply_lora_to_output, **lora)
    if lora:
        raise ValueError(
            f"no projection carries an adapter, which {', '.join(lora)} would be for; name some in "
            "lora_attn_modules, or set apply_lora_to_mlp"
        )
    return decoder(config)


any_decoder.__signature__ = inspect.signature(lora_decoder)


def size(
    num_layers: int, num_heads: int, num_kv_heads: int, embed_dim: int, intermediate_dim: int, **fields: Any
) -> DecoderConfig:
    """Make a `DecoderConfig` of the five numbers in which the sizes of a family differ, in this order, and the rest."""
    return DecoderConfig(
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        embed_dim=embed_dim,
        intermediate_dim=intermediate_dim,
        **fields,
    )


def size_builders(sizes: Mapping[str, DecoderConfig]) -> dict[str, Builder]:
    """Make three builders of each size: NAME, lora_NAME with adapters, qlora_NAME with adapters on a base in NF4."""
    return {
        f"{prefix}{name}": partial(build, config)
        for name, config in sizes.items()
        for prefix, build in (
            ("", decoder),
            ("lora_", lora_decoder),
            ("qlora_", partial(lora_decoder, quantize_base=True)),
        )
    }


def component_builders(name: str, **known: Any) -> dict[str, Builder]:
    """Make NAME, lora_NAME and qlora_NAME, which take the fields of `DecoderConfig` as arguments.

    Those left out come from the checkpoint, where a recipe has one, or are the `known` ones.
    """
    return {
        name: from_sizes(decoder, known),
        f"lora_{name}": from_sizes(lora_decoder, known),
        f"qlora_{name}": from_sizes(partial(lora_decoder, quantize_base=True), known),
    }


def from_sizes(build: Builder, known: Mapping[str, Any] | None = None) -> Builder:
    """Turn `build(config, ...)` into a builder that takes the fields of `DecoderConfig` as keywords of its own.

    `known` are the defaults of some. A size without one is None, for a recipe to fill in from the checkpoint;
    ValueError names those still missing.
    """
    needed = [name for name, field in FIELDS.items() if field.default is field.empty]
    defaults = {name: None if name in needed else field.default for name, field in FIELDS.items()} | dict(known or {})

    def builder(**kwargs: Any) -> TransformerDecoder:
        fields = {name: kwargs.pop(name, default) for name, default in defaults.items()}
        if missing := [name for name in needed if fields[name] is None]:
            raise ValueError(f"sizes are missing: {', '.join(missing)}")
        return build(DecoderConfig(**fields), **kwargs)

    parameters = [FIELDS[name].replace(default=default) for name, default in defaults.items()]
    parameters += list(inspect.signature(build).parameters.values())[1:]
    keywords = [p.replace(kind=p.KEYWORD_ONLY) for p in parameters]
    builder.__signature__ = inspect.Signature(keywords, return_annotation=TransformerDecoder)
    builder.__doc__ = build.__doc__
    return builder


from_checkpoint = from_sizes(any_decoder)
"""Builds the model of whatever checkpoint a recipe reads, base, LoRA or QLoRA."""
