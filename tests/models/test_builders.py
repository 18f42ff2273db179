"""The weights that builders put under each projection, and the arguments they refuse."""

import inspect
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from torchtune_lite.kernels.fused_mlp import gated_mlp
from torchtune_lite.models.builders import ATTN_MODULES, MLP_MODULES, decoder, from_sizes, lora_decoder
from torchtune_lite.modules import DecoderConfig
from torchtune_lite.peft import (
    IA3,
    DoRALinear,
    IA3Linear,
    LoRALinear,
    adapter_modules,
    adapter_state,
    is_quantized,
)

CONFIG = DecoderConfig(
    vocab_size=100, num_layers=2, num_heads=4, num_kv_heads=4, embed_dim=128, max_seq_len=16, intermediate_dim=256
)
MISFITS = DecoderConfig(
    vocab_size=100, num_layers=2, num_heads=4, num_kv_heads=2, embed_dim=128, max_seq_len=16, intermediate_dim=320
)
EVERYTHING = {"lora_attn_modules": ATTN_MODULES, "apply_lora_to_mlp": True, "apply_lora_to_output": True}


def projections(model, names):
    """The full names of the projections called `names` in every layer."""
    return {name for name, _ in model.named_modules() if name.rpartition(".")[2] in names}


def test_a_plain_decoder_is_trained_whole():
    model = decoder(CONFIG)
    assert adapter_modules(model) == {}
    assert all(param.requires_grad for param in model.parameters())


@pytest.mark.parametrize(
    ("arguments", "adapted"),
    [
        ({"lora_attn_modules": ["q_proj", "v_proj"]}, {"q_proj", "v_proj"}),
        ({"lora_attn_modules": ["k_proj"], "apply_lora_to_mlp": True}, {"k_proj", *MLP_MODULES}),
        ({"lora_attn_modules": [], "apply_lora_to_output": True}, {"output"}),
        (EVERYTHING, {*ATTN_MODULES, *MLP_MODULES, "output"}),
    ],
    ids=["q and v", "k and mlp", "output", "everything"],
)
@pytest.mark.parametrize("quantize_base", [False, True])
@pytest.mark.parametrize("use_dora", [False, True])
def test_exactly_the_projections_named_are_adapted_trained_and_quantised(arguments, adapted, use_dora, quantize_base):
    model = lora_decoder(CONFIG, **arguments, use_dora=use_dora, quantize_base=quantize_base)
    adapters = adapter_modules(model)
    assert set(adapters) == projections(model, adapted)
    assert {type(adapter) for adapter in adapters.values()} == {DoRALinear if use_dora else LoRALinear}
    trained = {name for name, param in model.named_parameters() if param.requires_grad}
    assert trained == set(adapter_state(model))
    quantised = {name.removesuffix(".weight") for name, param in model.named_parameters() if is_quantized(param)}
    assert quantised == (projections(model, adapted - {"output"}) if quantize_base else set())


@pytest.mark.parametrize(
    ("arguments", "quantised"),
    [
        ({"quantize_frozen": True}, {*ATTN_MODULES, *MLP_MODULES}),
        ({"quantize_output": True}, {"q_proj", "output"}),
        ({"quantize_frozen": True, "quantize_output": True}, {*ATTN_MODULES, *MLP_MODULES, "output"}),
    ],
    ids=["frozen", "output", "both"],
)
@pytest.mark.parametrize("adapt_output", [False, True])
def test_what_carries_no_adapter_may_be_quantised_too(arguments, quantised, adapt_output):
    config = replace(CONFIG, vocab_size=128)
    model = lora_decoder(config, ["q_proj"], apply_lora_to_output=adapt_output, quantize_base=True, **arguments)
    found = {name.removesuffix(".weight") for name, param in model.named_parameters() if is_quantized(param)}
    assert found == projections(model, quantised)
    assert {name for name, param in model.named_parameters() if param.requires_grad} == set(adapter_state(model))
    tokens = torch.randint(0, 100, (2, 12))
    dense = decoder(config)
    dense.load_state_dict({name: value for name, value in model.state_dict().items() if "lora" not in name})
    assert_close(model(tokens), dense(tokens))


def test_the_types_under_an_adapted_and_a_plain_projection():
    attn = lora_decoder(CONFIG, ["q_proj", "v_proj"], quantize_base=True).layers[0].attn
    assert [type(proj.weight).__name__ for proj in (attn.q_proj, attn.k_proj)] == ["NF4Tensor", "Parameter"]


def test_rank_alpha_and_dropout_reach_every_adapter():
    model = lora_decoder(CONFIG, **EVERYTHING, lora_rank=3, lora_alpha=12, lora_dropout=0.25)
    assert {(a.rank, a.alpha, a.scaling, a.dropout.p) for a in adapter_modules(model).values()} == {(3, 12, 4.0, 0.25)}


def test_a_fresh_lora_model_is_its_base():
    torch.manual_seed(0)
    model = lora_decoder(CONFIG, **EVERYTHING).eval()
    base = decoder(CONFIG).eval()
    base.load_state_dict({k: v for k, v in model.state_dict().items() if k not in adapter_state(model)})
    tokens = torch.randint(0, 100, (2, 12))
    assert torch.equal(model(tokens), base(tokens))


def test_every_projection_that_does_not_fit_nf4_is_named_once():
    with pytest.raises(ValueError) as caught:
        lora_decoder(MISFITS, ["q_proj", "k_proj"], apply_lora_to_mlp=True, quantize_base=True)
    message = str(caught.value)
    for part in ("16384", "k_proj (128 -> 64)", "w1 (128 -> 320)", "w2 (320 -> 128)", "quantize_unsupported: skip"):
        assert message.count(part) == 1, part
    assert "q_proj" not in message


def test_projections_that_do_not_fit_may_be_left_unquantised_with_one_warning(log_lines):
    model = lora_decoder(MISFITS, ["q_proj", "k_proj"], quantize_base=True, quantize_unsupported="skip")
    attn = model.layers[1].attn
    assert is_quantized(attn.q_proj.weight) and not is_quantized(attn.k_proj.weight)
    assert isinstance(attn.k_proj, LoRALinear)
    assert len(log_lines) == 1 and "k_proj (128 -> 64)" in log_lines[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"lora_attn_modules": ["q_proj", "w1", "o_proj"]},
            "lora_attn_modules has o_proj, w1; allowed are q_proj, k_proj",
        ),
        ({"lora_attn_modules": []}, "no projection carries an adapter"),
        ({"lora_attn_modules": ["q_proj"], "lora_rank": 0}, "lora_rank 0 must be a whole number of at least 1"),
        ({"lora_attn_modules": ["q_proj"], "quantize_frozen": True}, "extend quantize_base, which is off"),
        ({"lora_attn_modules": ["q_proj"], "quantize_unsupported": "no"}, "'no'; allowed are error, skip"),
    ],
)
def test_arguments_that_cannot_work(arguments, message):
    with pytest.raises(ValueError, match=message):
        lora_decoder(CONFIG, **arguments)


@pytest.mark.parametrize("argument", ["apply_lora_to_output", "quantize_output"])
def test_a_tied_output_carries_nothing_of_its_own(argument):
    tied = DecoderConfig(**vars(CONFIG) | {"tie_word_embeddings": True})
    with pytest.raises(ValueError, match=f"{argument} is for a separate output projection"):
        lora_decoder(tied, ["q_proj"], quantize_base=True, **{argument: True})
    lora_decoder(tied, ["q_proj"], **{argument: False})


def test_a_builder_from_sizes_takes_the_fields_of_the_config_and_its_own():
    build = from_sizes(lora_decoder)
    model = build(
        vocab_size=100,
        num_layers=1,
        num_heads=4,
        num_kv_heads=2,
        embed_dim=32,
        max_seq_len=16,
        norm_eps=1e-6,
        lora_attn_modules=["q_proj"],
        lora_rank=2,
    )
    assert model.config == DecoderConfig(100, 1, 4, 2, 32, 16, norm_eps=1e-6)
    assert adapter_modules(model)["layers.0.attn.q_proj"].rank == 2


def test_its_signature_says_what_it_takes():
    parameters = inspect.signature(from_sizes(lora_decoder)).parameters
    assert parameters["vocab_size"].default is None  # for a recipe to fill in
    assert parameters["norm_eps"].default == 1e-5
    assert parameters["lora_rank"].default == 8
    assert "config" not in parameters


def test_all_missing_sizes_are_named():
    with pytest.raises(ValueError, match="sizes are missing: num_layers, embed_dim, max_seq_len"):
        from_sizes(decoder)(vocab_size=100, num_layers=None, num_heads=4, num_kv_heads=4)


def test_a_quantised_model_has_no_full_precision_weight_on_meta():
    with torch.device("meta"):
        model = lora_decoder(CONFIG, ["q_proj"], quantize_base=True)
    weight = model.layers[0].attn.q_proj.weight
    assert is_quantized(weight) and weight.device.type == "meta"
    assert isinstance(model.layers[0].attn.k_proj, nn.Linear)


@pytest.mark.parametrize(
    ("arguments", "fused"),
    [({}, True), ({"fused_lora": False}, False), ({"use_dora": True}, False), ({"lora_dropout": 0.1}, False)],
    ids=str,
)
def test_the_feed_forward_of_an_adapted_mlp_is_fused_unless_told_otherwise(arguments, fused):
    def is_fused(mlp):
        x = torch.randn(1, 2, CONFIG.embed_dim)
        return gated_mlp(x, mlp.w1, mlp.w2, mlp.w3, "silu", None) is not NotImplemented

    model = lora_decoder(CONFIG, ["q_proj"], apply_lora_to_mlp=True, **arguments)
    assert {is_fused(layer.mlp) for layer in model.layers} == {fused}
    assert not is_fused(lora_decoder(CONFIG, ["q_proj"]).layers[0].mlp)


def test_fusing_changes_no_parameter_name_and_nothing_but_rounding():
    models = []
    for fused_lora in (True, False):
        torch.manual_seed(0)
        models.append(lora_decoder(CONFIG, **EVERYTHING, fused_lora=fused_lora))
    state = {name: torch.randn_like(value) * 0.1 for name, value in models[0].state_dict().items()}
    for model in models:
        model.load_state_dict(state)
    assert list(models[0].state_dict()) == list(models[1].state_dict())
    tokens = torch.randint(0, 100, (2, 12))
    assert_close(models[0](tokens), models[1](tokens))


def test_another_method_takes_the_place_of_lora():
    model = lora_decoder(CONFIG, target_modules=["v_proj", "w2"], adapter=IA3(), quantize_base=True)
    adapters = adapter_modules(model)
    assert {type(adapter) for adapter in adapters.values()} == {IA3Linear}
    assert {name.rpartition(".")[2] for name in adapters} == {"v_proj", "w2"}
    assert all(adapter.feedforward == name.endswith("w2") for name, adapter in adapters.items())
    assert {name for name, param in model.named_parameters() if param.requires_grad} == set(adapter_state(model))


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (
            {"adapter": IA3(), "lora_rank": 4, "use_dora": True},
            "lora_rank, use_dora are for LoRA, and adapter puts IA3",
        ),
        ({"adapter": "ia3"}, "adapter is 'ia3'; it needs a _component_, such as torchtune_lite.peft.IA3"),
    ],
)
def test_another_method_has_arguments_of_its_own(arguments, problem):
    with pytest.raises(ValueError, match=problem):
        lora_decoder(CONFIG, ["q_proj"], **arguments)
