"""The shape of a decoder: derived values and contradictions."""

import pytest

from torchtune_lite.modules import DecoderConfig, RopeScaling

TINY = {"vocab_size": 96, "num_layers": 2, "num_heads": 4, "num_kv_heads": 2, "embed_dim": 32, "max_seq_len": 16}


@pytest.mark.parametrize(("embed_dim", "intermediate_dim"), [(4096, 11_008), (5120, 13_824), (96, 256)])
def test_intermediate_dim_follows_llamas_rule(embed_dim, intermediate_dim):
    assert DecoderConfig(**TINY | {"embed_dim": embed_dim}).intermediate_dim == intermediate_dim


def test_sizes_that_do_not_go_together_are_errors():
    with pytest.raises(ValueError, match="head_dim 9 is odd, so its halves cannot be rotated"):
        DecoderConfig(**TINY | {"embed_dim": 36})
    with pytest.raises(ValueError, match="embed_dim 34 is not a multiple of num_heads 4"):
        DecoderConfig(**TINY | {"embed_dim": 34})
    with pytest.raises(ValueError, match="num_heads 4 .* num_kv_heads 3"):
        DecoderConfig(**TINY | {"num_kv_heads": 3})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"activation": "relu"}, "activation is 'relu'; allowed are silu, gelu_tanh"),
        ({"qk_norm": "heads"}, "qk_norm is 'heads'; allowed are head, width, None"),
        ({"layer_kinds": ["full", "linear"]}, "layer_kinds has linear; allowed are full, sliding, nope"),
        ({"layer_kinds": ["sliding"]}, "set window, the keys that they see"),
        ({"rotary_dim": 3}, "rotary_dim 3 is odd"),
        ({"logit_softcap": 30.0}, "logit_softcap is served with tie_word_embeddings only"),
        ({"rope_scaling": {"kind": "ntk"}}, "rope_scaling.kind is 'ntk'; allowed are linear, dynamic, llama3"),
    ],
)
def test_options_that_are_unknown_or_contradict_each_other(changes, message):
    with pytest.raises(ValueError, match=message):
        DecoderConfig(**TINY | changes)


def test_heads_may_have_a_width_of_their_own():
    assert DecoderConfig(**TINY).head_dim == 8
    assert DecoderConfig(**TINY | {"head_dim": 64, "embed_dim": 34}).head_dim == 64


def test_kinds_of_layers_are_repeated():
    kinds = ["sliding", "sliding", "full"]
    config = DecoderConfig(**TINY | {"num_layers": 7, "layer_kinds": kinds, "window": 4})
    assert config.layers == (*kinds, *kinds, "sliding")


def test_what_a_yaml_gives_as_a_mapping_or_list_is_frozen():
    config = DecoderConfig(**TINY | {"rope_scaling": {"kind": "linear", "factor": 2.0}, "biased": ["q_proj"]})
    assert config.rope_scaling == RopeScaling("linear", 2.0) and hash(config)


def test_differences_name_both_values():
    assert DecoderConfig(**TINY).differences({"num_layers": 3, "embed_dim": 32}) == {"num_layers": (2, 3)}
