"""The tables of the families: names there and back, unsupported values, config.json for Meta's files."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from tests.models import tiny
from torchtune_lite.models import FAMILIES
from torchtune_lite.models.builders import decoder
from torchtune_lite.models.families import hf_config, rename
from torchtune_lite.models.llama import LLAMA
from torchtune_lite.modules import DecoderConfig, RopeScaling

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
SCALED = RopeScaling("llama3", factor=8.0, original_len=16)
every_family = pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)


def config_of(family):
    """The config.json of a tiny model of the family, its text part."""
    configs = (tiny.config(name).to_dict() for name in tiny.TINY)
    return next(c for c in configs if c["model_type"] == family.model_type)


@every_family
def test_every_name_goes_there_and_back(family):
    with torch.device("meta"):
        names = list(decoder(DecoderConfig(**family.decoder_args(config_of(family)))).state_dict())
    theirs = {name: family.to_hf(name) for name in names}
    fused = {name for name in names if family.parts(theirs[name])}
    assert all(name in family.parts(theirs[name]) for name in fused)
    assert [family.from_hf(theirs[name]) for name in names if name not in fused] == [n for n in names if n not in fused]
    assert all(their.startswith(("model.", "lm_head.")) for their in theirs.values())


@every_family
def test_names_that_carry_no_weight_are_left_out_and_unknown_ones_kept(family):
    assert family.from_hf("model.layers.0.self_attn.rotary_emb.inv_freq") is None
    assert family.from_hf("model.layers.0.extra.weight") == "model.layers.0.extra.weight"


@every_family
def test_a_config_that_computes_something_else_is_refused(family):
    config = config_of(family)
    for key, allowed in family.fixed.items():
        first = allowed[0] if isinstance(allowed, tuple) else allowed
        other = "relu" if isinstance(first, str) else not first if isinstance(first, bool) else 7
        with pytest.raises(ValueError, match=f"config.json has {key} {other!r}; {family.name} models here have"):
            family.decoder_args(config | {key: other})


@pytest.mark.parametrize("scaling", [None, SCALED])
def test_a_config_written_for_metas_weights_is_read_by_transformers_and_us(scaling):
    config = CONFIG if scaling is None else DecoderConfig(**vars(CONFIG) | {"rope_scaling": scaling})
    written = hf_config(LLAMA, config)
    theirs = AutoConfig.for_model(**written)
    for read in (written, theirs.to_dict()):
        assert DecoderConfig(**LLAMA.decoder_args(read)) == config
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(theirs)
        ours = decoder(config)
    shapes = {LLAMA.to_hf(name): value.shape for name, value in ours.state_dict().items()}
    assert shapes == {name: value.shape for name, value in model.state_dict().items()}


@pytest.mark.parametrize(
    ("name", "renamed"),
    [("a.weight", "b.weight"), ("layers.12.x", "blocks.12.y"), ("layers.3.z", None), ("layers.x", None)],
)
def test_a_name_keeps_the_number_of_its_layer(name, renamed):
    assert rename({"a.weight": "b.weight", "layers.{}.x": "blocks.{}.y"}, name) == renamed


@pytest.mark.parametrize("name", tiny.TINY)
def test_a_written_config_is_read_as_the_same_shape(name):
    values = tiny.config(name).to_dict()
    family = FAMILIES[values["model_type"]]
    given = DecoderConfig(**family.decoder_args(values))
    again = DecoderConfig(**family.decoder_args(hf_config(family, given)))
    assert given.differences(vars(again)) == {}


def test_a_window_of_null_is_none_and_one_left_out_the_default():
    values = {key: value for key, value in tiny.config("mistral_nemo").to_dict().items() if key != "sliding_window"}
    family = FAMILIES["mistral"]
    assert family.decoder_args(values)["window"] == 4096
    assert "window" not in family.decoder_args(values | {"sliding_window": None})
