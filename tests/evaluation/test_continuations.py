"""Scores of continuations against transformers' logits, and what is computed for them."""

import pytest
import torch

from torchtune_lite.evaluation.continuations import Continuation, first_token, rows_of, score_all, score_row

ASKED = [
    Continuation([1, 7, 30], 1),
    Continuation([1, 20, 21, 22, 40, 41], 1),
    Continuation([1, 20, 21, 22, 40, 42], 1),
    Continuation([1, 20, 21, 22, 40, 43], 3),
    Continuation([1, 9], 1),
    Continuation([1, 50, 51, 52, 53, 54, 55, 56], 7),
]


def by_transformers(theirs, asked):
    """The sum of each one's log-probabilities, one by one over all logits, and whether they are greedy."""
    found = []
    for tokens, num_scored in asked:
        with torch.no_grad():
            logits = theirs(torch.tensor([tokens[:-1]])).logits[0, -num_scored:].log_softmax(-1)
        labels = torch.tensor(tokens[-num_scored:])
        found.append((logits.gather(1, labels[:, None]).sum().item(), bool((logits.argmax(-1) == labels).all())))
    return found


@pytest.mark.parametrize("batch_size", [1, 2, 64])
def test_they_are_those_of_transformers_in_the_order_asked(batch_size, base_model, their_base):
    likeliest = their_base(torch.tensor([[1, 9]])).logits[0, -1].argmax().item()
    half = Continuation([1, 9, likeliest, 0], 2)  # of which the first is the likeliest
    asked = [*ASKED, half, Continuation([1, 9, likeliest], 1)]
    for found, expected in zip(
        score_all(base_model, asked, batch_size), by_transformers(their_base, asked), strict=True
    ):
        assert found.log_prob == pytest.approx(expected[0], abs=1e-4)
        assert found.is_greedy == expected[1]
    assert found.is_greedy


def test_one_sequence_serves_all_that_differ_in_the_last_token_alone_and_rows_fill_up():
    rows = list(rows_of(ASKED, 2))
    assert [[[place for place, _ in sequence] for sequence in row] for row in rows] == [[[5], [1, 2, 3], [0]], [[4]]]
    assert max(sum(len(sequence[0][1].tokens) - 1 for sequence in row) for row in rows) <= 2 * 7
    assert list(rows_of([], 2)) == []


def test_logits_are_computed_for_the_tokens_that_are_scored_alone(base_model):
    rows = []
    handle = base_model.output.register_forward_hook(lambda module, inputs, logits: rows.append(len(logits)))
    score_row(base_model, [[ASKED[1], ASKED[3]], [ASKED[5]]])
    handle.remove()
    assert sum(rows) == 1 + 3 + 7


def test_nothing_to_score_costs_nothing(base_model):
    nothing = Continuation([1, 7, 30], 0)
    assert score_all(base_model, [nothing], 1) == [(0.0, True)]
    [score, zero] = score_all(base_model, [ASKED[0], nothing], 1)
    assert zero == (0.0, True) and score == score_all(base_model, ASKED[:1], 1)[0]


def test_a_text_starts_from_bos_or_where_there_is_none_from_eos(base_tokenizer):
    assert first_token(base_tokenizer) == 1
    assert first_token(type("Qwens", (), {"bos_id": None, "eos_id": 5})) == 5
