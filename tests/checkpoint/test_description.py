import logging
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import transformers

from tests.models import tiny
from torchtune_lite import checkpoint, config
from torchtune_lite.data import ChatMLTemplate, SentencePieceTokenizer
from torchtune_lite.errors import CheckpointError


@dataclass
class Settings:
    model: Any = config.component()
    tokenizer: Any = config.component()
    checkpointer: Any = config.component()


@pytest.fixture
def folder_of_a_model(tmp_path):
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    model = transformers.Qwen3ForCausalLM(
        transformers.Qwen3Config(**shape, num_key_value_heads=2, head_dim=8, vocab_size=200, max_position_embeddings=64)
    )
    model.save_pretrained(tmp_path)
    return tmp_path, sum(p.numel() for p in model.parameters())


def settings(folder, char_model, model="torchtune_lite.models.from_checkpoint"):
    template = "torchtune_lite.data.ChatMLTemplate"
    return Settings(
        model={"_component_": model},
        tokenizer={
            "_component_": "torchtune_lite.data.SentencePieceTokenizer",
            "path": str(char_model),
            "prompt_template": template,
        },
        checkpointer={
            "_component_": "torchtune_lite.checkpoint.FullModelHFCheckpointer",
            "checkpoint_dir": str(folder),
        },
    )


def test_family_size_and_template_are_named(folder_of_a_model, char_model):
    folder, count = folder_of_a_model
    said = checkpoint.found(settings(folder, char_model))
    assert said == f"model: qwen3, {count / 1e6:.1f}M parameters (2 layers of 32); template: ChatMLTemplate"


def test_dropout_that_the_checkpoint_asks_for_is_named(tmp_path, char_model):
    config = tiny.config("granite")
    config.attention_dropout = 0.1
    config.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").touch()
    said = checkpoint.found(settings(tmp_path, char_model))
    assert "(2 layers of 256, with 10% dropout in attention); template: " in said


def test_a_run_says_the_same_when_it_starts(folder_of_a_model, char_model, caplog):
    caplog.set_level(logging.INFO)
    folder, _ = folder_of_a_model
    tokenizer = SentencePieceTokenizer(str(char_model), prompt_template=ChatMLTemplate())
    checkpoint.FullModelHFCheckpointer(folder).use_tokenizer(tokenizer, 200)
    assert checkpoint.found(settings(folder, char_model)) in caplog.messages


def test_a_config_that_names_its_model_is_not_looked_at(char_model):
    assert checkpoint.found(settings("/not/there", char_model, "torchtune_lite.models.qwen3.qwen3_0_6b_base")) == ""
    assert checkpoint.found(object()) == ""


def test_what_is_wrong_is_said_before_the_run(folder_of_a_model, char_model):
    with pytest.raises(CheckpointError, match="'/not/there' is not a folder"):
        checkpoint.found(settings("/not/there", char_model))
    assert torch.get_default_device().type == "cpu"
