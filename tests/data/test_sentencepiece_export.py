import json

import pytest
import sentencepiece
from sentencepiece import sentencepiece_model_pb2
from transformers import AutoTokenizer

from tests.data.chats import write_folder
from torchtune_lite.data import SentencePieceTokenizer
from torchtune_lite.data.sentencepiece_export import TOKENIZER_CLASS, USER_DEFINED, as_tokenizer_json

TEXTS = ["a  b   the    fox", "  two  spaces\n\nand  lines", "é市𝄞  [INST] what?", 'the": "fox": "', "héllo<s>  "]


@pytest.fixture
def folder(tmp_path):
    """A tokenizer.model whose pieces of several spaces have the lowest scores, as in Llama 2's."""
    folder = write_folder(tmp_path, "spm")
    model = sentencepiece_model_pb2.ModelProto.FromString((folder / "tokenizer.model").read_bytes())
    for piece in model.pieces:
        if set(piece.piece) == {"▁"} and len(piece.piece) > 1:
            piece.piece = "▁" + piece.piece + "▁"  # out of the way
    first = next(i for i, piece in enumerate(model.pieces) if piece.type == piece.NORMAL)
    own = type(model.pieces[first])(piece='":▁"', type=USER_DEFINED)
    model.pieces.insert(first, own)
    model.pieces.insert(first, type(model.pieces[first])(piece="▁▁", score=-1e9))
    (folder / "tokenizer.model").write_bytes(model.SerializeToString())
    return folder


def tokens(folder):
    """The tokens of transformers and of SentencePiece."""
    theirs = AutoTokenizer.from_pretrained(folder)
    ours = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    texts = [text for text in TEXTS if not text.startswith(" ") and "<s>" not in text]
    return [theirs(text, add_special_tokens=False).input_ids for text in texts], ours.encode(texts)


def test_transformers_gives_the_tokens_of_sentencepiece(folder):
    tokenizer = SentencePieceTokenizer(folder / "tokenizer.model")
    theirs, ours = tokens(folder)
    assert theirs != ours  # of the bare model
    (folder / "tokenizer.json").write_text(json.dumps(as_tokenizer_json(tokenizer)))
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, "tokenizer_class": TOKENIZER_CLASS}))
    theirs, ours = tokens(folder)
    assert theirs == ours
    loaded = AutoTokenizer.from_pretrained(folder)
    for text in TEXTS:
        found = tokenizer.encode_chat(text)[0]
        assert loaded(text, add_special_tokens=False).input_ids == found
        assert loaded.decode(found, skip_special_tokens=True) == tokenizer.decode(found)
    assert len(loaded) == tokenizer.vocab_size and loaded.eos_token_id == tokenizer.eos_id


def test_a_model_of_another_kind_is_not_written(char_model, folder):
    assert as_tokenizer_json(SentencePieceTokenizer(char_model)) is None
    path = folder / "tokenizer.model"
    model = sentencepiece_model_pb2.ModelProto.FromString(path.read_bytes())
    model.normalizer_spec.remove_extra_whitespaces = True
    path.write_bytes(model.SerializeToString())
    assert as_tokenizer_json(SentencePieceTokenizer(path)) is None
