"""Values that a config.json of transformers 4 or 5 may hold."""

import itertools

import pytest
from transformers import AutoConfig

from torchtune_lite.models.llama import LLAMA
from torchtune_lite.modules import RopeScaling

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
