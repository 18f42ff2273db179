"""The embedded base model: its starting point, and the committed weights."""

import json
from pathlib import Path
from random import Random

import torch
from safetensors.torch import load_file
from sentencepiece import SentencePieceProcessor
from transformers import AutoModelForCausalLM

from torchtune_lite.assets import make_base
from torchtune_lite.assets.make_base import TOKENIZER, keep, write_corpus, write_start

BASE = Path(make_base.__file__).parent / "base"


def test_the_corpus_is_made_from_its_seed(tmp_path):
    for name in ("one", "two"):
        write_corpus(tmp_path / name, 60, Random(0))
    for file, columns, count in (("questions.jsonl", {"input", "output"}, 60), ("texts.jsonl", {"text"}, 10)):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()
        rows = [json.loads(line) for line in (tmp_path / "one" / file).read_text(encoding="utf-8").splitlines()]
        assert len(rows) == count
        assert all(set(row) == columns for row in rows)


def test_the_start_is_a_checkpoint_of_the_same_random_weights_each_time(tmp_path):
    tokenizer = SentencePieceProcessor(str(TOKENIZER))
    for name in ("one", "two"):
        write_start(tmp_path / name, tokenizer, seed=0)
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    assert all(torch.equal(one[name], two[name]) for name in one)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "one")
    assert model.config.vocab_size == tokenizer.vocab_size()


def test_what_is_kept_is_in_bfloat16(tmp_path):
    write_start(tmp_path / "start", SentencePieceProcessor(str(TOKENIZER)), seed=0)
    (tmp_path / "kept").mkdir()
    keep(tmp_path / "start", tmp_path / "kept")
    assert {t.dtype for t in load_file(tmp_path / "kept/model.safetensors").values()} == {torch.bfloat16}
    assert json.loads((tmp_path / "kept/config.json").read_text())["dtype"] == "bfloat16"


def test_transformers_loads_the_committed_base():
    model = AutoModelForCausalLM.from_pretrained(BASE)
    assert model.dtype == torch.bfloat16
    assert sum(path.stat().st_size for path in BASE.iterdir()) < 8_000_000


def test_every_projection_of_the_committed_base_fits_nf4():
    weights = load_file(BASE / "model.safetensors")
    assert all(weight.numel() % 16_384 == 0 for name, weight in weights.items() if "proj" in name)
