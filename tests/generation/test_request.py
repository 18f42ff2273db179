"""An answer ends at its length, a stop token or a stop string."""

import pytest

from tests.generation.test_text import Bytes
from torchtune_lite.generation import Request, Sampling, TextStream, TokenLogprobs

SAMPLING = Sampling(max_new_tokens=3, seed=1)


@pytest.mark.parametrize(
    ("given", "tokens", "reason"),
    [([5, 6], [5, 6], None), ([5, 6, 7], [5, 6, 7], "length"), ([5, 9], [5], "stop"), ([9], [], "stop")],
)
def test_it_ends_at_its_length_or_before_a_stop_token(given, tokens, reason):
    request = Request([1], SAMPLING, 3)
    for token in given:
        request.add(token, {9})
    assert (request.tokens, request.finish_reason) == (tokens, reason)


def test_it_ends_with_the_token_that_completes_a_stop_string():
    request = Request([1], SAMPLING, 30, stream=TextStream(Bytes(), ["end"]))
    for token in b"an end":
        assert request.finish_reason is None
        request.add(token, {9})
    assert bytes(request.tokens) == b"an end" and request.finish_reason == "stop"


def test_log_probabilities_are_those_of_its_tokens():
    request = Request([1], SAMPLING, 3)
    notes = [TokenLogprobs(-0.5, []), TokenLogprobs(-1.5, [])]
    for token, note in zip((5, 9), notes, strict=True):
        request.add(token, {9}, note)
    assert request.logprobs == notes[:1]


def test_the_dice_of_a_seed_and_a_number_are_always_the_same():
    thrown = [Request([1], SAMPLING, 3, number).dice.random() for number in (0, 1, 0, 1)]
    assert thrown[:2] == thrown[2:] and thrown[0] != thrown[1]
    fresh = Sampling(max_new_tokens=3)
    assert Request([1], fresh, 3).dice.random() != Request([1], fresh, 3).dice.random()
