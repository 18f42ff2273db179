"""The embedded model with Llama 2's chat template, its engine, and what reads requests for it."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from tests.demo_run import BASE
from torchtune_lite.checkpoint import FullModelHFCheckpointer
from torchtune_lite.data import Llama2ChatTemplate, load_tokenizer
from torchtune_lite.generation import Engine
from torchtune_lite.models import from_checkpoint
from torchtune_lite.serving.parameters import Reader


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    return load_tokenizer(BASE, prompt_template=Llama2ChatTemplate())


@pytest.fixture(scope="session")
def model() -> torch.nn.Module:
    checkpointer = FullModelHFCheckpointer(BASE)
    with torch.device("meta"):
        model = from_checkpoint(**checkpointer.decoder_args)
    checkpointer.load(model, device="cpu", dtype=torch.float32)
    return model.eval()


@pytest.fixture
def engine(model: Any, tokenizer: Any) -> Iterator[Engine]:
    engine = Engine(model, slots=4, stop_tokens=tokenizer.stop_tokens, tokenizer=tokenizer)
    yield engine
    engine.close()


@pytest.fixture(scope="session")
def reader(model: Any, tokenizer: Any) -> Reader:
    return Reader(tokenizer, model.config.max_seq_len, model.config.vocab_size)
