import json

import torch
import transformers

from tests.export.models import prompts
from torchtune_lite.export import Options, export_model, open_source


def test_a_merged_folder_loads_in_transformers_as_what_peft_computes(llama, adapt, tmp_path):
    folder, adapted = adapt(llama, "adapter")
    found = export_model(open_source(folder), "hf", tmp_path / "out", Options("m"))
    merged = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    [ids] = prompts(40)
    with torch.no_grad():
        assert (merged(ids).logits - adapted(ids).logits).abs().max() < 1e-4
    assert found.largest < 1e-4
    assert (tmp_path / "out/tokenizer.model").read_bytes() == (llama / "tokenizer.model").read_bytes()


def test_weights_keep_the_dtype_of_the_base(llama, adapt, tmp_path):
    model = transformers.AutoModelForCausalLM.from_pretrained(llama, dtype=torch.bfloat16)
    model.save_pretrained(llama)
    folder, _ = adapt(llama, "adapter")
    export_model(open_source(folder), "hf", tmp_path / "out", Options("m"))
    assert json.loads((tmp_path / "out/config.json").read_text())["dtype"] == "bfloat16"
    assert {weight.dtype for weight in open_source(tmp_path / "out").base.values()} == {torch.bfloat16}
