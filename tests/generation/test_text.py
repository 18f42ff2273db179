"""Pieces of a text, joined, are the text: over characters of several tokens, spaces and stop strings."""

import pytest

from torchtune_lite.data import SentencePieceTokenizer
from torchtune_lite.generation import TextStream, text_of
from torchtune_lite.generation.text import HELD

TEXT = "Hé, 你好 👩‍🚀! a  b\nthe quick brown fox\u00a0x"


class Bytes:
    """A tokenizer of bytes, whose ids from 256 on are special and without a text."""

    calls = 0

    def encode(self, text):
        return list(text.encode())

    def decode(self, ids):
        self.calls += len(ids)
        return bytes(i for i in ids if i < 256).decode(errors="replace")


def pieces(tokenizer, ids, stops=()):
    stream = TextStream(tokenizer, stops)
    return [*(stream.push(token) for token in ids), stream.finish()], stream


def test_a_character_of_several_tokens_comes_when_it_is_whole():
    tokenizer = Bytes()
    found, _ = pieces(tokenizer, tokenizer.encode(TEXT))
    assert "".join(found) == TEXT and not any("\ufffd" in piece for piece in found)
    assert found[:4] == ["H", "", "é", ","]


def test_pieces_of_sentencepiece_join_to_what_it_decodes(char_model):
    tokenizer = SentencePieceTokenizer(char_model)
    ids = tokenizer.encode("the quick  brown fox 你 the", add_bos=True, add_eos=False)
    found, _ = pieces(tokenizer, ids)
    assert "".join(found) == tokenizer.decode(ids) and len([piece for piece in found if piece]) > 10


def test_bytes_that_are_no_text_do_not_pile_up():
    tokenizer = Bytes()
    ids = [0x80] * 400 + tokenizer.encode("end")
    found, _ = pieces(tokenizer, ids)
    assert "".join(found) == "\ufffd" * 400 + "end"
    assert tokenizer.calls < len(ids) * 4 * (HELD + 1)


def test_a_text_that_ends_within_a_character_comes_out_as_it_is_decoded():
    found, _ = pieces(Bytes(), "a你".encode()[:-1])
    assert "".join(found) == "a\ufffd"


@pytest.mark.parametrize(
    ("text", "stops", "expected"),
    [
        ("one STOP two", ["STOP"], "one "),
        ("one STO two", ["STOP"], "one STO two"),
        ("one STOSTOP", ["STOP"], "one STO"),
        ("ab你好cd", ["好"], "ab你"),
        ("a\n\nb", ["x", "\n\n"], "a"),
        ("abcabd", ["abd", "bc"], "a"),
        ("ends ST", ["STOP"], "ends ST"),
        ("STOP", ["STOP"], ""),
    ],
)
def test_a_text_is_cut_before_the_first_stop_string(text, stops, expected):
    tokenizer = Bytes()
    found, stream = pieces(tokenizer, tokenizer.encode(text), stops)
    assert "".join(found) == expected
    assert stream.stopped == any(stop in text for stop in stops)


def test_what_may_begin_a_stop_string_is_held_back_and_nothing_else():
    tokenizer = Bytes()
    found, _ = pieces(tokenizer, tokenizer.encode("a STORM"), ["STOP"])
    assert found == ["a", " ", "", "", "", "STOR", "M", ""]
    found, stream = pieces(tokenizer, tokenizer.encode("x. y"), ["."])
    assert found == ["x", "", "", "", ""] and stream.stopped


def test_the_cost_of_a_token_does_not_grow_with_the_text():
    costs = []
    for count in (200, 400):
        tokenizer = Bytes()
        pieces(tokenizer, tokenizer.encode("x" * count), ["yy"])
        costs.append(tokenizer.calls)
    assert costs[1] <= 2.05 * costs[0]


@pytest.mark.parametrize(
    ("stops", "text"), [((), "a 你 b 你"), (("c",), "a 你 b 你"), (("b",), "a 你 "), (("b", "你"), "a "), (("a",), "")]
)
def test_the_text_of_a_whole_answer_ends_as_that_of_its_pieces(stops, text):
    tokenizer = Bytes()
    ids = tokenizer.encode("a 你 b 你")
    assert text_of(ids, tokenizer, stops) == text == "".join(pieces(tokenizer, ids, stops)[0])
