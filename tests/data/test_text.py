import pytest

from torchtune_lite.data import ColumnText, SentencePieceTokenizer, TextTokens
from torchtune_lite.errors import DataError


@pytest.mark.parametrize(
    "max_seq_len, add_eos, expected",
    [(None, True, "⟨▁abc▁⟩"), (None, False, "⟨▁abc▁"), (8, True, "⟨▁abc▁⟩"), (7, True, "⟨▁abc▁"), (4, True, "⟨▁a")],
)
def test_text_is_cut_one_below_the_limit_and_never_masked(char_model, spell, max_seq_len, add_eos, expected):
    sample = TextTokens(SentencePieceTokenizer(char_model, max_seq_len), add_eos)({"text": "abc "})
    assert spell(sample["tokens"]) == expected
    assert sample["mask"] == [False] * len(expected)
    assert sample["truncated"] is (max_seq_len in (7, 4))


def test_reads_a_column():
    assert ColumnText("body")({"body": "x"}) == {"text": "x"}
    assert [note.subject for note in ColumnText("body")({"body": "x", "id": 1})["notes"]] == ["column 'id'"]
    assert ColumnText("body")({"body": 1.5})["text"] == "1.5"
    with pytest.raises(DataError, match=r"missing column 'text' \(has: body\); set column to"):
        ColumnText("text")({"body": "x"})
    with pytest.raises(DataError, match="column 'text' must be text, got list"):
        ColumnText("text")({"text": []})


def test_a_text_is_surely_whole_where_its_bytes_fit(char_model):
    long = SentencePieceTokenizer(char_model, 12)
    assert TextTokens(long)({"text": "abcdefgh"})["truncated"] is False
    assert [TextTokens(long).surely_whole({"text": text}) for text in ("abcdefgh", "abcdefghi", "市市")] == [1, 0, 1]
    assert TextTokens(SentencePieceTokenizer(char_model)).surely_whole({"text": "x" * 9999})
    assert not TextTokens(SentencePieceTokenizer(char_model), add_eos=False).surely_whole({"text": " "})


def test_a_text_to_be_split_over_packs_is_not_cut(char_model, spell):
    tokenizer = SentencePieceTokenizer(char_model, 4)
    split, cut = TextTokens(tokenizer, split_across_pack=True), TextTokens(tokenizer)
    assert spell(split({"text": "abc"})["tokens"]) == "⟨▁a" == spell(cut.for_packs({"text": "abc"})["tokens"])
    assert spell(split.for_packs({"text": "abc"})["tokens"]) == "⟨▁abc⟩"
    assert split.for_packs.max_seq_len == 4 and split.for_packs.surely_whole({"text": "x" * 99})
