"""The perplexity recipe against transformers' loss of the same text."""

import json
import math

import pytest
import torch
import transformers
from torchtune_lite.models.llama2 import llama2_tokenizer


def arguments(tiny, *words):
    base = ("model={_component_: torchtune_lite.models.llama2.llama2}", f"model_dir={tiny.checkpoint}")
    return ["run", "perplexity_eval", "--config", "perplexity", *base, "device=cpu", "dtype=fp32", *words]


def test_it_is_exp_of_the_loss_that_transformers_has(tiny, tune, tmp_path):
    text = " ".join(json.loads(line)["input"] for line in tiny.train.read_text().splitlines()[:3])
    (tmp_path / "book.txt").write_text(text)
    tokens = llama2_tokenizer(str(tiny.checkpoint / "tokenizer.model"), prompt_template=None).encode(
        text, add_eos=False
    )
    model = transformers.LlamaForCausalLM.from_pretrained(tiny.checkpoint, dtype=torch.float32)
    inputs = torch.tensor([tokens])
    with torch.no_grad():
        loss = model(inputs, labels=inputs).loss.item()
    result = tune(*arguments(tiny, "source=book.txt", "output_dir=out"))
    found = json.loads((tmp_path / "out/perplexity.json").read_text())
    assert found["perplexity"] == pytest.approx(math.exp(loss), rel=1e-4)
    assert found["bits_per_byte"] == pytest.approx(loss * (len(tokens) - 1) / math.log(2) / len(text), rel=1e-4)
    assert (found["tokens"], found["windows"], found["max_seq_len"], found["stride"]) == (len(tokens) - 1, 1, 128, 64)
    assert "max_seq_len: 2048 is more than the model's 128 positions, and cut to them" in result.stderr
    assert f"perplexity {found['perplexity']:.4f}, {found['bits_per_byte']:.4f} bits per byte\n" in result.stdout

    tune(*arguments(tiny, f"source={tiny.train}", "column=input", "max_rows=3", "output_dir=rows", "max_seq_len=4"))
    found = json.loads((tmp_path / "rows/perplexity.json").read_text())
    assert (found["documents"], found["stride"]) == (3, 2)


def test_a_window_that_skips_tokens_is_one_line(tiny, tune):
    result = tune(*arguments(tiny, f"source={tiny.train}", "max_seq_len=8", "stride=9"), check=False)
    assert result.returncode == 2
    assert "stride: 9 skips tokens; set at most max_seq_len, which is 8" in result.stderr
