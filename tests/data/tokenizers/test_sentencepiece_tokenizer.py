import io

import pytest
import sentencepiece
from sentencepiece import sentencepiece_model_pb2

from tests.data.chats import write_folder
from torchtune_lite.data import Message, SentencePieceTokenizer
from torchtune_lite.errors import DataError


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
        (b'{"version": "1.0"}', "is a JSON file, not a SentencePiece model.*HuggingFaceModelTokenizer"),
        (b"IQ== 0\nIg== 1\n", "is a list of byte-pair ranks.*Llama3Tokenizer"),
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


def test_a_part_keeps_its_line_breaks_where_the_model_has_a_piece_of_two(tmp_path):
    """Llama 2's model has none, and torchtune relies on it."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["a b", "c d"]),
        model_writer=model,
        vocab_size=270,
        model_type="bpe",
        byte_fallback=True,
        user_defined_symbols=["\n\n"],
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    path = tmp_path / "tokenizer.model"
    path.write_bytes(model.getvalue())
    tokenizer = SentencePieceTokenizer(path)
    tokens, _ = tokenizer.tokenize_messages([Message("user", "a\n"), Message("assistant", "\nb")])
    assert tokenizer.decode(tokens) == "a\n\nb"


def test_refuses_a_chat_template_where_the_text_is_changed(tmp_path):
    folder = write_folder(tmp_path, "spm", "{% for m in messages %}{{ m.content + eos_token }}{% endfor %}")
    model = sentencepiece_model_pb2.ModelProto.FromString((folder / "tokenizer.model").read_bytes())
    model.normalizer_spec.remove_extra_whitespaces = True
    (folder / "tokenizer.model").write_bytes(model.SerializeToString())
    tokenizer = SentencePieceTokenizer(folder / "tokenizer.model", prompt_template="chat_template")
    with pytest.raises(DataError, match="changes spaces or characters, so.*tokenizer.json"):
        tokenizer.tokenize_messages([Message("user", "a  b", True), Message("assistant", "c")])
