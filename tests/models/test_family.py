"""Every family's table against transformers' own model and config."""

import itertools

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from torchtune_lite.models import FAMILIES
from torchtune_lite.models.builders import decoder
from torchtune_lite.modules import DecoderConfig

CONFIG = DecoderConfig(
    vocab_size=100,
    num_layers=12,  # numbers of two digits too
    num_heads=4,
    num_kv_heads=2,
    embed_dim=32,
    max_seq_len=48,
    intermediate_dim=80,
    norm_eps=1e-6,
    rope_base=500.0,
)
every_family = pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)


def hf_config(family):
    """Our sizes as transformers reads them."""
    return AutoConfig.for_model(**family.hf_config(CONFIG))


@every_family
def test_transformers_reads_our_config_and_we_read_its(family):
    config = hf_config(family)
    assert config.architectures == [family.hf_architecture]
    assert DecoderConfig(**family.decoder_args(config.to_dict())) == CONFIG
    assert DecoderConfig(**family.decoder_args(family.hf_config(CONFIG))) == CONFIG


@every_family
def test_names_and_shapes_are_those_of_transformers(family):
    with torch.device("meta"):
        ours, theirs = decoder(CONFIG), AutoModelForCausalLM.from_config(hf_config(family))
    assert type(theirs).__name__ == family.hf_architecture
    renamed = {family.to_hf(name): value.shape for name, value in ours.state_dict().items()}
    assert renamed == {name: value.shape for name, value in theirs.state_dict().items()}


@every_family
def test_every_name_goes_there_and_back(family):
    with torch.device("meta"):
        names = list(decoder(CONFIG).state_dict())
    assert [family.from_hf(family.to_hf(name)) for name in names] == names
    assert [family.from_meta(family.to_meta(name)) for name in names] == names
    assert len({family.to_meta(name) for name in names}) == len(names)


@every_family
def test_keys_without_weights_are_ignored_and_unknown_ones_kept(family):
    assert family.from_hf("model.layers.0.self_attn.rotary_emb.inv_freq") is None
    assert family.from_meta("rope.freqs") is None
    assert family.from_hf("model.layers.0.extra.weight") == "model.layers.0.extra.weight"
    assert family.from_meta("extra.weight") == "extra.weight"


@every_family
def test_a_config_that_computes_something_else_is_refused(family):
    config = hf_config(family).to_dict()
    for key, value in family.hf_fixed.items():
        other = "gelu" if isinstance(value, str) else not value
        with pytest.raises(ValueError, match=f"config.json has {key} {other!r}"):
            family.decoder_args(config | {key: other})


@every_family
@pytest.mark.parametrize("key", ["rope_parameters", "rope_scaling"])
@pytest.mark.parametrize("type_key", ["rope_type", "type"])
def test_scaled_rope_is_refused(family, key, type_key):
    config = {k: v for k, v in hf_config(family).to_dict().items() if k != "rope_parameters"}
    with pytest.raises(ValueError, match="rope type 'linear'"):
        family.decoder_args(config | {key: {type_key: "linear", "factor": 2.0, "rope_theta": 500.0}})


@every_family
def test_configs_of_old_and_new_transformers_give_the_same_rope_base(family):
    new = hf_config(family).to_dict()
    old = {k: v for k, v in new.items() if k != "rope_parameters"} | {"rope_theta": 500.0, "rope_scaling": None}
    assert family.decoder_args(old) == family.decoder_args(new)
    assert family.decoder_args({k: v for k, v in old.items() if k != "rope_theta"})["rope_base"] == 10_000.0


@every_family
def test_two_rope_bases_are_refused_and_the_same_one_twice_is_not(family):
    """transformers 5 takes the base in `rope_parameters`, 4 the one beside it."""
    plain = {k: v for k, v in hf_config(family).to_dict().items() if k not in ("rope_parameters", "rope_theta")}
    places = [
        lambda base: {"rope_theta": base},
        lambda base: {"rope_parameters": {"rope_type": "default", "rope_theta": base}},
        lambda base: {"rope_scaling": {"rope_type": "default", "rope_theta": base}},
    ]
    for one, other in itertools.permutations(places, 2):
        assert family.decoder_args(plain | one(500.0) | other(500))["rope_base"] == 500.0
        with pytest.raises(ValueError, match="several rope bases, .*0.0, .*0.0, and transformers 4 and 5 read"):
            family.decoder_args(plain | one(500.0) | other(10_000.0))
        assert family.decoder_args(plain | one(None) | other(500.0))["rope_base"] == 500.0
    theirs = AutoConfig.for_model(**plain, rope_theta=500.0, rope_parameters={"rope_theta": 10_000.0})
    assert theirs.rope_parameters["rope_theta"] == 10_000.0, "else ours need not refuse it"


@every_family
@pytest.mark.parametrize("rope", [[500.0], "default", {"full_attention": {"rope_theta": 500.0}}])
@pytest.mark.parametrize("key", ["rope_parameters", "rope_scaling"])
def test_rope_parameters_of_another_form_are_refused(family, key, rope):
    with pytest.raises(ValueError, match="not a mapping of plain values"):
        family.decoder_args(hf_config(family).to_dict() | {key: rope})


@every_family
@pytest.mark.parametrize(
    ("key", "value"), [("hidden_size", "32"), ("num_hidden_layers", 0), ("rms_norm_eps", None), ("vocab_size", True)]
)
def test_a_size_that_is_none_is_refused(family, key, value):
    with pytest.raises(ValueError, match=f"{value!r}, not as a .*number above 0"):
        family.decoder_args(hf_config(family).to_dict() | {key: value})


@every_family
def test_without_kv_heads_every_head_has_its_own(family):
    config = hf_config(family).to_dict()
    del config["num_key_value_heads"]
    assert family.decoder_args(config)["num_kv_heads"] == CONFIG.num_heads


@every_family
def test_metas_params_give_all_but_the_length(family):
    params = {"dim": 32, "n_layers": 12, "n_heads": 4, "n_kv_heads": 2, "norm_eps": 1e-6, "rope_theta": 500.0}
    args = family.decoder_args_meta(params | {"vocab_size": -1, "multiple_of": 256}, 100, 80)
    assert DecoderConfig(**args, max_seq_len=48) == CONFIG
    assert family.decoder_args_meta({k: params[k] for k in ("dim", "n_layers", "n_heads", "norm_eps")}, 100, 80) == (
        args | {"num_kv_heads": 4, "rope_base": 10_000.0}
    )
