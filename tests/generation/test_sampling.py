"""Each setting against twenty plain lines and against transformers' processors."""

import math
from collections import Counter

import pytest
import torch
from transformers.generation import logits_process

from torchtune_lite.errors import ConfigError
from torchtune_lite.generation import Sampling
from torchtune_lite.generation.sampling import CANDIDATES, RUN, Sampler, likeliest

CPU = torch.device("cpu")
SETTINGS = [
    {"temperature": 1.0},
    {"temperature": 0.5, "top_k": 5},
    {"temperature": 2.0, "top_p": 0.7},
    {"temperature": 0.8, "min_p": 0.1},
    {"temperature": 1.3, "top_k": 20, "top_p": 0.9, "min_p": 0.02},
    {"temperature": 1.0, "top_k": 3000, "top_p": 0.999},
    {"temperature": 0.7, "repetition_penalty": 1.5},
    {"temperature": 1.1, "repetition_penalty": 0.6, "top_k": 9, "top_p": 0.5},
    {"temperature": 0.0, "repetition_penalty": 3.0},
    {"temperature": 0.0},
]


def logits_of(rows, v=2000, spread=3.0):
    return spread * torch.randn(rows, v, generator=torch.Generator().manual_seed(0))


def seen_in(rows, v=2000):
    return torch.rand(rows, v, generator=torch.Generator().manual_seed(1)) < 0.3


def plain(logits, sampling, seen):
    """The probabilities of a row's tokens, one step after the other, on lists."""
    penalty = sampling.repetition_penalty
    values = [
        (x / penalty if x > 0 else x * penalty) if was_seen else x
        for x, was_seen in zip(logits.tolist(), seen.tolist(), strict=True)
    ]
    order = sorted(range(len(values)), key=lambda i: -values[i])
    if sampling.temperature == 0:
        return {order[0]: 1.0}
    weights = {i: math.exp((values[i] - values[order[0]]) / sampling.temperature) for i in order}
    kept = order[: sampling.top_k]
    total, before = sum(weights[i] for i in kept), 0.0
    nucleus = []
    for i in kept:
        if before < (sampling.top_p or 1):
            nucleus.append(i)
        before += weights[i] / total
    kept = [i for i in nucleus if weights[i] >= (sampling.min_p or 0) * weights[order[0]]]
    total = sum(weights[i] for i in kept)
    return {i: weights[i] / total for i in kept}


def boundaries(probabilities):
    """The numbers between which a token is drawn: the sums of what comes before it in the vocabulary."""
    below = 0.0
    for token in sorted(probabilities):
        yield token, below, below + probabilities[token]
        below += probabilities[token]


@pytest.mark.parametrize("together", [False, True])
def test_the_number_between_0_and_1_decides_which_token_is_drawn(together):
    settings = [Sampling(max_new_tokens=1, **each) for each in SETTINGS]
    logits, seen = logits_of(len(settings)), seen_in(len(settings))
    sampler = Sampler(settings, logits.shape[1], CPU)
    for row, sampling in enumerate(settings):
        for token, start, end in boundaries(plain(logits[row], sampling, seen[row])):
            if end - start < 1e-4:
                continue  # closer than float32 tells
            for chance in (start + 0.1 * (end - start), end - 0.1 * (end - start)):
                if together:
                    chances = torch.full((len(settings),), chance, dtype=torch.float64)
                    assert sampler.choose(logits, chances, seen)[row] == token
                else:
                    alone = Sampler([sampling], logits.shape[1], CPU)
                    chances = torch.tensor([chance], dtype=torch.float64)
                    assert alone.choose(logits[row : row + 1], chances, seen[row : row + 1]) == token
            if together:
                break


def test_what_can_be_drawn_is_what_transformers_leaves():
    processors = {
        "temperature": logits_process.TemperatureLogitsWarper,
        "top_k": logits_process.TopKLogitsWarper,
        "top_p": logits_process.TopPLogitsWarper,
        "min_p": logits_process.MinPLogitsWarper,
    }
    for given in SETTINGS[:6]:
        logits = logits_of(3)
        expected = logits
        for name in processors.keys() & given.keys():
            assert name in processors
        for name, process in processors.items():
            if name in given:
                expected = process(given[name])(None, expected)
        probabilities = expected.softmax(-1)
        ours = plain(logits[1], Sampling(max_new_tokens=1, **given), torch.zeros(2000, dtype=torch.bool))
        assert ours.keys() == set(probabilities[1].nonzero()[:, 0].tolist())
        for token, probability in ours.items():
            assert probability == pytest.approx(probabilities[1, token].item(), rel=1e-4, abs=1e-7)


def test_a_penalty_is_that_of_transformers():
    ids = torch.tensor([[3, 7, 7, 11]])
    expected = logits_process.RepetitionPenaltyLogitsProcessor(1.7)(ids, logits_of(1)).softmax(-1)[0]
    seen = torch.zeros(2000, dtype=torch.bool)
    seen[ids[0]] = True
    ours = plain(logits_of(1)[0], Sampling(max_new_tokens=1, temperature=1.0, repetition_penalty=1.7), seen)
    assert torch.allclose(torch.tensor([ours[i] for i in range(2000)]), expected, rtol=1e-4, atol=1e-8)


def test_draws_are_spread_as_the_probabilities_are():
    draws, sampling = 20000, Sampling(max_new_tokens=1, temperature=1.0, seed=3)
    logits = logits_of(1, v=50, spread=1.0)
    sampler = Sampler([sampling] * draws, 50, CPU)
    chances = sampler.chances([sampling.dice(number) for number in range(draws)])
    counts = Counter(sampler.choose(logits.expand(draws, -1), chances).tolist())
    found = torch.tensor([counts[token] / draws for token in range(50)])
    assert (found - logits[0].softmax(0)).abs().max() < 4 * 0.5 / draws**0.5


@pytest.mark.parametrize("top_p", [0.3, 0.9999])
def test_a_nucleus_larger_than_the_first_candidates_is_found_too(top_p):
    logits = logits_of(2, v=4 * CANDIDATES, spread=0.1)
    sampling = Sampling(max_new_tokens=1, temperature=1.0, top_p=top_p)
    kept = logits >= Sampler([sampling] * 2, logits.shape[1], CPU)._least(logits)
    assert kept[0].sum() == len(plain(logits[0], sampling, torch.zeros(len(logits[0])))) > CANDIDATES


def test_log_probabilities_are_of_the_logits_as_they_are():
    logits = logits_of(3)
    settings = [Sampling(max_new_tokens=1, logprobs=n, temperature=2.0, top_k=1) for n in (2, None, 0)]
    chosen = torch.tensor([4, 5, 6])
    notes = Sampler(settings, 2000, CPU).logprobs(logits, chosen)
    expected = logits.log_softmax(-1)
    assert notes[1] is None and notes[2].top == []
    assert notes[0].logprob == pytest.approx(expected[0, 4].item())
    assert [token for token, _ in notes[0].top] == logits[0].argsort(descending=True)[:2].tolist()
    assert [value for _, value in notes[0].top] == pytest.approx(expected[0].sort(descending=True).values[:2].tolist())


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({"max_new_tokens": -1}, "max_new_tokens is -1; it must be 0 or more"),
        ({"temperature": -0.1}, "temperature is -0.1; it must be 0 or more"),
        ({"temperature": math.inf}, "temperature is inf"),
        ({"temperature": math.nan}, "temperature is nan"),
        ({"top_k": 0}, "top_k is 0; it must be 1 or more, or null for all tokens"),
        ({"top_p": 0.0}, "top_p is 0.0; it must be above 0 and at most 1"),
        ({"top_p": 1.1}, "top_p is 1.1"),
        ({"min_p": 2}, "min_p is 2; it must be between 0 and 1"),
        ({"repetition_penalty": 0}, "repetition_penalty is 0; it must be above 0"),
        ({"stop_strings": "end"}, "stop_strings is 'end'; it must be texts, none empty"),
        ({"stop_strings": ["a", ""]}, "stop_strings is"),
        ({"logprobs": -1}, "logprobs is -1; it must be 0 or more"),
    ],
)
def test_a_setting_without_a_meaning_is_one_line(given, problem):
    with pytest.raises(ConfigError, match=f"^{problem}"):
        Sampling(**{"max_new_tokens": 1} | given)


@pytest.mark.parametrize("temperature", [1e-5, 1e-6, 1e-40, 1e-310])
def test_the_colder_the_draw_the_likelier_the_token_down_to_any_temperature(temperature):
    settings = [Sampling(max_new_tokens=1, temperature=temperature, top_p=top_p) for top_p in (None, 0.5)]
    logits, chances = logits_of(2), torch.full((2,), 0.3, dtype=torch.float64)
    chosen = Sampler(settings, logits.shape[1], CPU).choose(logits, chances)
    assert chosen.tolist() == logits.argmax(-1).tolist()


@pytest.mark.parametrize("v", [1, RUN - 1, RUN, RUN + 1, 4 * RUN, 5 * RUN + 7])
def test_the_likeliest_is_the_first_of_the_largest(v):
    logits = torch.randint(0, 9, (50, v), generator=torch.Generator().manual_seed(v)).float()  # many are equal
    logits[0] = -torch.inf
    logits[1, -1] = logits[2, v // 2] = 20.0
    assert likeliest(logits).tolist() == [row.index(max(row)) for row in logits.tolist()]
