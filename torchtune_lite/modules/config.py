"""The shape of a decoder, in fields that every family of models shares."""

from dataclasses import dataclass, fields
from typing import Any, Literal

LayerKind = Literal["full", "sliding", "nope"]
"""Kinds of attention: all earlier keys (full), the last `window` keys (sliding), or all keys without RoPE (nope)."""

ROPE_KINDS = ("linear", "dynamic", "llama3", "yarn", "longrope")
ACTIVATIONS = ("silu", "gelu_tanh")


@dataclass(frozen=True)
class RopeScaling:
    """The change of rotary frequencies for texts longer than those of the model's first training.

    `original_len` is the number of positions of that training. `amplitude` multiplies cosine and sine (yarn, longrope).
    """

    kind: str
    factor: float = 1.0
    original_len: int = 0
    low_freq_factor: float = 1.0  # llama3
    high_freq_factor: float = 4.0  # llama3
    beta_fast: float = 32.0  # yarn
    beta_slow: float = 1.0  # yarn
    truncate: bool = True  # yarn: round the bounds of the ramp to whole dimensions
    amplitude: float = 1.0
    query_beta: float = 0.0  # queries are scaled by 1 + query_beta · ln(1 + ⌊position / original_len⌋) (Ministral 3)
    short_factors: tuple[float, ...] = ()  # longrope, for texts up to original_len
    long_factors: tuple[float, ...] = ()  # longrope, for longer ones

    def __post_init__(self) -> None:
        if self.kind not in ROPE_KINDS:
            raise ValueError(f"rope_scaling.kind is {self.kind!r}; allowed are {', '.join(ROPE_KINDS)}")
        for name in ("short_factors", "long_factors"):
            object.__setattr__(self, name, tuple(getattr(self, name)))

    @property
    def depends_on_length(self) -> bool:
        """True if the frequencies of a text depend on its length."""
        return self.kind in ("dynamic", "longrope")


@dataclass(frozen=True)
class DecoderConfig:
    """The sizes and options of a decoder; an option left at its default is Llama 2's.

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
    head_dim: int | None = None  # None: embed_dim / num_heads
    tie_word_embeddings: bool = False  # the output projection is the embedding
    num_classes: int | None = None  # a classifier: so many outputs a token instead of the vocabulary
    rope_scaling: RopeScaling | None = None
    rotary_dim: int | None = None  # the first so many dimensions of a head are rotated; None: all
    biased: tuple[str, ...] = ()  # the projections of attention that have a bias
    qk_norm: Literal["head", "width"] | None = None  # queries and keys are normed per head, or before they are split
    layer_kinds: tuple[LayerKind, ...] = ("full",)  # repeated over the layers
    window: int | None = None  # keys that a sliding layer sees, the query's own included
    local_rope_base: float | None = None  # of sliding layers, unscaled; None: rotated as the others
    activation: Literal["silu", "gelu_tanh"] = "silu"
    norm_offset: float = 0.0  # 1.0: norms multiply by 1 + weight
    pre_norm: bool = True  # attention and feed-forward norm their input
    post_norm: bool = False  # … and their output
    attn_scale: float | None = None  # of the scores; None: head_dim ** -0.5
    attn_softcap: float | None = None  # scores become cap · tanh(score / cap)
    logit_softcap: float | None = None
    embed_scale: float = 1.0  # of the embeddings, rounded to their dtype
    residual_scale: float = 1.0  # of what attention and feed-forward add
    logit_scale: float = 1.0

    def __post_init__(self) -> None:
        set_field = object.__setattr__
        if self.intermediate_dim is None:
            set_field(self, "intermediate_dim", -(int(8 * self.embed_dim / 3) // -256) * 256)
        if self.head_dim is None:
            if self.embed_dim % self.num_heads:
                raise ValueError(f"embed_dim {self.embed_dim} is not a multiple of num_heads {self.num_heads}")
            set_field(self, "head_dim", self.embed_dim // self.num_heads)
        if isinstance(self.rope_scaling, dict):  # from a YAML
            set_field(self, "rope_scaling", RopeScaling(**self.rope_scaling))
        for name in ("biased", "layer_kinds"):
            set_field(self, name, tuple(getattr(self, name)))
        for problem in self._problems():
            raise ValueError(problem)

    def _problems(self) -> list[str]:
        problems = [
            f"{name} is {getattr(self, name)!r}; allowed are {', '.join(map(str, allowed))}"
            for name, allowed in (
                ("activation", ACTIVATIONS),
                ("qk_norm", ("head", "width", None)),
            )
            if getattr(self, name) not in allowed
        ]
        if unknown := sorted(set(self.layer_kinds) - {"full", "sliding", "nope"}):
            problems.append(f"layer_kinds has {', '.join(unknown)}; allowed are full, sliding, nope")
        if self.num_heads % self.num_kv_heads:
            problems.append(f"num_heads {self.num_heads} is not a multiple of num_kv_heads {self.num_kv_heads}")
        for name in ("head_dim", "rotary_dim"):
            if (getattr(self, name) or 0) % 2:
                problems.append(f"{name} {getattr(self, name)} is odd, so its halves cannot be rotated")
        if "sliding" in self.layer_kinds and self.window is None:
            problems.append("layer_kinds has sliding layers; set window, the keys that they see")
        if self.num_classes and self.tie_word_embeddings:
            problems.append("a classifier's output is not the embedding; set tie_word_embeddings: False")
        if self.logit_softcap and not self.tie_word_embeddings:
            problems.append("logit_softcap is served with tie_word_embeddings only")
        return problems

    @property
    def layers(self) -> tuple[LayerKind, ...]:
        """The kind of each layer."""
        repeats = -(-self.num_layers // len(self.layer_kinds))
        return (self.layer_kinds * repeats)[: self.num_layers]

    def out_dim(self, projection: str) -> int:
        """Return the rows of a projection of a layer, by its name or that of one of its parameters."""
        heads = dict.fromkeys(("k_proj", "v_proj"), self.num_kv_heads) | {"q_proj": self.num_heads}
        rows = {name: number * self.head_dim for name, number in heads.items()}
        rows |= {"output_proj": self.embed_dim, "w2": self.embed_dim}
        rows |= {"w1": self.intermediate_dim, "w3": self.intermediate_dim}
        return next(rows[part] for part in projection.split(".") if part in rows)

    def differences(self, other: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
        """Return the fields whose value in `other` is another one, with both values."""
        ours = {field.name: getattr(self, field.name) for field in fields(self)}
        theirs = dict(other)
        if tuple(theirs.get("layer_kinds", ())) == self.layers:  # each layer's, of which ours may be the pattern
            del theirs["layer_kinds"]
        return {name: (ours[name], value) for name, value in theirs.items() if ours[name] != value}
