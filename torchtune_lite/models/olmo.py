"""OLMo 2 (arXiv 2501.00656), OLMo 3 (2512.13961) and EXAONE 4 (2507.11407): norms after attention and feed-forward.

OLMo norms queries and keys over the whole width, EXAONE 4 per head. Most layers of OLMo 3 and EXAONE 4 see a window.
"""

from functools import partial

from torchtune_lite.models.builders import component_builders, size, size_builders
from torchtune_lite.models.config_json import Fields, HFConfig, hf_windows, rope_fields, sliding_fields
from torchtune_lite.models.families import POST_NORM_KEYS, QK_NORM_KEYS, SILU, Family
from torchtune_lite.modules import RopeScaling
from torchtune_lite.utils import get_logger

KEYS = POST_NORM_KEYS | QK_NORM_KEYS
DROPPED = ("layers.{}.sa_norm.weight", "layers.{}.mlp_norm.weight")
FIELDS = {"pre_norm": False, "post_norm": True, "qk_norm": "width"}

log = get_logger()


def _every_fourth_is_full(config: HFConfig) -> Fields:
    every = config.get("sliding_window_pattern", 4)
    every = len(every) if isinstance(every, str) else every  # "LLLG"
    kinds = tuple("sliding" if (i + 1) % every else "full" for i in range(config["num_hidden_layers"]))
    return sliding_fields(config, kinds)


def _olmo3(config: HFConfig) -> Fields:
    """Read the scaling as that of the full layers alone, as OLMo 3 was trained; transformers 4 does not write which."""
    rope = rope_fields(config)
    if "local_rope_base" not in rope and rope["rope_scaling"] is not None and config.get("rope_parameters"):
        log.warning(
            "config.json does not say in its rope_parameters which layers are scaled: the full ones, as OLMo 3 was "
            "trained; transformers 5 scales none of them until they stand under full_attention"
        )
    return {"local_rope_base": rope["rope_base"], **rope, **_every_fourth_is_full(config)}


def _exaone4(config: HFConfig) -> Fields:
    if not config.get("sliding_window"):
        return {}
    fields = _every_fourth_is_full(config)
    return fields | {"layer_kinds": tuple("nope" if kind == "full" else kind for kind in fields["layer_kinds"])}


OLMO2 = Family(
    name="olmo2",
    model_type="olmo2",
    architecture="Olmo2ForCausalLM",
    keys=KEYS,
    dropped=DROPPED,
    defaults={"rms_norm_eps": 1e-5},
    fixed=SILU | {"attention_bias": False},
    fields=FIELDS,
)
OLMO3 = Family(
    name="olmo3",
    model_type="olmo3",
    architecture="Olmo3ForCausalLM",
    keys=KEYS,
    dropped=DROPPED,
    defaults={"rms_norm_eps": 1e-5, "rope_theta": 500_000.0, "sliding_window": 4096},
    fixed=SILU | {"attention_bias": False},
    fields=FIELDS,
    read=_olmo3,
    write=hf_windows,
)
EXAONE4 = Family(
    name="exaone4",
    model_type="exaone4",
    architecture="Exaone4ForCausalLM",
    keys=KEYS,
    dropped=DROPPED,
    defaults={"rms_norm_eps": 1e-5, "sliding_window": 4096},
    fixed=SILU,
    fields=FIELDS | {"qk_norm": "head"},
    read=_exaone4,
    write=hf_windows,
)

_2 = partial(size, vocab_size=100_352, max_seq_len=4096, norm_eps=1e-6, rope_base=500_000.0, **FIELDS)
_yarn = RopeScaling("yarn", factor=8.0, original_len=8192, amplitude=1.2079441541679836)
_3 = partial(_2, vocab_size=100_278, max_seq_len=65_536, rope_scaling=_yarn, local_rope_base=500_000.0)
_3 = partial(_3, layer_kinds=("sliding", "sliding", "sliding", "full"), window=4096)

SIZES = {  # layers, heads, kv heads, width, width of the feed-forward
    "olmo2_1b": _2(16, 16, 16, 2048, 8192),
    "olmo2_7b": _2(32, 32, 32, 4096, 11_008),
    "olmo2_13b": _2(40, 40, 40, 5120, 13_824),
    "olmo2_32b": _2(64, 40, 8, 5120, 27_648),
    "olmo3_7b": _3(32, 32, 32, 4096, 11_008),
    "olmo3_32b": _3(64, 40, 8, 5120, 27_648),
}
BUILDERS = {
    **size_builders(SIZES),
    **component_builders("olmo2", **_2.keywords),
    **component_builders("olmo3", **_3.keywords),
}
globals().update(BUILDERS)
__all__ = [*BUILDERS]
