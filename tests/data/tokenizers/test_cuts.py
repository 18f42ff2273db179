"""Encoding only the start of a text against encoding the whole, for each format of tokenizer, plain and in chats."""

import io
import json

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from tests.data.chats import FORMATS, TEMPLATES, TEXT, marked, plain, trained, write_folder
from tests.data.tokenizers.test_llama3_tokenizer import ranks  # noqa: F401 (a fixture)
from torchtune_lite.data import ChatTemplate, Message, TextTokens, load_tokenizer
from torchtune_lite.data.tokenizers import cuts
from torchtune_lite.errors import DataError

WORDS = ["the", "quick", "fox", "fox.", "'s", "I'LL", "42", "1234", "é", "wörld", "市場", "\u0301", "ﷺ", "¨", ">", "</"]
WORDS += ["▁", "Ġ", "<s>", "</s>", "<|im_end|>"]
SPACES = [*[" "] * 8, "  ", "   ", "\n", "\n\n", "\t", "\xa0", "\u200b", "\u3000", ""]
TEXTS = st.lists(st.sampled_from(WORDS) | st.sampled_from(SPACES), max_size=60).map("".join)


def unigram(normalizer: str) -> bytes:
    """A SentencePiece model that chooses the likeliest pieces."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXT),
        model_writer=model,
        vocab_size=120,
        hard_vocab_limit=False,
        normalization_rule_name=normalizer,
        minloglevel=2,
    )
    return model.getvalue()


def words(pattern: str) -> dict:
    """The pre-tokenizer of a tokenizer.json that splits texts into words by a pattern."""
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    return {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, level]}}


DIGITS = {"type": "Digits", "individual_digits": True}
SPACE = {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False}
LIKE = {
    "gpt2": ("bytelevel", words(cuts.GPT2)),
    "llama3": ("bytelevel", words(cuts.LLAMA3_PATTERN)),
    "qwen": ("bytelevel", words(cuts.QWEN) | {"normalizer": {"type": "NFC"}}),
    "o200k": ("bytelevel", words(cuts.O200K)),
    "smollm": (
        "bytelevel",
        {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [DIGITS, words(cuts.GPT2)["pre_tokenizer"]]}},
    ),
    "gemma": (
        "metaspace",
        {"normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}, "pre_tokenizer": SPACE},
    ),
}
"""The steps of models' tokenizers: a format, and the differences in its tokenizer.json."""


@pytest.fixture(params=[*FORMATS, *LIKE, "unigram nmt_nfkc", "unigram identity", "ranks"])
def tokenizer(request, tmp_path):
    """A tokenizer of each format, which tries short pieces of a text first."""
    request.getfixturevalue("monkeypatch").setattr(cuts, "CHARACTERS", 1)
    kind = request.param
    if kind == "ranks":
        return load_tokenizer(request.getfixturevalue("ranks"))
    if kind.startswith("unigram"):
        (tmp_path / "tokenizer.model").write_bytes(unigram(kind.split()[1]))
        return load_tokenizer(tmp_path)
    base, changes = LIKE.get(kind, (kind, {}))
    folder = write_folder(tmp_path, base)
    if changes:
        content = json.loads((folder / "tokenizer.json").read_text())
        (folder / "tokenizer.json").write_text(json.dumps(content | changes))
    return load_tokenizer(folder)


def test_the_first_tokens_of_a_text_are_those_of_the_whole(tokenizer):
    was_cut = []

    @settings(max_examples=80, derandomize=True, deadline=None)
    @given(TEXTS, st.integers(0, 12), st.booleans())
    def check(text, most, trim):
        how = {"add_bos": False, "add_eos": False, "trim_leading_whitespace": trim}
        whole, first = tokenizer.encode(text, **how), tokenizer.encode_first(text, most, **how)
        assert first[:most] == whole[:most]
        assert (len(first) > most) is (len(whole) > most)
        was_cut.append(len(first) < len(whole))

    check()
    assert sum(was_cut) > len(was_cut) / 5


def takes_chats(tokenizer) -> bool:
    """Return whether a chat template can be used: neither Llama 3's own form nor a loss of spaces allows it."""
    try:
        return hasattr(tokenizer, "template_variables") and bool(tokenizer.encode_chat("a \n b"))
    except DataError:
        return False


@pytest.mark.parametrize("form", [None, plain, marked])
def test_a_conversation_that_is_cut_has_the_same_tokens_and_mask(tokenizer, form):
    if form is not None and takes_chats(tokenizer):
        tokenizer.prompt_template = ChatTemplate(form(TEMPLATES["chatml"]), tokenizer.template_variables)
    known = tokenizer.cuts

    @settings(max_examples=15, derandomize=True, deadline=None)
    @given(st.lists(TEXTS, min_size=2, max_size=5), st.integers(2, 40), st.booleans())
    def check(texts, limit, inference):
        roles = ["user", "assistant"] * len(texts)
        turns = [Message(role, text, masked=role == "user") for role, text in zip(roles, texts, strict=False)]
        tokenizer.max_seq_len, tokenizer.cuts = limit, None
        try:
            whole = tokenizer({"messages": turns}, inference)
        except DataError:  # a character that SentencePiece writes otherwise
            return
        tokenizer.cuts = known
        assert tokenizer({"messages": turns}, inference) == whole

    check()


@pytest.mark.parametrize("template", [None, "plain", "marked"])
@pytest.mark.parametrize("kind", ["spm", "bytelevel", "llama_json"])
def test_a_long_text_costs_what_is_kept_of_it(kind, template, tmp_path, monkeypatch):
    source = template and {"plain": plain, "marked": marked}[template](TEMPLATES["llama3"])
    tokenizer = load_tokenizer(write_folder(tmp_path, kind, source), 50, template and "chat_template")
    encoded = []
    for name in ("encode", "encode_chat"):
        encode = getattr(tokenizer, name)
        monkeypatch.setattr(
            tokenizer, name, lambda text, *a, f=encode, **k: encoded.append(len(text)) or f(text, *a, **k)
        )
    if hasattr(tokenizer, "_encode_part"):
        encode = tokenizer._encode_part
        monkeypatch.setattr(
            tokenizer, "_encode_part", lambda text, trim: encoded.append(len(text)) or encode(text, trim)
        )
    costs = []
    for times in (1_000, 10_000):
        encoded.clear()
        long = "the quick brown fox " * times
        turns = [Message("user", "q", masked=True), Message("assistant", long)] * 2
        sample = tokenizer({"messages": turns})
        assert len(sample["tokens"]) == 50 and sample["truncated"]
        assert TextTokens(tokenizer)({"text": long})["truncated"]
        costs.append(sum(encoded))
    assert costs[0] == costs[1] < 5_000


def test_a_text_without_a_place_to_cut_is_encoded_whole(tmp_path, monkeypatch):
    tokenizer = load_tokenizer(write_folder(tmp_path, "bytelevel"))
    for text in ("市場" * 500, " " * 500, "a" * 500):
        assert tokenizer.encode_first(text, 5) == tokenizer.encode(text)
    monkeypatch.setattr(type(tokenizer), "cuts", property(lambda self: pytest.fail("asked for")))
    assert tokenizer.encode_first("a b " * 10, 5) == tokenizer.encode("a b " * 10), "a text that is not long"


@pytest.mark.parametrize(
    "changes",
    [
        words(r"\w+ \w+|\w|\W"),
        words(cuts.GPT2 + r"|x(?= y)"),
        {"pre_tokenizer": {"type": "Whitespace"}},
        {"normalizer": {"type": "Replace", "pattern": {"String": "a b"}, "content": "c"}},
        {"normalizer": {"type": "Sequence", "normalizers": [{"type": "NFC"}, {"type": "Nmt"}]}},
        {"model": {"dropout": 0.1}},
        {"pre_tokenizer": None, "model": {"ignore_merges": True}},
        {"pre_tokenizer": None, "model": {"end_of_word_suffix": "x"}},
    ],
    ids=str,
)
def test_where_to_cut_is_not_known_of_other_steps(changes):
    content = json.loads(trained("bytelevel")[1])
    assert cuts.cuts_of(Tokenizer.from_str(json.dumps(content))) is not None
    model = content["model"] | changes.get("model", {})
    assert cuts.cuts_of(Tokenizer.from_str(json.dumps(content | changes | {"model": model}))) is None


def test_no_cut_between_what_a_piece_joins():
    pattern = cuts.before_spaces(["▁a", "a", ">▁</", "▁▁", "b c"])
    text = "a> a  b é\n \xa0 市 c"
    assert [text[: cut.start()] for cut in pattern.finditer(text)] == ["a> a", "a> a  b é\n \xa0 市"]
    assert cuts.before_spaces([], cuts.ASCII).search("市 a b").start() == 3
