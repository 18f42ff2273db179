import pytest
import torch

from tests.models.tiny import TINY, config
from torchtune_lite.checkpoint.formats.weights import Weight
from torchtune_lite.errors import CheckpointError
from torchtune_lite.export.gguf.architectures import architecture_of
from torchtune_lite.export.gguf.tensors import to_tensors, to_weights
from torchtune_lite.models import FAMILIES, from_checkpoint


def model_of(name):
    values = config(name).to_dict()
    family = FAMILIES[values["model_type"]]
    model = from_checkpoint(**family.decoder_args(values))
    generator = torch.Generator().manual_seed(0)
    weights = {
        name: torch.randn(param.shape, generator=generator).bfloat16().float()
        for name, param in model.named_parameters()
    }
    return architecture_of(family.model_type), model.config, {name: Weight.of(w) for name, w in weights.items()}


@pytest.mark.parametrize("name", TINY)
def test_weights_come_back_to_the_bit(name):
    architecture, given, weights = model_of(name)
    tensors = to_tensors(architecture, given, weights)
    back = to_weights(architecture, given, tensors)
    assert back.keys() == weights.keys()
    for name, weight in weights.items():
        assert torch.equal(back[name].read().bfloat16(), weight.read().bfloat16()), name


def test_nothing_is_read_before_a_tensor_is():
    architecture, given, weights = model_of("phi3_128k")

    def fail():
        raise AssertionError("read")

    unread = {name: Weight(weight.dtype, weight.shape, fail) for name, weight in weights.items()}
    tensors = to_tensors(architecture, given, unread)
    to_weights(architecture, given, tensors)
    assert tensors["blk.0.attn_qkv.weight"].shape == (512, 256)
    assert tensors["blk.1.ffn_up.weight"].shape == (1024, 256)
    assert tensors["rope_factors_long.weight"].shape == (32,)


def test_the_factors_of_llama_3_1_are_1_for_fast_pairs_and_its_factor_for_slow_ones():
    architecture, given, weights = model_of("llama3_1")
    factors = to_tensors(architecture, given, weights)["rope_freqs.weight"].read()
    assert factors[0] == 1 and factors[-1] == 8 and (factors.diff() >= 0).all()


def test_norms_of_gemma_have_1_more():
    architecture, given, weights = model_of("gemma3")
    tensors = to_tensors(architecture, given, weights)
    for theirs, ours in (("blk.0.attn_q_norm", "layers.0.attn.q_norm"), ("output_norm", "norm")):
        assert torch.equal(tensors[f"{theirs}.weight"].read(), weights[f"{ours}.weight"].read() + 1)
    assert torch.equal(tensors["blk.0.attn_q.weight"].read(), weights["layers.0.attn.q_proj.weight"].read())


def test_a_tensor_of_no_known_module_is_named():
    architecture, given, weights = model_of("llama2")
    tensors = to_tensors(architecture, given, weights)
    with pytest.raises(CheckpointError, match="holds blk.0.attn_sinks.weight, which is not a tensor of a llama"):
        to_weights(architecture, given, tensors | {"blk.0.attn_sinks.weight": tensors["output_norm.weight"]})
