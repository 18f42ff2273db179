"""An adapter in llama.cpp's engine, against PEFT."""

import gguf
import pytest
import torch

from tests.export.engine import Engine
from tests.export.models import make, prompts, save
from torchtune_lite.errors import ConfigError
from torchtune_lite.export import Options, export_model, open_source

LLAMA = {"target_modules": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]}


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("llama3", LLAMA | {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"k_proj": 3}}),
        ("qwen3", LLAMA | {"use_rslora": True}),
        ("phi4", {"target_modules": ["qkv_proj", "gate_up_proj", "o_proj"]}),
    ],
)
def test_the_engine_computes_what_peft_does(name, config, adapt, tmp_path, monkeypatch):
    base = save(make(name, monkeypatch), tmp_path / "base")
    folder, adapted = adapt(base, "adapter", **config)
    export_model(open_source(base), "gguf", tmp_path / "model", Options("m", "f32"))
    found = export_model(open_source(folder), "gguf-adapter", tmp_path / "lora", Options("m"))
    assert found.largest < 1e-4
    engine = Engine(tmp_path / "model/m-f32.gguf", lora=tmp_path / "lora/m-lora.gguf")
    for ids in prompts(3, 30):
        with torch.no_grad():
            logits = adapted(ids).logits[0, -1]
        ours = logits.log_softmax(-1)
        error = max(abs(ours[token].item() - value) for token, value in engine.log_probs(ids[0].tolist()).items())
        assert error < 1e-4 * max(1.0, logits.std().item())


def test_a_file_says_what_it_is(llama, adapt, tmp_path):
    folder, _ = adapt(llama, "adapter")
    export_model(open_source(folder), "gguf-adapter", tmp_path / "lora", Options("m"))
    reader = gguf.GGUFReader(tmp_path / "lora/m-lora.gguf")
    keys = {name: field.contents() for name, field in reader.fields.items()}
    assert keys["general.type"] == "adapter" and keys["adapter.type"] == "lora" and keys["adapter.lora.alpha"] == 8
    names = {tensor.name for tensor in reader.tensors}
    assert {f"blk.1.attn_q.weight.lora_{x}" for x in "ab"} <= names and len(names) == 2 * 2 * 3


def test_what_llama_cpp_cannot_load_is_refused(llama, adapt, tmp_path):
    folder, _ = adapt(llama, "adapter", use_dora=True)
    with pytest.raises(
        ConfigError, match="is DoRA, whose function no LoRA has: export the merged model, --to hf or gguf"
    ):
        export_model(open_source(folder), "gguf-adapter", tmp_path / "lora", Options("m"))
    with pytest.raises(ConfigError, match="is a merged model and has no adapter"):
        export_model(open_source(llama), "gguf-adapter", tmp_path / "lora", Options("m"))
