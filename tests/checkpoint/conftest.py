"""A small random Llama of transformers, with grouped-query attention, as a checkpoint folder; a memory meter."""

import logging
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from tests.checkpoint import memory
from torchtune_lite.models import llama2


@pytest.fixture(autouse=True)
def seen_by_caplog(monkeypatch) -> None:
    """Let pytest see the package's messages, even if an earlier test has set up its logger."""
    monkeypatch.setattr(logging.getLogger("torchtune_lite"), "propagate", True)


@pytest.fixture(scope="session")
def hf_base(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """Return `dir`, `model` (float32), `tokens` and their `logits`; weights are large, so that any mistake shows."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=96,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        rms_norm_eps=1e-6,
        rope_parameters={"rope_type": "default", "rope_theta": 500.0},
        initializer_range=0.15,
    )
    model = LlamaForCausalLM(config).eval()
    for name, param in model.named_parameters():
        if "norm" in name:
            torch.nn.init.uniform_(param, 0.5, 1.5)
    folder = tmp_path_factory.mktemp("base")
    model.save_pretrained(folder)
    (folder / "tokenizer.model").write_bytes(b"not read here")
    tokens = torch.randint(0, 96, (2, 24))
    with torch.no_grad():
        return SimpleNamespace(dir=folder, model=model, tokens=tokens, logits=model(tokens).logits)


@pytest.fixture
def build():
    """Build and load a checkpointer's model; with `adapters`, a LoRA model whose update is not zero."""

    def build(checkpointer, *, dtype=torch.float32, adapter_dtype=None, max_seq_len=64, resume_from=None, **adapters):
        args = {"max_seq_len": max_seq_len, **checkpointer.decoder_args}
        with torch.device("meta"):
            model = llama2.lora_llama2(**args, **adapters) if adapters else llama2.llama2(**args)
        checkpointer.load(model, device="cpu", dtype=dtype, adapter_dtype=adapter_dtype, resume_from=resume_from)
        if adapters:
            generator = torch.Generator().manual_seed(1)
            for param in model.parameters():
                if param.requires_grad:
                    param.data += 0.1 * torch.randn(param.shape, generator=generator).to(dtype)
        return model.eval()

    return build


@pytest.fixture
def logits():
    """Return the float32 logits of our model, or of the folder of one through transformers."""

    @torch.no_grad()
    def logits(model_or_folder, tokens):
        if isinstance(model_or_folder, Path):
            return AutoModelForCausalLM.from_pretrained(model_or_folder, dtype=torch.float32)(tokens).logits
        return model_or_folder(tokens)

    return logits


@pytest.fixture
def wide_base(tmp_path: Path):
    """Write a base of 46 M weights with `write(dtype)`; `bound(dtype)` is the memory allowed for a save."""

    def bound(dtype: torch.dtype) -> int:
        return 2 * memory.NUM_LARGEST * dtype.itemsize + 32_000_000

    write = partial(memory.write_base, tmp_path / "wide")
    return SimpleNamespace(write=write, bound=bound, adapters=memory.ADAPTERS | {"quantize_base": True})


@pytest.fixture
def peak_bytes():
    """Return the peak of the host memory that a function takes, mapped files included."""
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("needs Linux's /proc to reset the peak")
    memory.give_back_freed()
    return memory.peak_bytes
