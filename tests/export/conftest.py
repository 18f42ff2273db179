"""A tiny Llama with the demo's tokenizer, and adapters of it that PEFT wrote."""

import logging
from pathlib import Path

import peft
import pytest
import torch
import transformers

from tests.export.models import make, save
from torchtune_lite.models import from_checkpoint


@pytest.fixture(autouse=True)
def seen_by_caplog(monkeypatch) -> None:
    """Lets pytest see the package's messages, also where a test before has set its logger up."""
    monkeypatch.setattr(logging.getLogger("torchtune_lite"), "propagate", True)


@pytest.fixture
def llama(tmp_path, monkeypatch) -> Path:
    return save(make("llama3_1", monkeypatch), tmp_path / "llama")


@pytest.fixture
def adapt():
    """Makes an adapter of a model folder with PEFT, of random values, and gives its folder and PEFT's model."""

    def adapt(base: Path, name: str, seed: int = 0, other=None, **config) -> tuple[Path, torch.nn.Module]:
        model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        config = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "k_proj", "down_proj"]} | config
        adapted = peft.get_peft_model(model, other or peft.LoraConfig(task_type="CAUSAL_LM", **config)).eval()
        generator = torch.Generator().manual_seed(seed)
        for param_name, param in adapted.named_parameters():
            if any(each in param_name for each in ("lora_", "vera_", "ia3_")) and "magnitude" not in param_name:
                param.data.normal_(0, 0.05, generator=generator)
        adapted.peft_config["default"].base_model_name_or_path = str(base)
        adapted.save_pretrained(base.parent / name)
        return base.parent / name, adapted

    return adapt


@pytest.fixture
def plain():
    """Builds the model of a source without adapters and without weights."""

    def plain(source):
        with torch.device("meta"):
            return from_checkpoint(**vars(source.config)).eval()

    return plain
