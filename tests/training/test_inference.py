"""Model and tokenizer of a recipe that prompts a model."""

import pytest
import torch

from torchtune_lite import config
from torchtune_lite.errors import ConfigError, DataError
from torchtune_lite.training import Inference, RecipeSettings

TEXT = """
model: {_component_: torchtune_lite.models.llama2.llama2}
tokenizer: {_component_: torchtune_lite.models.llama2.llama2_tokenizer, path: "${asset:base}/tokenizer.model"}
checkpointer: {_component_: torchtune_lite.training.FullModelHFCheckpointer, checkpoint_dir: "${asset:base}"}
device: cpu
dtype: fp32
"""


@pytest.fixture
def inference(folder):
    (folder / "my.yaml").write_text(TEXT)
    return Inference(config.load(folder / "my.yaml", [], RecipeSettings))


def test_weights_come_last(inference, log_lines):
    tokenizer, model = inference.build()
    assert all(param.is_meta for param in model.parameters()) and log_lines == []
    inference.load()
    assert log_lines[0].startswith("model: llama, 1.0M parameters (4 layers of 128); template: ")
    assert {(param.device.type, param.dtype) for param in model.parameters()} == {("cpu", torch.float32)}
    tokens = torch.tensor([tokenizer.encode("Hello", add_bos=True, add_eos=False)])
    assert torch.isfinite(model(tokens)).all()


def test_a_tokenizer_with_more_tokens_than_the_model_embeds_is_refused(inference):
    inference.cfg.model["vocab_size"] = 30
    with pytest.raises(DataError, match="but the model embeds 30"):
        inference.build()


def test_a_classifier_is_refused_before_its_weights_are_read(inference):
    inference.cfg.model |= {"num_classes": 3, "tie_word_embeddings": False}
    with pytest.raises(ConfigError, match="^the model is a classifier, of 3 classes, and writes no text$"):
        inference.build()
