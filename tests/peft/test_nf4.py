"""NF4 against the levels of the QLoRA paper, and as the tensor that torchao knows."""

import subprocess
import sys

import pytest
import torch
from torch.testing import assert_close
from torchao.quantization import to_nf4

from torchtune_lite.kernels.nf4.codec import NF4Weight
from torchtune_lite.models.builders import decoder, lora_decoder
from torchtune_lite.modules import DecoderConfig
from torchtune_lite.peft import (
    dequantize,
    fits_nf4,
    from_nf4_parts,
    is_quantized,
    nf4_parts,
    num_bytes,
    quantize,
)

LEVELS = torch.tensor(  # arXiv 2305.14314, appendix E, to torchao's four decimals
    [-1, -0.6962, -0.5251, -0.3949, -0.2844, -0.1848, -0.0911, 0]
    + [0.0796, 0.1609, 0.2461, 0.3379, 0.4407, 0.5626, 0.7230, 1]
)
DTYPES = [torch.float32, torch.bfloat16]


def test_every_value_becomes_the_nearest_level_of_its_block():
    torch.manual_seed(0)
    weight = torch.randn(128, 256)
    blocks = weight.view(-1, 64)
    scales = blocks.abs().amax(dim=1, keepdim=True)
    nearest = LEVELS[(blocks[..., None] / scales[..., None] - LEVELS).abs().argmin(dim=-1)] * scales
    spread = (scales - scales.mean()).abs().max().item()
    error = (dequantize(quantize(weight)).view(-1, 64) - nearest).abs().max().item()
    assert error <= spread / 127  # the scales themselves are rounded to 8 bits about their mean
    assert error > 0


def test_values_that_are_levels_are_kept():
    weight = LEVELS.repeat(128 * 128 // 16).view(128, 128)
    assert_close(dequantize(quantize(weight)), weight, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_dtype_is_remembered_and_half_a_byte_is_stored(dtype):
    weight = torch.randn(256, 256).to(dtype)
    quantized = quantize(weight)
    assert is_quantized(quantized) and not is_quantized(weight)
    assert dequantize(quantized).dtype == quantized.dtype == dtype
    assert dequantize(weight) is weight
    assert quantized.quantized_data.numel() == weight.numel() // 2 and quantized.quantized_data.itemsize == 1


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_parts_make_the_tensor_again(dtype):
    quantized = quantize(torch.randn(128, 256).to(dtype))
    again = from_nf4_parts((128, 256), NF4Weight(*(part.clone() for part in nf4_parts(quantized))))
    assert torch.equal(dequantize(again), dequantize(quantized))
    assert torch.equal(again.get_original_weight(), quantized.get_original_weight())
    assert (again.dtype, tuple(again.shape)) == (dtype, (128, 256))


def test_foreign_blocks_are_refused():
    quantized = quantize(torch.randn(128, 256))
    quantized.block_size = 32
    with pytest.raises(ValueError, match="blocks of 32"):
        nf4_parts(quantized)


def test_a_tensor_is_counted_by_the_bytes_it_is_stored_in():
    weight = torch.randn(512, 512).bfloat16()
    assert num_bytes(weight) == 512 * 512 * 2
    assert num_bytes(quantize(weight)) == 512 * 512 // 2 + 512 * 512 // 64 + 2 * 512 * 512 // 16384 + 2


@pytest.mark.parametrize("dtype", DTYPES)
def test_it_is_the_tensor_that_torchao_makes(dtype):
    weight = torch.randn(128, 256).to(dtype)
    theirs = to_nf4(weight)
    assert type(quantize(weight)) is type(theirs)
    assert torch.equal(dequantize(theirs), theirs.get_original_weight())
    assert torch.equal(quantize(weight).get_original_weight(), dequantize(theirs))


@pytest.mark.parametrize(
    ("shape", "fits"), [((128, 128), True), ((64, 256), True), ((96, 128), False), ((8, 8), False)]
)
def test_only_whole_blocks_of_scales_are_quantised(shape, fits):
    assert fits_nf4(shape[1], shape[0]) == fits
    if fits:
        assert is_quantized(quantize(torch.randn(shape)))
    else:
        with pytest.raises(ValueError, match="not hold a multiple of 16,384"):
            quantize(torch.randn(shape))


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_state_dict_has_the_original_dtype_and_the_model_stays_quantised(dtype):
    config = DecoderConfig(32, num_layers=2, num_heads=4, num_kv_heads=4, embed_dim=128, max_seq_len=8)
    model = lora_decoder(config, ["q_proj", "v_proj"], quantize_base=True)
    for layer in model.layers:
        for proj in (layer.attn.q_proj, layer.attn.v_proj):
            proj.weight = torch.nn.Parameter(quantize(torch.randn(128, 128).to(dtype)), requires_grad=False)
    state = model.state_dict()
    live = model.layers[1].attn.v_proj.weight
    assert not any(is_quantized(value) for value in state.values())
    saved = state["layers.1.attn.v_proj.weight"]
    assert (saved.dtype, saved.device.type) == (dtype, "cpu")
    assert torch.equal(saved, dequantize(live))
    assert is_quantized(live)
    plain = decoder(config).to(dtype)
    plain.load_state_dict({name: value for name, value in state.items() if "lora" not in name})


def test_torchao_is_not_imported_for_a_model_that_is_not_quantised():
    code = """
import sys
from torchtune_lite.models import llama2
model = llama2.lora_llama2(vocab_size=32, num_layers=1, num_heads=2, num_kv_heads=2, embed_dim=32, max_seq_len=8,
                           lora_attn_modules=["q_proj"])
model.layers[0].attn.q_proj.merged_weight(), model.state_dict()
sys.exit("torchao" in sys.modules)
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
