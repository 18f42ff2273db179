"""torchtune's recipe name for weights quantised by torchao."""

import transformers


def test_a_model_is_quantised(tiny, tune, folder):
    said = tune("run", "quantize", "--config", "quantization", f"model_dir={tiny.checkpoint}", "output_dir=int8")
    assert "int8: log-probabilities above 1 % are off from the source's by at most" in said.stderr
    model = transformers.AutoModelForCausalLM.from_pretrained(folder / "int8")
    assert type(model.model.layers[0].mlp.up_proj.weight).__module__.startswith("torchao.")
