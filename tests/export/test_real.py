"""A real model to a GGUF and back, in llama.cpp's engine: `REAL_MODEL=folder pytest tests/export/test_real.py`."""

import os
from pathlib import Path

import pytest
import torch
import transformers

from tests.export.engine import Engine
from tests.export.gguf.test_model import demo_texts
from torchtune_lite.data import Message
from torchtune_lite.export import Options, export_model, import_gguf, open_source
from torchtune_lite.export.gguf.files import read_gguf
from torchtune_lite.export.gguf.pre_tokenizers import PROBE

FOLDER = Path(os.environ.get("REAL_MODEL", ""))
pytestmark = pytest.mark.skipif(
    not (FOLDER / "config.json").is_file(), reason="REAL_MODEL names no model's folder (make test-real)"
)
CHATS = [
    [("user", "Two lattes to go, please.")],
    [("user", "What colour is the sky?"), ("assistant", "Blue."), ("user", "  And at night, 12:30?\n")],
]
BAR = {"f32": 2e-3, "f16": 1e-2, "q8_0": 0.3}
"""Of the likeliest token. The engine computes less exactly with F16 weights: transformers reads that file without an
error, and its values are within the bar of F32 in a file of that type."""


def chats(tokenizer):
    for chat in CHATS:
        ids, _ = tokenizer.tokenize_messages([Message(role, text) for role, text in chat], add_eos=False)
        yield [{"role": role, "content": text} for role, text in chat], ids


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported")
    for kind in BAR:
        export_model(open_source(FOLDER), "gguf", folder / kind, Options("m", kind))
    return folder


def test_texts_and_chats_have_their_tokens(exported):
    tokenizer, engine = open_source(FOLDER).tokenizer, Engine(exported / "f16/m-f16.gguf")
    texts = [*demo_texts(), PROBE, " two  spaces ", "é市𝄞\n\n lines"]
    assert [engine.encode(text) for text in texts] == [tokenizer.encode(text, False, False) for text in texts]
    for chat, ids in chats(tokenizer):
        assert engine.chat(chat) == ids


@pytest.mark.parametrize("kind", BAR)
def test_log_probabilities_are_within_the_bar(kind, exported):
    model = transformers.AutoModelForCausalLM.from_pretrained(FOLDER, dtype=torch.float32).eval()
    engine = Engine(exported / kind / f"m-{kind}.gguf")
    for _, ids in chats(open_source(FOLDER).tokenizer):
        with torch.no_grad():
            ours = model(torch.tensor([ids])).logits[0, -1].log_softmax(-1)
        likeliest = int(ours.argmax())
        assert abs(ours[likeliest].item() - engine.log_probs(ids)[likeliest]) < BAR[kind]


def test_an_f16_file_is_exact_and_its_values_are_within_the_bar_of_f32(exported, tmp_path):
    """What is beyond that in F16 is the arithmetic of the engine: transformers reads the same file without an error."""
    model = transformers.AutoModelForCausalLM.from_pretrained(FOLDER, dtype=torch.float32).eval()
    read = transformers.AutoModelForCausalLM.from_pretrained(
        exported / "f16", gguf_file="m-f16.gguf", dtype=torch.float32
    ).eval()
    import_gguf(exported / "f16/m-f16.gguf", tmp_path / "back", "fp32")
    export_model(open_source(tmp_path / "back"), "gguf", tmp_path / "wide", Options("m", "f32"))
    engine = Engine(tmp_path / "wide/m-f32.gguf")
    for _, ids in chats(open_source(FOLDER).tokenizer):
        with torch.no_grad():
            ours, theirs = (each(torch.tensor([ids])).logits[0, -1].log_softmax(-1) for each in (model, read))
        assert (ours - theirs).abs().max() < 1e-3
        likeliest = int(ours.argmax())
        assert abs(ours[likeliest].item() - engine.log_probs(ids)[likeliest]) < BAR["f32"]


def test_what_is_imported_answers_the_same_everywhere(exported, tmp_path):
    import_gguf(exported / "f16/m-f16.gguf", tmp_path / "back", "fp32")
    source = open_source(tmp_path / "back")
    export_model(source, "gguf", tmp_path / "again", Options("m", "f16"))
    first, second = (read_gguf(folder / "m-f16.gguf") for folder in (exported / "f16", tmp_path / "again"))
    for name, tensor in first[1].items():
        assert torch.equal(second[1][name].read(), tensor.read()), name
    assert {key for key, value in first[0].items() if second[0].get(key) != value} <= {"tokenizer.ggml.scores"}
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "back", dtype=torch.float32).eval()
    engines = [Engine(folder / "m-f16.gguf") for folder in (exported / "f16", tmp_path / "again")]
    for _, ids in chats(source.tokenizer):
        greedy = model.generate(torch.tensor([ids]), max_new_tokens=12, do_sample=False, eos_token_id=None)[0]
        answers = [engine.greedy(ids, 12) for engine in engines]
        assert answers[0] == answers[1] == greedy[len(ids) :].tolist()[: len(answers[0])]
