import random

import pytest
import sentencepiece

from torchtune_lite.data import Llama2ChatTemplate, Message, SentencePieceTokenizer, check_vocabulary, limit_length
from torchtune_lite.errors import ConfigError, DataError


def turns(*texts):
    """A conversation of a user, masked, and an assistant in turn."""
    return [Message("assistant" if i % 2 else "user", text, masked=i % 2 == 0) for i, text in enumerate(texts)]


def parts(*texts):
    return [{"type": "text", "content": text} for text in texts]


@pytest.mark.parametrize(
    "messages, tokens, mask",
    [
        (turns("hi", "yo"), "⟨▁hiyo⟩", "xxxx___"),  # no space of its own before the answer
        (turns("hi ", "yo"), "⟨▁hi▁yo⟩", "xxxx____"),  # the space at the end moves to the answer
        (turns("hi\n", " yo "), "⟨▁hi\n▁yo⟩", "xxxxx____"),
        (turns("a", "b", "c", "d"), "⟨▁ab⟩⟨▁cd⟩", "xxx__xxx__"),  # every exchange starts and ends by itself
        (turns("a", "b", "c"), "⟨▁ab⟩⟨▁c", "xxx__xxx"),
        (turns("a", ""), "⟨▁a⟩", "xxx_"),
        ([Message("system", "s", masked=True), *turns("u", "a")], "⟨▁sua⟩", "xxxx__"),
        ([Message("user", parts("a ", "b")), Message("assistant", parts("c", "d"))], "⟨▁a▁bcd⟩", "_______" + "_"),
    ],
)
def test_tokenizes_messages_with_their_masks(char_model, spell, messages, tokens, mask):
    ids, masked = SentencePieceTokenizer(char_model).tokenize_messages(messages)
    assert spell(ids) == tokens
    assert "".join("x" if m else "_" for m in masked) == mask


def test_a_prompt_stays_open(char_model, spell):
    tokenizer = SentencePieceTokenizer(char_model)
    assert spell(tokenizer.tokenize_messages(turns("hi", ""), add_eos=False)[0]) == "⟨▁hi"
    assert spell(tokenizer({"messages": turns("hi")}, inference=True)["tokens"]) == "⟨▁hi"


@pytest.mark.parametrize(
    "max_seq_len, tokens, mask, truncated",
    [
        (None, "⟨▁ab⟩⟨▁cd⟩", "xxx__xxx__", False),
        (10, "⟨▁ab⟩⟨▁cd⟩", "xxx__xxx__", False),
        (9, "⟨▁ab⟩⟨▁c⟩", "xxx__xxx_", True),
        (7, "⟨▁ab⟩⟨⟩", "xxx__xx", True),
        (5, "⟨▁ab⟩", "xxx__", True),
        (4, "⟨▁a⟩", "xxx_", True),
        (2, "⟨⟩", "xx", True),
    ],
)
def test_truncation_keeps_eos_and_the_mask_in_step(char_model, spell, max_seq_len, tokens, mask, truncated):
    sample = SentencePieceTokenizer(char_model, max_seq_len)({"messages": turns("a", "b", "c", "d"), "id": 7})
    assert spell(sample["tokens"]) == tokens
    assert "".join("x" if m else "_" for m in sample["mask"]) == mask
    assert sample["truncated"] is truncated
    assert sample["id"] == 7


def test_agrees_with_sentencepiece_on_plain_text(char_model):
    tokenizer = SentencePieceTokenizer(char_model)
    model = sentencepiece.SentencePieceProcessor(model_file=str(char_model))
    text = "The quick  brown fox\n"
    assert tokenizer.encode(text) == model.encode(text, add_bos=True, add_eos=True)
    assert tokenizer.encode(text, add_bos=False, add_eos=False) == model.encode(text)
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.vocab_size) == (1, 2, model.vocab_size())
    assert (tokenizer.pad_id, tokenizer.stop_tokens, tokenizer.path) == (0, [2], str(char_model))


@pytest.mark.parametrize(
    "content, message",
    [
        (None, "No such file"),
        (b"", "not a SentencePiece model"),
        (b"\x00garbage\xff" * 40, "not a SentencePiece model"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n", "git-lfs pointer"),
        (b"<!DOCTYPE html><html></html>", "HTML page"),
        (b'{"version": "1.0"}', "JSON file"),
    ],
)
def test_refuses_a_file_that_is_no_tokenizer(tmp_path, content, message):
    path = tmp_path / "tokenizer.model"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=message) as error:
        SentencePieceTokenizer(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_refuses_a_truncated_model_and_a_folder(tmp_path, char_model):
    path = tmp_path / "half.model"
    path.write_bytes(char_model.read_bytes()[:-7])
    for given in (path, tmp_path):
        with pytest.raises(DataError, match="tokenizer.path"):
            SentencePieceTokenizer(given)


def test_refuses_a_length_without_room_for_a_label(char_model):
    with pytest.raises(ConfigError, match="max_seq_len=1"):
        SentencePieceTokenizer(char_model, max_seq_len=1)


def test_a_tokenizer_must_fit_the_embedding(char_model):
    tokenizer = SentencePieceTokenizer(char_model)
    check_vocabulary(tokenizer, tokenizer.vocab_size)
    check_vocabulary(tokenizer, tokenizer.vocab_size + 1)
    with pytest.raises(
        DataError, match=f"{tokenizer.vocab_size} tokens but the model embeds {tokenizer.vocab_size - 1}"
    ):
        check_vocabulary(tokenizer, tokenizer.vocab_size - 1)


def test_samples_are_cut_to_the_models_positions_unless_told_to_be_shorter(char_model):
    tokenizer = SentencePieceTokenizer(char_model)
    limit_length(tokenizer, 5)
    tokens, _ = tokenizer.tokenize_messages([Message("user", "abc"), Message("assistant", "abc")])
    assert len(tokens) == 5 and tokens[-1] == tokenizer.eos_id
    tokenizer = SentencePieceTokenizer(char_model, max_seq_len=4)
    limit_length(tokenizer, 5)
    assert tokenizer.max_seq_len == 4
    with pytest.raises(ConfigError, match="max_seq_len=4 is more than the model's 3 positions"):
        limit_length(tokenizer, 3)


@pytest.mark.parametrize("template", [None, Llama2ChatTemplate()])
def test_what_is_surely_whole_is_not_cut_and_has_a_label(char_model, template):
    rng, found = random.Random(0), 0
    for _ in range(500):
        texts = ["".join(rng.choices("ab \né市𝄞", k=rng.randrange(8))) for _ in range(rng.choice((2, 2, 4)))]
        sample = {"messages": turns(*texts)}
        tokenizer = SentencePieceTokenizer(char_model, rng.choice((None, 8, 32, 64, 128)), template)
        made = tokenizer(sample)
        if tokenizer.surely_whole(sample):
            found += 1
            assert not made["truncated"] and not all(made["mask"][1:])
            assert len(made["tokens"]) <= (tokenizer.max_seq_len or 1000)
    assert 100 < found < 400


def test_a_sample_without_an_answer_in_the_loss_is_never_sure(char_model):
    tokenizer = SentencePieceTokenizer(char_model)
    assert tokenizer.surely_whole({"messages": turns("a", "b")})
    assert not tokenizer.surely_whole({"messages": turns("a")})
    assert not tokenizer.surely_whole({"messages": [Message("assistant", "b", masked=True)]})
