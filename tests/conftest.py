"""Fixtures of several packages' tests: a folder, a tokenizer of single characters, files of rows, the log, GPUs."""

import io
import json
import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest
import sentencepiece

SENTENCES = [
    "the quick brown fox jumps over the lazy dog\nTHE QUICK BROWN FOX JUMPS OVER THE LAZY DOG",
    "[INST] <<SYS>>\n0123456789\n<</SYS>> [/INST] # : . , ' ? ! { } | é 市",
]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def char_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SentencePiece model of characters: a piece is a character, a space is ▁, one stands before each text."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES),
        model_writer=model,
        model_type="char",
        vocab_size=200,
        hard_vocab_limit=False,
        character_coverage=1.0,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        minloglevel=2,
    )
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.model"
    path.write_bytes(model.getvalue())
    return path


@pytest.fixture(scope="session")
def spell(char_model: Path) -> Callable[[list[int]], str]:
    """Write ids of `char_model` out: ⟨ for BOS, ⟩ for EOS, · for the label -100."""
    model = sentencepiece.SentencePieceProcessor(model_file=str(char_model))
    marks = {model.bos_id(): "⟨", model.eos_id(): "⟩", -100: "·"}
    return lambda ids: "".join(marks[i] if i in marks else model.id_to_piece(i) for i in ids)


@pytest.fixture
def jsonl(tmp_path: Path) -> Callable[..., str]:
    """Write rows to a file, one a line, and return its path."""

    def write(rows: list[Any], name: str = "rows.jsonl") -> str:
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return str(path)

    return write


@pytest.fixture
def log_lines() -> Iterator[list[str]]:
    """The messages of the package's logger."""
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())
    logger = logging.getLogger("torchtune_lite")
    logger.addHandler(handler)
    yield lines
    logger.removeHandler(handler)


@pytest.fixture
def default_dtype() -> Callable[[Any], AbstractContextManager[None]]:
    """Set torch's default dtype, in which modules are built, for a block."""
    import torch

    @contextmanager
    def use(dtype: torch.dtype) -> Iterator[None]:
        before = torch.get_default_dtype()
        torch.set_default_dtype(dtype)
        try:
            yield
        finally:
            torch.set_default_dtype(before)

    return use


TESTS = Path(__file__).parent
SLOW = (
    *("recipes", "benchmarks", "test_attacks.py", "test_configs.py", "test_error_messages.py", "test_fuzz.py"),
    *("test_torchtune_configs.py", "test_torchtune_table.py", "test_waits.py", "checkpoint/test_checkpointer.py"),
    *("checkpoint/test_model_weights.py", "checkpoint/test_store_faults.py", "checkpoint/test_verification.py"),
    *(
        "cli/verbs/test_download.py",
        "cli/test_lazy_compiler.py",
        "kernels/nf4/test_codec.py",
        "kernels/nf4/test_cpu.py",
    ),
    *("models/test_against_transformers.py", "models/test_sizes.py", "config/text/test_completion.py"),
    *("export/gguf/test_model.py", "export/gguf/test_importing.py"),
    *("training/test_compiling.py", "training/test_distributed.py", "training/memory/test_step_memory.py"),
    "test_launcher.py",
)
"""Tests that take three quarters of the time: runs of recipes, comparisons with peers, each bad input in turn."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark slow tests, and skip those that need a GPU if there is none."""
    for item in items:
        if item.path.relative_to(TESTS).as_posix().startswith(SLOW):
            item.add_marker(pytest.mark.slow)
    needing = [item for item in items if item.get_closest_marker("gpu")]
    if not needing:
        return
    import torch

    if not torch.cuda.is_available():
        for item in needing:
            item.add_marker(pytest.mark.skip(reason="torch finds no CUDA device"))
