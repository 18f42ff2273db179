"""Each architecture in llama.cpp's own engine, against transformers."""

import json

import pytest
import torch
import transformers

from tests.export.engine import Engine
from tests.export.models import BASE, make, prompts, save
from tests.models.tiny import TINY
from torchtune_lite.data import Llama2ChatTemplate, Message, load_tokenizer
from torchtune_lite.data.tokenizers.template_export import as_chat_template
from torchtune_lite.errors import ConfigError
from torchtune_lite.export import Options, export_model, open_source
from torchtune_lite.export.gguf import tensors
from torchtune_lite.export.gguf.files import read_gguf
from torchtune_lite.export.gguf.pre_tokenizers import PROBE

BARS = {"f32": 1e-4, "f16": 5e-3, "q8_0": 8e-2}
"""Of log-probabilities, over the spread of the logits where that is more than 1; with q8_0 the engine quantises the
activations, too, to which random weights are more sensitive than trained ones."""
MANY_LAYERS = {"f32": 1e-4, "f16": 1e-2, "q8_0": 0.3}
"""Of EXAONE 4, whose norms come last, and raise the rounding."""
GELU = 2e-3  # the engine looks it up in a table of float16
TRAINED = {"f32": 2e-3, "f16": 5e-3, "q8_0": 5e-2}


def write(folder, kind="f32"):
    export_model(open_source(folder), "gguf", folder / kind, Options("m", kind))
    return folder / kind / f"m-{kind}.gguf"


def context(file):
    return next(value for key, value in read_gguf(file)[0].items() if key.endswith("context_length"))


def next_logits(model, texts):
    """The logits after each text; `model` makes the model anew, since some remember the lengths they have seen."""
    with torch.no_grad():
        return [model()(ids).logits[0, -1] for ids in texts]


def errors(expected, engine, texts):
    """Yield how far the likeliest next tokens are off, over the spread of the logits, and whether the first agrees."""
    for logits, ids in zip(expected, texts, strict=True):
        ours, theirs = logits.log_softmax(-1), engine.log_probs(ids[0].tolist(), 3)
        worst = max(abs(ours[token].item() - value) for token, value in theirs.items())
        yield worst / max(1.0, logits.std().item()), int(ours.argmax()) == next(iter(theirs))


@pytest.mark.parametrize("name", TINY)
def test_the_engine_computes_what_transformers_does(name, tmp_path, monkeypatch):
    folder = save(make(name, monkeypatch), tmp_path)
    files = {kind: write(folder, kind) for kind in BARS}
    longest = min(context(files["f32"]), 101) - 1
    texts = prompts(*(length for length in (3, 30, 100) if length <= longest))
    if name in ("phi3_128k", "phi4_mini"):  # whose factors the engine chooses by the context, not by the text
        texts = texts[-1:]
    expected = next_logits(lambda: make(name, monkeypatch), texts)
    for kind, bar in BARS.items():
        bar = max(bar, GELU) if name.startswith("gemma") else bar
        bar = MANY_LAYERS[kind] if name == "exaone4" else bar
        for error, agrees in errors(expected, Engine(files[kind]), texts):
            assert error < bar and (agrees or kind == "q8_0"), (kind, error)


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("llama3", ("interleaved", lambda rows, num_heads: rows)),  # q and k as they are
        ("llama3_1", ("rope_factors", lambda config: {})),
        ("gemma", ("_changed", lambda architecture, config, name, weight, back=False: weight)),  # norms without 1
    ],
)
def test_a_fault_shows(name, fault, tmp_path, monkeypatch):
    folder = save(make(name, monkeypatch), tmp_path)
    monkeypatch.setattr(tensors, *fault)
    texts = prompts(30, 100)
    found = errors(next_logits(lambda: make(name, monkeypatch), texts), Engine(write(folder)), texts)
    assert max(error for error, _ in found) > 0.05


def test_short_texts_of_longrope_have_the_short_factors_in_a_short_context(tmp_path, monkeypatch):
    original = {"original_max_position_embeddings": 256}
    rope = TINY["phi3_128k"][1]["rope_parameters"] | original
    more = original | {"max_position_embeddings": 1024, "rope_parameters": rope}
    engine = Engine(write(save(make("phi3_128k", monkeypatch, **more), tmp_path)), context=256)
    texts = prompts(3, 30)
    for error, agrees in errors(next_logits(lambda: make("phi3_128k", monkeypatch), texts), engine, texts):
        assert error < BARS["f32"] and agrees


@pytest.mark.parametrize("kind", TRAINED)
def test_the_demo_model_is_within_the_bars(kind, tmp_path):
    export_model(open_source(BASE), "gguf", tmp_path / kind, Options("demo", kind))
    engine = Engine(tmp_path / kind / f"demo-{kind}.gguf")
    model = transformers.AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.float32)
    for ids in ([1, 300, 400, 500], [1, *range(20, 81)]):
        with torch.no_grad():
            ours = model(torch.tensor([ids])).logits[0, -1].log_softmax(-1)
        token, value = next(iter(engine.log_probs(ids).items()))
        assert token == int(ours.argmax()) and abs(ours[token].item() - value) < TRAINED[kind]
    prompt = [1, 300, 400, 500]
    if kind == "f32":
        greedy = model.generate(torch.tensor([prompt]), max_new_tokens=12, do_sample=False)[0, 4:].tolist()
        assert engine.greedy(prompt, 12) == greedy


def demo_texts():
    rows = (BASE.parent / "addresses_test.jsonl").read_text(encoding="utf-8").splitlines()[:200]
    return [next(value for value in json.loads(row).values() if isinstance(value, str)) for row in rows]


def test_texts_and_chats_have_the_tokens_that_they_had_in_training(tmp_path, monkeypatch):
    folder = save(make("llama2", monkeypatch), tmp_path / "bare")
    tokenizer, engine = load_tokenizer(folder), Engine(write(folder))
    texts = [*demo_texts(), PROBE, "two  spaces ", "é市𝄞"]
    assert len(texts) > 200
    assert [engine.encode(text) for text in texts] == [tokenizer.encode(text, False, False) for text in texts]

    folder = save(make("llama2", monkeypatch), tmp_path / "chat")
    template = as_chat_template(load_tokenizer(folder, prompt_template=Llama2ChatTemplate()))
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    tokenizer, engine = load_tokenizer(folder, prompt_template="chat_template"), Engine(write(folder))
    for text in [*demo_texts()[:20], "two  spaces"]:
        ids, _ = tokenizer.tokenize_messages([Message("user", text)], add_eos=False)
        assert engine.chat([{"role": "user", "content": text}]) == ids


def test_what_is_computed_otherwise_is_refused_in_one_line(tmp_path, monkeypatch):
    folder = save(make("gemma2", monkeypatch, query_pre_attn_scalar=48), tmp_path)
    with pytest.raises(ConfigError, match=r"no gemma2 model with scores scaled by 0.144338 instead of 0.125"):
        write(folder)
    assert not (folder / "f32").exists()


def test_a_window_that_the_engine_lacks_bounds_the_context(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("torchtune_lite.export.gguf.model.log.propagate", True)
    file = write(save(make("mistral_v01", monkeypatch), tmp_path))
    assert context(file) == 8
    assert "computes no windows in llama models: the context is 8 tokens" in caplog.text
