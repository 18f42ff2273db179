"""The embedded tokenizer: Llama's special tokens, a piece for every character, texts that decode to themselves."""

from pathlib import Path
from random import Random

import pytest
from sentencepiece import SentencePieceProcessor

from torchtune_lite.assets import corpus, make_tokenizer

COMMITTED = Path(make_tokenizer.__file__).parent / "base" / "tokenizer.model"


@pytest.fixture(scope="module")
def tokenizer() -> SentencePieceProcessor:
    return SentencePieceProcessor(str(COMMITTED))


def test_the_special_tokens_are_llamas(tokenizer):
    assert [tokenizer.unk_id(), tokenizer.bos_id(), tokenizer.eos_id()] == [0, 1, 2]


def test_a_chinese_character_is_a_piece_of_its_own(tokenizer):
    assert tokenizer.encode("臺北市大安區仁愛路四段", out_type=str) == ["▁", *"臺北市大安區仁愛路四段"]


def test_the_joints_of_json_and_of_the_template_are_single_pieces(tokenizer):
    pieces = tokenizer.encode('[INST] 市 [/INST] {"city": "市", "town": "區"}', out_type=str)
    assert pieces == [
        "▁", "[INST]", "▁", "市", "▁", "[/INST]", "▁", '{"', "city", '":▁"', "市", '",▁"', "town", '":▁"', "區", '"}',
    ]  # fmt: skip


def test_text_comes_back_whole(tokenizer):
    rng = Random(2)
    texts = [corpus.text(rng) for _ in range(300)] + ["鱻 emoji 🙂 ünïcode"]
    assert [tokenizer.decode(tokenizer.encode(text)) for text in texts] == texts


def test_the_committed_file_is_what_the_script_writes(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["make_tokenizer", "--out", str(tmp_path)])
    make_tokenizer.main()
    written = SentencePieceProcessor(str(tmp_path / "tokenizer.model"))
    committed = SentencePieceProcessor(str(COMMITTED))
    pieces = [[t.id_to_piece(i) for i in range(t.vocab_size())] for t in (written, committed)]
    assert pieces[0] == pieces[1]
