"""The architectures of llama.cpp: which models each computes, and how its files name and arrange their weights.

A row says what its code does beyond the usual. What a model needs and its architecture does not compute is an error, or
where that only concerns long texts, a shorter context.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from torchtune_lite.errors import ConfigError
from torchtune_lite.models.families import LAYER, rename
from torchtune_lite.modules import DecoderConfig
from torchtune_lite.modules.config import LayerKind

NAMES = {
    "tok_embeddings": "token_embd",
    "norm": "output_norm",
    "output": "output",
    "layers.{}.sa_norm": "blk.{}.attn_norm",
    "layers.{}.attn.q_proj": "blk.{}.attn_q",
    "layers.{}.attn.k_proj": "blk.{}.attn_k",
    "layers.{}.attn.v_proj": "blk.{}.attn_v",
    "layers.{}.attn.output_proj": "blk.{}.attn_output",
    "layers.{}.attn.q_norm": "blk.{}.attn_q_norm",
    "layers.{}.attn.k_norm": "blk.{}.attn_k_norm",
    "layers.{}.sa_post_norm": "blk.{}.post_attention_norm",
    "layers.{}.mlp_norm": "blk.{}.ffn_norm",
    "layers.{}.mlp.w1": "blk.{}.ffn_gate",
    "layers.{}.mlp.w2": "blk.{}.ffn_down",
    "layers.{}.mlp.w3": "blk.{}.ffn_up",
    "layers.{}.mlp_post_norm": "blk.{}.post_ffw_norm",
}
"""Our modules and those of a GGUF; `{}` is the number of the layer."""


SLIDING = ("sliding", "sliding", "sliding")


@dataclass(frozen=True)
class Architecture:
    """One `general.architecture`.

    `model_types` are those of the families that it computes; what is read back is of the first that fits. `names` are
    modules that are called otherwise than in `NAMES`, `fused` those of a file whose rows are those of several of ours,
    in order. With `permuted`, rows of q and k pair neighbours. `patterns` are those of the layers, which are the code's
    and not the file's, the one with windows last; without "sliding" in them no window is computed, and with
    `windowed_layers` only in models of so many. `local_rope_base` is that of sliding layers where a file names none.
    `ropes` are the kinds of scaling that are computed. `multipliers`: scales of embeddings, residuals, scores and
    logits are read; `softcaps`: those of scores and logits. `width_scaled` is the number of layers of the one size
    whose scores are scaled by the model's width over its heads. `ties`: whether the output may be the embedding.
    """

    name: str
    model_types: tuple[str, ...]
    names: Mapping[str, str] = field(default_factory=dict)
    fused: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    permuted: bool = False
    patterns: tuple[tuple[LayerKind, ...], ...] = (("full",),)
    windowed_layers: int | None = None
    local_rope_base: float | None = None
    ropes: tuple[str, ...] = ("linear", "yarn")
    partial_rotary: bool = False
    multipliers: bool = False
    softcaps: bool = False
    width_scaled: int | None = None
    ties: tuple[bool, ...] = (True, False)

    def layer_patterns(self, num_layers: int) -> tuple[tuple[LayerKind, ...], ...]:
        """Return the patterns of layers that are computed for a model of so many."""
        return self.patterns if self.windowed_layers in (None, num_layers) else self.patterns[:1]

    def has_windows(self, num_layers: int) -> bool:
        """Return whether sliding layers see their window, and not all that comes before."""
        return any("sliding" in pattern for pattern in self.layer_patterns(num_layers))

    def module(self, ours: str) -> str:
        """Return the name in a file of our module, or of the fused one that it is a part of."""
        fused = {part: name for name, parts in self.fused.items() for part in parts}
        found = rename({**NAMES, **self.names, **fused}, ours)
        assert found is not None, ours
        return found

    def parts(self, theirs: str) -> tuple[str, ...]:
        """Return our modules of which one in a file consists, row below row; () for one that is not known."""
        table = {name: (ours,) for ours, name in {**NAMES, **self.names}.items()} | dict(self.fused)
        number = LAYER.search(theirs)
        parts = table.get(LAYER.sub("{}", theirs, count=1), ())
        return tuple(part.format(number.group() if number else "") for part in parts)

    def attn_scale(self, config: DecoderConfig) -> float:
        """Return the scale of the scores that the code computes with."""
        width = config.embed_dim / config.num_heads if config.num_layers == self.width_scaled else config.head_dim
        return width**-0.5

    def context_length(self, config: DecoderConfig) -> int:
        """Return the positions up to which the code computes the model: no longer than a window that it lacks."""
        if "sliding" in config.layers and not self.has_windows(config.num_layers):
            return min(config.max_seq_len, config.window)
        return config.max_seq_len

    def check(self, config: DecoderConfig) -> None:
        """Raise ConfigError with what the code does not compute of a model, whatever the length of the text."""
        c, scaling, problems = config, config.rope_scaling, []
        layers, patterns = c.layers, self.layer_patterns(c.num_layers)
        if not self.has_windows(c.num_layers):
            layers = tuple("full" if kind == "sliding" else kind for kind in layers)
        if not any((pattern * c.num_layers)[: c.num_layers] == layers for pattern in patterns):
            problems.append(f"layers of the kinds {', '.join(c.layers)}")
        if scaling is not None and scaling.kind not in (*self.ropes, "dynamic"):
            problems.append(f"rope scaling of the kind {scaling.kind}")
        if scaling is not None and not scaling.truncate:
            problems.append("YaRN without truncate")
        if c.rotary_dim not in (None, c.head_dim) and not self.partial_rotary:
            problems.append(f"rotation of {c.rotary_dim} of {c.head_dim} dimensions")
        scale = None if self.multipliers else c.attn_scale
        if scale is not None and not math.isclose(scale, self.attn_scale(c), rel_tol=1e-6):
            problems.append(f"scores scaled by {scale:.6g} instead of {self.attn_scale(c):.6g}")
        if c.tie_word_embeddings not in self.ties:
            problems.append(f"tie_word_embeddings: {c.tie_word_embeddings}")
        if c.num_classes:
            problems.append("a classifier's output")
        if problems:
            raise ConfigError(
                f"llama.cpp has no {self.name} model with {' or with '.join(problems)}: no GGUF is written"
            )


QKV, GATE_UP = ("q_proj", "k_proj", "v_proj"), ("w1", "w3")
ARCHITECTURES = {
    each.name: each
    for each in (
        Architecture("llama", ("llama", "mistral", "ministral"), permuted=True, ropes=("linear", "yarn", "llama3")),
        Architecture("mistral3", ("ministral3",), permuted=True, ropes=("yarn",)),
        Architecture("qwen2", ("qwen2",)),
        Architecture("qwen3", ("qwen3",)),
        Architecture("gemma", ("gemma",), ropes=("linear",), ties=(True,)),
        Architecture(
            "gemma2",
            ("gemma2",),
            patterns=(("sliding", "full"),),
            ropes=("linear",),
            softcaps=True,
            width_scaled=46,
            ties=(True,),
        ),
        Architecture(
            "gemma3",
            ("gemma3_text",),
            patterns=((*["sliding"] * 5, "full"),),
            local_rope_base=10_000.0,
            ropes=("linear",),
            width_scaled=62,
        ),
        Architecture(
            "phi3",
            ("phi3",),
            fused={
                "blk.{}.attn_qkv": tuple(f"layers.{{}}.attn.{part}" for part in QKV),
                "blk.{}.ffn_up": tuple(f"layers.{{}}.mlp.{part}" for part in GATE_UP),
            },
            ropes=("longrope",),
            partial_rotary=True,
        ),
        Architecture(
            "olmo2", ("olmo2", "olmo3"), patterns=(("full",), (*SLIDING, "full")), ropes=("yarn",), ties=(False,)
        ),
        Architecture("granite", ("granite", "granitemoehybrid"), permuted=True, multipliers=True),
        Architecture("smollm3", ("smollm3",), permuted=True, patterns=(("full", "full", "full", "nope"),)),
        Architecture("seed_oss", ("seed_oss",), names={"layers.{}.mlp_norm": "blk.{}.post_attention_norm"}),
        Architecture(
            "exaone4",
            ("exaone4",),
            patterns=(("full",), (*SLIDING, "nope")),
            windowed_layers=64,
            ropes=("llama3",),
        ),
    )
}
"""By the name in a file."""


def architecture_of(model_type: str) -> Architecture:
    """Return the architecture that computes the models of a family; ConfigError where there is none."""
    for each in ARCHITECTURES.values():
        if model_type in each.model_types:
            return each
    raise ConfigError(f"there is no GGUF for {model_type} models here; export them with --to hf")
