import pytest
import torch
import transformers
from safetensors.torch import load_file

from tests.export.models import make, prompts, save
from torchtune_lite.errors import ConfigError
from torchtune_lite.export import Options, export_model, open_source


@pytest.mark.parametrize(("scheme", "least", "most"), [("int8", 1e-4, 0.2), ("fp8", 1e-3, 1.0)])
def test_transformers_loads_what_was_compared(scheme, least, most, llama, tmp_path):
    found = export_model(open_source(llama), scheme, tmp_path / "out", Options("m"))
    assert least < found.largest < most
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    base = transformers.AutoModelForCausalLM.from_pretrained(llama)
    weight = model.model.layers[0].mlp.up_proj.weight
    assert type(weight).__module__.startswith("torchao.")
    error = (weight.dequantize() - base.model.layers[0].mlp.up_proj.weight).norm() / weight.dequantize().norm()
    assert error < 0.04
    if scheme == "int8":  # fp8 computes on GPUs
        [ids] = prompts(20)
        with torch.no_grad():
            ours, theirs = model(ids).logits.log_softmax(-1), base(ids).logits.log_softmax(-1)
        assert (ours - theirs).abs().max() < most


def test_a_fused_matrix_is_quantised_whole(tmp_path, monkeypatch):
    source = open_source(save(make("phi4", monkeypatch), tmp_path / "phi"))
    assert export_model(source, "int8", tmp_path / "out", Options("m")).largest < 0.2
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert type(model.model.layers[1].self_attn.qkv_proj.weight).__module__.startswith("torchao.")


def test_int4_is_written_without_a_gpu_and_what_does_not_fit_stays(tmp_path, monkeypatch, log_lines):
    """Its values are read back by the layout's definition; its product is computed on GPUs alone."""
    base = save(make("llama3_1", monkeypatch, hidden_size=128, intermediate_size=192), tmp_path / "llama")
    assert 1e-3 < export_model(open_source(base), "int4", tmp_path / "out", Options("m")).largest < 1.0
    assert any("projections stay in bf16, with rows that are no multiple of 128: " in line for line in log_lines)
    state = load_file(tmp_path / "out/model.safetensors")
    name = "model.layers.0.mlp.up_proj"
    packed, scale, zero = (state[f"{name}._weight_{part}"] for part in ("qdata", "scale", "zero_point"))
    original = transformers.AutoModelForCausalLM.from_pretrained(base).get_parameter(f"{name}.weight")
    for row, column in ((0, 0), (3, 1), (191, 126), (70, 127)):
        byte = packed[row, column // 2].item() & 255
        nibble = byte >> 4 if column % 2 else byte & 15
        code = nibble - 16 if nibble > 7 else nibble
        value = code * scale[0, row] + zero[0, row]
        assert abs(value - original[row, column]) < 0.51 * scale[0, row] + 0.01 * abs(original[row, column])
    assert state["model.layers.0.mlp.down_proj.weight"].dtype == torch.bfloat16
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert type(model.get_parameter(f"{name}.weight")).__name__ == "Int4Tensor"
    assert {each.dtype for each in model.parameters()} == {torch.bfloat16}


def test_what_torchao_lacks_here_is_one_line(llama, tmp_path, monkeypatch):
    def lacking(*args):
        raise ImportError("Requires some\nkernels")

    monkeypatch.setattr("torchao.quantization.quantize_", lacking)
    with pytest.raises(
        ConfigError, match=r"--to fp8: torchao cannot write it on this machine \(Requires some kernels\)"
    ):
        export_model(open_source(llama), "fp8", tmp_path / "out", Options("m"))
    assert not (tmp_path / "out").exists()
