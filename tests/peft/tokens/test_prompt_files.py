"""Virtual tokens in PEFT's files, of both directions, and what of an encoder is in them."""

import json

import peft
import pytest
import torch
import transformers

from tests.models import tiny
from tests.peft.tokens.test_prompts import METHODS
from torchtune_lite.checkpoint import FullModelHFCheckpointer, put_saved_adapters
from torchtune_lite.errors import CheckpointError, ConfigError
from torchtune_lite.export import Options, export_model, open_source
from torchtune_lite.export.merging import merge
from torchtune_lite.models import from_checkpoint
from torchtune_lite.peft import PromptTuning, PTuning

CPU = {"device": "cpu", "dtype": torch.float32}
TOKENS = torch.arange(3, 27).reshape(2, 12)


def live(base, method):
    checkpointer = FullModelHFCheckpointer(base)
    with torch.device("meta"):
        model = from_checkpoint(**checkpointer.decoder_args, adapter=method).eval()
    checkpointer.load(model, **CPU)
    torch.manual_seed(1)
    with torch.no_grad():
        for param in model.parameters():
            if param.requires_grad:
                param.add_(0.3 * torch.randn_like(param))
    return checkpointer, model


def read(base, adapter, model=None):
    checkpointer = FullModelHFCheckpointer(base, adapter_checkpoint=adapter)
    if model is None:
        with torch.device("meta"):
            model = from_checkpoint(**checkpointer.decoder_args)
        put_saved_adapters(checkpointer, model)
    checkpointer.load(model, **CPU)
    return model.eval()


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("family", ["llama3_2", "gemma3", "llama_dynamic"])
@torch.no_grad()
def test_peft_computes_alike_with_our_file_and_we_with_its(family, name, tmp_path):
    tiny.make(family).save_pretrained(tmp_path / "base")
    checkpointer, model = live(tmp_path / "base", METHODS[name])
    checkpointer.save(tmp_path / "out", model, verify=True)
    assert not list((tmp_path / "out").glob("*.safetensors"))  # nothing that could be taken for the tuned model
    base = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.float32)
    theirs = peft.PeftModel.from_pretrained(base, tmp_path / "out/adapter").eval()
    logits = theirs(TOKENS, attention_mask=torch.ones_like(TOKENS)).logits[:, -TOKENS.shape[1] :]
    torch.testing.assert_close(logits, model(TOKENS), rtol=0, atol=1e-4)
    theirs.save_pretrained(tmp_path / "theirs")
    again = read(tmp_path / "base", tmp_path / "theirs")
    assert torch.equal(again(TOKENS), model(TOKENS))
    checkpointer.save(tmp_path / "again", again)
    fields = [json.loads((tmp_path / each / "adapter/adapter_config.json").read_text()) for each in ("out", "again")]
    assert fields[0]["peft_type"] == fields[1]["peft_type"] and "target_modules" not in fields[0]
    config = peft.PeftConfig.from_pretrained(tmp_path / "out/adapter")
    assert config.num_virtual_tokens == 3 and config.num_layers == len(model.layers)


@pytest.fixture
def base(tmp_path):
    tiny.make("llama3_2").save_pretrained(tmp_path / "base")
    return tmp_path / "base"


@torch.no_grad()
def test_a_model_with_an_encoder_goes_on_with_what_it_made(base, tmp_path, log_lines):
    checkpointer, model = live(base, PTuning(3, encoder_hidden_size=8))
    checkpointer.save(tmp_path / "out", model)
    with torch.device("meta"):
        other = from_checkpoint(**checkpointer.decoder_args, adapter=PTuning(3, encoder_hidden_size=8))
    read(base, tmp_path / "out/adapter", other)
    assert torch.equal(other(TOKENS), model(TOKENS)) and other.prompt.encoder is None
    assert other.prompt.embedding.weight.requires_grad
    assert f"adapter {tmp_path}/out/adapter has what an encoder made, and goes on without one" in log_lines


def test_virtual_tokens_are_no_weights(base, tmp_path, log_lines):
    checkpointer, model = live(base, PromptTuning(3))
    checkpointer.save(tmp_path / "out", model)
    assert "virtual tokens are not weights: checkpoints have the adapter alone, which PEFT reads" in log_lines
    source = open_source(tmp_path / "out/adapter", base)
    for kind in ("hf", "gguf", "gguf-adapter", "int8"):
        with pytest.raises(ConfigError, match=f"--to {kind}: virtual tokens are not weights and cannot be merged; use"):
            export_model(source, kind, tmp_path / kind, Options("x"))
    with pytest.raises(ConfigError, match="has virtual tokens, which are not weights and cannot be merged"):
        merge([(tmp_path / "out/adapter", 1.0)], tmp_path / "merged", base)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"num_virtual_tokens": 4}, "num_virtual_tokens is 4, the model's is 3"),
        ({"num_virtual_tokens": "3"}, "num_virtual_tokens is '3', not a whole number above 0"),
        ({"num_transformer_submodules": 2}, "num_transformer_submodules is 2, which is not served"),
        ({"peft_type": "P_TUNING"}, "peft_type is 'P_TUNING', the model's is 'PROMPT_TUNING'"),
    ],
)
def test_a_config_of_something_else_is_refused(changes, said, base, tmp_path):
    checkpointer, model = live(base, PromptTuning(3))
    checkpointer.save(tmp_path / "out", model)
    path = tmp_path / "out/adapter/adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(CheckpointError, match=said):
        read(base, path.parent, model)


def test_more_than_the_model_has_positions_are_refused(base, tmp_path):
    checkpointer, model = live(base, PromptTuning(3))
    checkpointer.save(tmp_path / "out", model)
    path = tmp_path / "out/adapter/adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"num_virtual_tokens": 5000}))
    with pytest.raises(CheckpointError, match="does not fit: num_virtual_tokens 5000 leaves no room for a text"):
        read(base, path.parent)


def test_granite_has_no_file_of_embeddings(tmp_path):
    tiny.make("granite").save_pretrained(tmp_path / "base")
    live(tmp_path / "base", METHODS["prefix"])
    with pytest.raises(ConfigError, match="transformers scales what a granite model is given, virtual tokens too"):
        live(tmp_path / "base", PromptTuning(3))
