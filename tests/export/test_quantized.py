import pytest
import torch
import transformers

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


def test_what_torchao_lacks_here_is_one_line(llama, tmp_path, monkeypatch):
    def lacking(*args):
        raise ImportError("Requires some\nkernels")

    monkeypatch.setattr("torchao.quantization.quantize_", lacking)
    with pytest.raises(
        ConfigError, match=r"--to int4: torchao cannot write it on this machine \(Requires some kernels\)"
    ):
        export_model(open_source(llama), "int4", tmp_path / "out", Options("m"))
    assert not (tmp_path / "out").exists()
