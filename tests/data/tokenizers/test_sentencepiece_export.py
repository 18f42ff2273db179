import json
import random

import pytest
import sentencepiece
from sentencepiece import sentencepiece_model_pb2
from transformers import AutoTokenizer

from tests.data.chats import write_folder
from torchtune_lite.data import SentencePieceTokenizer
from torchtune_lite.data.tokenizers.sentencepiece_export import TOKENIZER_CLASS, USER_DEFINED, as_tokenizer_json

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


def exported(folder, **kwargs):
    """Write the tokenizer.json of a folder's model; return the tokenizer and that of transformers."""
    tokenizer = SentencePieceTokenizer(folder / "tokenizer.model", **kwargs)
    (folder / "tokenizer.json").write_text(json.dumps(as_tokenizer_json(tokenizer)))
    config = json.loads((folder / "tokenizer_config.json").read_text()) | {"tokenizer_class": TOKENIZER_CLASS}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return tokenizer, AutoTokenizer.from_pretrained(folder)


def test_transformers_gives_the_tokens_of_sentencepiece(folder):
    ours = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    texts = [text for text in TEXTS if "<s>" not in text]
    bare = AutoTokenizer.from_pretrained(folder)
    assert [bare(text, add_special_tokens=False).input_ids for text in texts] != ours.encode(texts)
    tokenizer, theirs = exported(folder)
    for text in texts:
        assert theirs(text, add_special_tokens=False).input_ids == ours.encode(text), text
        assert theirs(text).input_ids == [tokenizer.bos_id, *ours.encode(text)]
        assert theirs.decode(ours.encode(text)) == ours.decode(ours.encode(text))
    assert len(theirs) == tokenizer.vocab_size and theirs.eos_token_id == tokenizer.eos_id


@pytest.mark.parametrize("template", [None, "chat_template"])
@pytest.mark.parametrize("config", [{}, {"legacy": True}, {"add_prefix_space": False}], ids=str)
@pytest.mark.parametrize("dummy_prefix", [True, False])
def test_any_text_is_prefixed_as_in_training(tmp_path, template, config, dummy_prefix):
    """A seeded sweep over texts of a few characters, plain and in a chat template, with special tokens between."""
    folder = write_folder(tmp_path, "spm_plain", "{{ messages[0].content }}</s>", **config)
    model = sentencepiece_model_pb2.ModelProto.FromString((folder / "tokenizer.model").read_bytes())
    model.normalizer_spec.add_dummy_prefix = dummy_prefix
    (folder / "tokenizer.model").write_bytes(model.SerializeToString())
    if template and not dummy_prefix and config.get("add_prefix_space") is not False:
        return  # the chat's spaces cannot be told apart from the prefix
    tokenizer, theirs = exported(folder, prompt_template=template)
    draw = random.Random(0)
    parts = [" ", "  ", "\n", "\t", "the", "fox", "a", "é", "市", "𝄞", "?"] + ["<s>", "</s>"] * bool(template)
    for _ in range(300):
        text = "".join(draw.choices(parts, k=draw.randrange(7)))
        expected = tokenizer.encode_chat(text)[0] if template else tokenizer.encode(text, False, False)
        assert theirs(text, add_special_tokens=False).input_ids == expected, text


def test_a_model_of_another_kind_is_not_written(char_model, folder):
    assert as_tokenizer_json(SentencePieceTokenizer(char_model)) is None
    path = folder / "tokenizer.model"
    whole = path.read_bytes()
    for spec, field, value in (
        ("normalizer_spec", "remove_extra_whitespaces", True),
        ("normalizer_spec", "escape_whitespaces", False),
        ("trainer_spec", "treat_whitespace_as_suffix", True),
    ):
        model = sentencepiece_model_pb2.ModelProto.FromString(whole)
        setattr(getattr(model, spec), field, value)
        path.write_bytes(model.SerializeToString())
        assert as_tokenizer_json(SentencePieceTokenizer(path)) is None
