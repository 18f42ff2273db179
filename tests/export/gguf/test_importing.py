"""What is exported and imported is the model that it was, in transformers and here, for every architecture."""

import json

import gguf
import pytest
import torch
import transformers

from tests.export.models import make, prompts, save
from tests.models.tiny import TINY
from torchtune_lite.errors import CheckpointError
from torchtune_lite.export import Options, export_model, import_gguf, open_source
from torchtune_lite.export.comparison import log_probs
from torchtune_lite.export.gguf.files import read_gguf


def written(folder, kind="f32"):
    export_model(open_source(folder), "gguf", folder / "gguf", Options("m", kind))
    return folder / f"gguf/m-{kind}.gguf"


@pytest.mark.parametrize("name", TINY)
def test_a_model_comes_back(name, tmp_path, monkeypatch):
    file = written(save(make(name, monkeypatch), tmp_path / "model"))
    context = next(value for key, value in read_gguf(file)[0].items() if key.endswith("context_length"))
    said = import_gguf(file, tmp_path / "back")
    assert said.endswith("in float32")
    [ids] = prompts(min(context, 101) - 1)
    back = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "back", attn_implementation="eager").eval()
    with torch.no_grad():
        expected, found = make(name, monkeypatch)(ids).logits, back(ids).logits
    assert (found - expected).abs().max() < 1e-5 * expected.abs().max()
    source = open_source(tmp_path / "back")
    assert (log_probs(source.model, source.base, ids) - expected.log_softmax(-1)).abs().max() < 1e-3
    tokens = open_source(tmp_path / "model").tokenizer.encode("hello,  1987 高雄 é", False, False)
    assert source.tokenizer.encode("hello,  1987 高雄 é", False, False) == tokens


@pytest.mark.parametrize(
    ("kind", "dtype"), [("f32", "float32"), ("f16", "float16"), ("bf16", "bfloat16"), ("q8_0", "bfloat16")]
)
def test_weights_have_the_dtype_of_the_file_or_bf16(kind, dtype, llama, tmp_path):
    import_gguf(written(llama, kind), tmp_path / "back")
    assert json.loads((tmp_path / "back/config.json").read_text())["dtype"] == dtype
    import_gguf(llama / f"gguf/m-{kind}.gguf", tmp_path / "again", "fp32")
    assert json.loads((tmp_path / "again/config.json").read_text())["dtype"] == "float32"


def test_gemma_is_never_float16(tmp_path, monkeypatch):
    file = written(save(make("gemma", monkeypatch), tmp_path / "model"), "f16")
    assert import_gguf(file, tmp_path / "back").endswith("in bfloat16")


def test_what_is_imported_is_exported_to_the_same_file(llama, tmp_path):
    (llama / "chat_template.jinja").write_text("{{ bos_token }}{{ messages[-1].content }}{{ eos_token }}")
    first = written(llama)
    import_gguf(first, tmp_path / "back")
    second = written(tmp_path / "back")
    (keys, tensors), (others, other_tensors) = read_gguf(first), read_gguf(second)
    assert keys.keys() == others.keys()
    same = {key for key in keys if keys[key] == others[key]}
    assert keys.keys() - same <= {"tokenizer.ggml.scores"}  # those of a tokenizer.json are the places of its merges
    assert all(torch.equal(tensors[name].read(), other_tensors[name].read()) for name in tensors)


def refused(tmp_path, keys, problem):
    writer = gguf.GGUFWriter(tmp_path / "x.gguf", keys.pop("architecture", "llama"))
    for key, value in keys.items():
        writer.add_string(key, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(CheckpointError, match=problem):
        import_gguf(tmp_path / "x.gguf", tmp_path / "back")
    assert not (tmp_path / "back").exists()


@pytest.mark.parametrize(
    ("keys", "problem"),
    [
        ({"architecture": "mamba"}, "x.gguf: is a 'mamba' model, which is not served; served are models of llama, mis"),
        ({"general.type": "adapter"}, "x.gguf: is of type adapter, which is not served"),
        ({}, "x.gguf: has no token_embd.weight, so no model is in it"),
    ],
)
def test_what_is_no_model_that_is_served_is_one_line(keys, problem, tmp_path):
    refused(tmp_path, keys, problem)


def test_a_file_that_lacks_a_tensor_is_one_line(llama, tmp_path):
    data = written(llama).read_bytes()
    (tmp_path / "x.gguf").write_bytes(data.replace(b"blk.1.ffn_up", b"blk.7.ffn_up"))
    with pytest.raises(CheckpointError, match=r"its model does not fit: 1 weight is missing \(layers.1.mlp.w3"):
        import_gguf(tmp_path / "x.gguf", tmp_path / "back")
