"""Answers in one call: where they end, how they are drawn, and what stays as it was."""

from collections import Counter

import pytest
import torch

from tests.generation.conftest import PROMPTS
from torchtune_lite.errors import ConfigError
from torchtune_lite.generation import generate


def test_each_row_ends_before_its_first_stop_token(model, greedy):
    stops = [greedy[0][6], greedy[1][3]]
    expected = []
    for row in greedy:
        ends = [row.index(stop) for stop in stops if stop in row]
        expected.append(row[: min(ends, default=len(row))])
    assert generate(model, PROMPTS, max_new_tokens=20, stop_tokens=stops) == expected
    assert len({len(row) for row in expected}) > 1


def test_a_seed_repeats_the_draw_and_leaves_the_global_generator_alone(model):
    draw = {"max_new_tokens": 12, "temperature": 1.5}
    state = torch.get_rng_state()
    first = generate(model, PROMPTS, seed=1, **draw)
    assert generate(model, PROMPTS, seed=1, **draw) == first
    assert generate(model, PROMPTS, seed=2, **draw) != first
    assert generate(model, PROMPTS, **draw) != generate(model, PROMPTS, **draw)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(("temperature", "top_k"), [(1.0, None), (0.5, None), (2.0, 5)])
@torch.no_grad()
def test_tokens_are_drawn_from_the_softmax_of_the_likeliest(model, temperature, top_k):
    draws = 4000
    rows = generate(model, [PROMPTS[0]] * draws, max_new_tokens=1, temperature=temperature, top_k=top_k, seed=0)
    counts = Counter(token for row in rows for token in row)
    logits = model(torch.tensor([PROMPTS[0]]))[0, -1] / temperature
    if top_k is not None:
        logits[logits.argsort(descending=True)[top_k:]] = -torch.inf
    expected = logits.softmax(dim=0)
    found = torch.tensor([counts[token] / draws for token in range(64)])
    assert (found - expected).abs().max() < 4 * 0.5 / draws**0.5  # four standard deviations at most
    assert (found[expected == 0] == 0).all()


def test_the_likeliest_of_one_is_the_greedy_choice(model, greedy):
    assert generate(model, PROMPTS, max_new_tokens=20, temperature=1.0, top_k=1) == greedy


def test_the_model_is_left_as_it_was(model):
    model.train()
    generate(model, PROMPTS, max_new_tokens=2)
    assert model.training and all(layer.attn.kv_cache is None for layer in model.layers)
    model.eval()
    generate(model, PROMPTS, max_new_tokens=2)
    assert not model.training


def test_an_answer_is_capped_where_the_model_ends_and_a_prompt_without_room_is_an_error(model, caplog):
    assert len(generate(model, [PROMPTS[2]], max_new_tokens=41)[0]) == 41
    assert not caplog.records
    assert [len(row) for row in generate(model, PROMPTS, max_new_tokens=46)] == [44, 46, 41]
    assert [each.getMessage() for each in caplog.records] == [
        "max_new_tokens 46 is capped at 44, by a prompt of 4 tokens and max_seq_len 48"
    ]
    with pytest.raises(ConfigError, match="a prompt of 48 tokens leaves no room for an answer.*max_seq_len is 48"):
        generate(model, [[1] * 48], max_new_tokens=1)


def test_no_new_tokens_are_no_tokens(model):
    assert generate(model, PROMPTS, max_new_tokens=0) == [[], [], []]


def test_no_prompts_are_no_answers(model):
    assert generate(model, [], max_new_tokens=3) == []
