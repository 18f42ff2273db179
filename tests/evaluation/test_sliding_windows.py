"""Perplexity against a plain loop with transformers, token by token."""

import math

import pytest
import torch

from torchtune_lite.errors import DataError
from torchtune_lite.evaluation.sliding_windows import filled, perplexity, windows

TEXTS = [
    "台北市 信義區 市府路1段 (89014)金門縣金沙鎮重慶路五段101巷334號 a b c",
    "高雄市",
    "",
    "828高雄市永安區金信西路1段 ",
]


def plain(their_base, tokenizer, texts, max_seq_len, stride):
    """The loss of each token, from the logits of its window: the first one that reaches it."""
    losses = []
    for text in texts:
        tokens = [1, *tokenizer.encode(text, add_bos=False, add_eos=False)]
        for i in range(1, len(tokens)):
            start = 0
            while start + max_seq_len < i:
                start += stride
            with torch.no_grad():
                logits = their_base(torch.tensor([tokens[start:i]])).logits[0, -1]
            losses.append(-logits.log_softmax(-1)[tokens[i]].item())
    return losses


@pytest.mark.parametrize(("max_seq_len", "stride", "batch_size"), [(8, 4, 3), (8, 8, 1), (8, 1, 2), (500, 250, 1)])
def test_it_is_that_of_a_plain_loop(max_seq_len, stride, batch_size, base_model, their_base, base_tokenizer):
    how = {"max_seq_len": max_seq_len, "stride": stride}
    found = perplexity(base_model, base_tokenizer, TEXTS, batch_size=batch_size, **how)
    losses = plain(their_base, base_tokenizer, TEXTS, **how)
    num_bytes = sum(len(text.encode()) for text in TEXTS)
    assert (found["tokens"], found["bytes"], found["documents"]) == (len(losses), num_bytes, len(TEXTS))
    assert found["loss"] == pytest.approx(sum(losses) / len(losses), abs=1e-5)
    assert found["perplexity"] == pytest.approx(math.exp(sum(losses) / len(losses)), rel=1e-5)
    assert found["bits_per_byte"] == pytest.approx(sum(losses) / math.log(2) / num_bytes, rel=1e-5)


@pytest.mark.parametrize("length", [1, 2, 8, 9, 10, 12, 13, 50])
@pytest.mark.parametrize("stride", [1, 3, 8])
def test_each_token_but_the_first_is_scored_once_and_sees_enough(length, stride):
    tokens = list(range(length))
    scored = []
    for window in windows(tokens, 8, stride):
        assert len(window.tokens) <= 9
        new = window.tokens[-window.num_scored :]
        seen = window.tokens.index(new[0])
        assert window.tokens[0] == 0 or seen >= 8 - stride + 1
        scored += new
    assert scored == tokens[1:]
    sizes = [sum(len(each.tokens) - 1 for each in batch) for batch in filled(windows(tokens, 8, stride), 20)]
    assert all(size <= 20 for size in sizes)


def test_without_a_token_there_is_no_perplexity(base_model, base_tokenizer):
    with pytest.raises(DataError, match="^there is no text"):
        perplexity(base_model, base_tokenizer, ["", ""], max_seq_len=8, stride=4, batch_size=1)
