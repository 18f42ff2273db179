"""A tiny random Llama of transformers, and ours with its weights."""

from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from torchtune_lite.models.builders import decoder
from torchtune_lite.models.llama import LLAMA
from torchtune_lite.modules import DecoderConfig


@pytest.fixture
def llama() -> Callable[..., SimpleNamespace]:
    """Build `ours`, `theirs` and `tokens [2, 24]`; float32, weights large enough for any mistake to show."""

    def build(num_kv_heads: int = 2) -> SimpleNamespace:
        torch.manual_seed(0)
        theirs = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=96,
                hidden_size=64,
                intermediate_size=160,
                num_hidden_layers=3,
                num_attention_heads=8,
                num_key_value_heads=num_kv_heads,
                max_position_embeddings=64,
                rms_norm_eps=1e-6,
                rope_parameters={"rope_type": "default", "rope_theta": 500.0},
                initializer_range=0.12,
            )
        ).eval()
        for name, param in theirs.named_parameters():
            if "norm" in name:
                torch.nn.init.uniform_(param, 0.5, 1.5)
        ours = decoder(DecoderConfig(**LLAMA.decoder_args(theirs.config.to_dict()))).eval()
        ours.load_state_dict({LLAMA.from_hf(name): value for name, value in theirs.state_dict().items()})
        return SimpleNamespace(ours=ours, theirs=theirs, tokens=torch.randint(0, 96, (2, 24)))

    return build
