"""A tiny Llama of transformers, ours with its weights, and its likeliest answers."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from torchtune_lite.generation import generate
from torchtune_lite.models.builders import decoder
from torchtune_lite.models.llama import LLAMA
from torchtune_lite.modules import DecoderConfig

PROMPTS = [[1, 5, 9, 40], [1, 7], [1, 33, 2, 8, 19, 60, 4]]


@pytest.fixture(scope="module")
def theirs():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=48,
        initializer_range=0.3,
        eos_token_id=None,
    )
    return LlamaForCausalLM(config).eval()


@pytest.fixture(scope="module")
def model(theirs):
    ours = decoder(DecoderConfig(**LLAMA.decoder_args(theirs.config.to_dict()))).eval()
    ours.load_state_dict({LLAMA.from_hf(name): value for name, value in theirs.state_dict().items()})
    return ours


@pytest.fixture(scope="module")
def greedy(model):
    """The 20 likeliest tokens after each prompt, one prompt at a time."""
    return [generate(model, [prompt], max_new_tokens=20)[0] for prompt in PROMPTS]
