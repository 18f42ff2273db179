"""Llama 2's published sizes, built on the meta device, and its tokenizer."""

import pytest
import torch

from torchtune_lite.models import llama2
from torchtune_lite.training import parameter_summary

PUBLISHED = {"7b": 6_738_415_616, "13b": 13_015_864_320, "70b": 68_976_648_192}


def count(model):
    return sum(param.numel() for param in model.parameters())


@pytest.mark.parametrize("size", PUBLISHED)
def test_the_plain_model_has_the_published_number_of_parameters(size):
    with torch.device("meta"):
        model = getattr(llama2, f"llama2_{size}")()
    assert count(model) == PUBLISHED[size]
    assert model.config.max_seq_len == 4096


@pytest.mark.parametrize("size", PUBLISHED)
@pytest.mark.parametrize("prefix", ["lora", "qlora"])
def test_adapters_add_rank_times_both_widths_of_each_projection(prefix, size):
    with torch.device("meta"):
        model = getattr(llama2, f"{prefix}_llama2_{size}")(lora_attn_modules=["q_proj", "v_proj"], lora_rank=8)
    c = model.config
    added = 8 * c.num_layers * (2 * c.embed_dim + c.embed_dim + c.num_kv_heads * c.head_dim)
    trained = sum(param.numel() for param in model.parameters() if param.requires_grad)
    assert trained == added
    assert count(model) == PUBLISHED[size] + added
    if size == "7b":
        assert parameter_summary(model) == "trainable params 4,194,304 of 6,742,609,920 (0.06 %)"


def test_only_qlora_quantises():
    sizes = {"vocab_size": 64, "num_layers": 1, "num_heads": 2, "num_kv_heads": 2, "embed_dim": 128, "max_seq_len": 8}
    with torch.device("meta"):
        models = [build(**sizes, lora_attn_modules=["q_proj"]) for build in (llama2.lora_llama2, llama2.qlora_llama2)]
    kinds = [type(model.layers[0].attn.q_proj.weight).__name__ for model in models]
    assert kinds == ["Parameter", "NF4Tensor"]


def test_sizes_given_by_name_make_the_same_model():
    with torch.device("meta"):
        model = llama2.llama2(
            vocab_size=32_000, num_layers=32, num_heads=32, num_kv_heads=32, embed_dim=4096, max_seq_len=4096
        )
        assert model.config == llama2.llama2_7b().config  # Llama's rule gives intermediate_dim


def test_the_tokenizer_puts_messages_in_inst_unless_told_otherwise(char_model, spell):
    assert isinstance(llama2.llama2_tokenizer(str(char_model)).prompt_template, llama2.Llama2ChatTemplate)
    tokenizer = llama2.llama2_tokenizer(str(char_model), max_seq_len=12, prompt_template=None)
    assert tokenizer.prompt_template is None and tokenizer.max_seq_len == 12
    assert spell(tokenizer.encode("a cat")) == "⟨▁a▁cat⟩"
