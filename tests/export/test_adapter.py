import json

import peft
import pytest
import torch

from tests.demo_run import make_run
from tests.export.models import prompts
from torchtune_lite.errors import ConfigError
from torchtune_lite.export import Options, export_model, open_source


def test_an_exported_adapter_loads_in_peft_and_names_its_base(llama, adapt, tmp_path):
    folder, adapted = adapt(llama, "adapter")
    assert export_model(open_source(folder), "adapter", tmp_path / "out", Options("mine", base_name="org/base")) is None
    config = json.loads((tmp_path / "out/adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "org/base"
    card = (tmp_path / "out/README.md").read_text()
    assert "base_model: org/base" in card and "LoRA, rank 4, alpha 8, on " in card and "q_proj" in card
    assert "# mine\n" in card and 'PeftModel.from_pretrained(base, "mine")' in card
    assert (tmp_path / "out/tokenizer.model").is_file()
    base = type(adapted.base_model.model).from_pretrained(llama, dtype=torch.float32)
    again = peft.PeftModel.from_pretrained(base, tmp_path / "out")
    [ids] = prompts(20)
    with torch.no_grad():
        assert torch.equal(again(ids).logits, adapted(ids).logits)


def test_the_card_of_a_runs_adapter_says_how_it_was_trained(tmp_path):
    make_run(tmp_path / "x")
    export_model(open_source(tmp_path / "x", adapter=True), "adapter", tmp_path / "out", Options("mine"))
    card = (tmp_path / "out/README.md").read_text()
    assert "An adapter for `base`" in card and 'AutoModelForCausalLM.from_pretrained("base"' in card
    assert "- addresses_train.jsonl" in card and "| rank of the adapters | 16 |" in card and "base_model" not in card


def test_without_a_name_the_base_is_called_as_it_calls_itself(llama, adapt, tmp_path):
    folder, _ = adapt(llama, "adapter")
    export_model(open_source(folder), "adapter", tmp_path / "a", Options("mine"))
    assert json.loads((tmp_path / "a/adapter_config.json").read_text())["base_model_name_or_path"] == "llama"
    config = llama / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"_name_or_path": "org/of-it"}))
    export_model(open_source(folder), "adapter", tmp_path / "b", Options("mine"))
    assert json.loads((tmp_path / "b/adapter_config.json").read_text())["base_model_name_or_path"] == "org/of-it"


def test_a_merged_model_has_no_adapter_to_export(llama, tmp_path):
    with pytest.raises(ConfigError, match="is a merged model and has no adapter; name the folder of one"):
        export_model(open_source(llama), "adapter", tmp_path / "out", Options("mine"))
