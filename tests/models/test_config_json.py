"""Values that a config.json of transformers 4 or 5 may hold."""

import itertools

import pytest
from transformers import AutoConfig

from tests.models import tiny
from torchtune_lite.models import FAMILIES
from torchtune_lite.models.llama import LLAMA
from torchtune_lite.modules import DecoderConfig, RopeScaling

PLAIN = {
    "model_type": "llama",
    "vocab_size": 100,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "hidden_size": 32,
    "intermediate_size": 80,
    "max_position_embeddings": 48,
}
ROPE = {"rope_type": "default", "rope_theta": 500.0}


def test_two_rope_bases_are_refused_and_the_same_one_twice_is_not():
    """transformers 5 takes the base in `rope_parameters`, 4 the one beside it."""
    places = [
        lambda base: {"rope_theta": base},
        lambda base: {"rope_parameters": ROPE | {"rope_theta": base}},
        lambda base: {"rope_scaling": ROPE | {"rope_theta": base}},
    ]
    for one, other in itertools.permutations(places, 2):
        assert LLAMA.decoder_args(PLAIN | one(500.0) | other(500))["rope_base"] == 500.0
        with pytest.raises(ValueError, match=r"several rope bases, .*0.0, .*0.0, and transformers 4 and 5 read"):
            LLAMA.decoder_args(PLAIN | one(500.0) | other(10_000.0))
        assert LLAMA.decoder_args(PLAIN | one(None) | other(500.0))["rope_base"] == 500.0
    theirs = AutoConfig.for_model(**PLAIN, rope_theta=500.0, rope_parameters={"rope_theta": 10_000.0})
    assert theirs.rope_parameters["rope_theta"] == 10_000.0, "else ours need not refuse it"


def test_configs_of_old_and_new_transformers_give_the_same_rotation():
    scaled = {"rope_type": "linear", "factor": 2.0}
    new = LLAMA.decoder_args(PLAIN | {"rope_parameters": scaled | {"rope_theta": 500.0}})
    for kind in ("rope_type", "type"):
        old = {"rope_theta": 500.0, "rope_scaling": {kind: "linear", "factor": 2.0}}
        assert LLAMA.decoder_args(PLAIN | old) == new
    assert (new["rope_base"], new["rope_scaling"]) == (500.0, RopeScaling("linear", 2.0))
    plain = LLAMA.decoder_args(PLAIN | {"rope_scaling": None})
    assert (plain["rope_base"], plain["rope_scaling"]) == (10_000.0, None)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rope_parameters": [500.0]}, r"rope parameters \[500.0\], not a mapping"),
        ({"rope_scaling": "default"}, "rope parameters 'default', not a mapping"),
        ({"rope_scaling": {"rope_type": "spiral"}}, "rope type 'spiral'; known are default, linear"),
        ({"rope_scaling": {"type": "linear", "factor": "2"}}, "factor '2', which is not a number above 0"),
        ({"hidden_size": "32"}, "hidden_size '32', which is not a whole number above 0"),
        ({"num_hidden_layers": 0}, "num_hidden_layers 0, which is not a whole number above 0"),
        ({"num_attention_heads": 2.0}, "num_attention_heads 2.0, which is not a whole number above 0"),
        ({"rms_norm_eps": -1e-5}, "rms_norm_eps -1e-05, which is not a number above 0"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps nan, which is not a number above 0"),
        ({"vocab_size": True}, "vocab_size True, which is not a whole number above 0"),
        ({"layer_types": "full_attention"}, "layer_types 'full_attention', which is not a list of the right kind"),
        ({"layer_types": [1, 2]}, r"layer_types \[1, 2\], which is not a list of the right kind"),
    ],
)
def test_a_value_of_another_kind_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        LLAMA.decoder_args(PLAIN | changes)


@pytest.mark.parametrize("absent", [{}, {"num_key_value_heads": None}])
def test_without_kv_heads_every_head_has_its_own(absent):
    config = {key: value for key, value in PLAIN.items() if key != "num_key_value_heads"}
    assert LLAMA.decoder_args(config | absent)["num_kv_heads"] == 4


@pytest.mark.parametrize(
    ("name", "key", "fields"),
    [
        ("mistral_v01", "sliding_window", {"layer_kinds": ("full",), "window": None}),
        ("phi3", "sliding_window", {"layer_kinds": ("full",), "window": None}),
        ("exaone4", "sliding_window", {"layer_kinds": ("full",), "window": None}),
        ("gemma2", "attn_logit_softcapping", {"attn_softcap": None}),
        ("gemma2", "final_logit_softcapping", {"logit_softcap": None}),
    ],
)
def test_null_turns_off_what_a_family_has_by_default(name, key, fields):
    """As in transformers: Mistral Nemo's file has `sliding_window: null`, and no window."""
    config = tiny.config(name).to_dict()
    family = FAMILIES[config["model_type"]]
    found, whole = (DecoderConfig(**family.decoder_args(config | null)) for null in ({key: None}, {}))
    assert {field: getattr(found, field) for field in fields} == fields
    assert any(getattr(whole, field) != value for field, value in fields.items())
    assert getattr(AutoConfig.for_model(**config | {key: None}), key) is None


UNLISTED = ("gemma2", "gemma3_text", "olmo3", "exaone4")
"""Of these, transformers 4 did not write the kind of each layer."""


def of_transformers_4(config):
    """Spell a config.json of transformers 5 as 4 does."""
    rope = dict(config["rope_parameters"])
    local = rope.get("sliding_attention", {}).get("rope_theta")
    rope = dict(rope.get("full_attention", rope))
    base, kind = rope.pop("rope_theta"), rope.pop("rope_type")
    share = rope.pop("partial_rotary_factor", None)
    scaling = None if kind == "default" else {"type": kind, **rope}
    old = {key: value for key, value in config.items() if key != "rope_parameters"}
    old |= {"rope_theta": base, "rope_scaling": scaling, "rope_local_base_freq": local, "partial_rotary_factor": share}
    if config["model_type"] in UNLISTED:
        del old["layer_types"]
    if config["model_type"] == "granitemoehybrid":
        old["layer_types"] = ["attention" for _ in config["layer_types"]]
    return old


@pytest.mark.parametrize("name", tiny.TINY)
def test_a_config_of_transformers_4_gives_the_same_model(name, log_lines):
    config = tiny.config(name).to_dict()
    family = FAMILIES[config["model_type"]]
    assert family.decoder_args(of_transformers_4(config)) == family.decoder_args(config)
    assert log_lines == []


def test_yarn_of_olmo_3_is_of_its_full_layers_whatever_the_file_says(log_lines):
    """transformers 5.0 to 5.8 wrote the scaling for all layers, and later ones read such a file without it."""
    config = tiny.config("olmo3").to_dict()
    flat = config | {"rope_parameters": config["rope_parameters"]["full_attention"]}
    family = FAMILIES["olmo3"]
    assert family.decoder_args(flat) == family.decoder_args(config)
    [line] = log_lines
    assert "which layers are scaled: the full ones" in line and "full_attention" in line
