"""A model from the cache is the quantised one bit for bit; a useless cache is rebuilt, with one warning."""

import json
import logging
import os
import shutil
from pathlib import Path

import pytest
import torch
from torchtune_lite.models.llama2 import qlora_llama2

from torchtune_lite.checkpoint import FullModelHFCheckpointer, model_weights, nf4_cache
from torchtune_lite.checkpoint.nf4_cache import fingerprint
from torchtune_lite.checkpoint.store.manifest import MANIFEST, write_manifest
from torchtune_lite.peft import dequantize, is_quantized, nf4_parts

ADAPTERS = {"lora_attn_modules": ["q_proj", "output_proj"], "apply_lora_to_mlp": True}


@pytest.fixture
def load(hf_base, tmp_path: Path, caplog, monkeypatch):
    """Load the base from a folder of its own; return the parts of its NF4 weights, and the log."""
    shutil.copytree(hf_base.dir, tmp_path / "base")
    monkeypatch.setattr(logging.getLogger("torchtune_lite"), "propagate", True)

    def load(model=None, *, dtype=torch.bfloat16, cache_dir=tmp_path / "cache", cached=True, **adapters):
        checkpointer = FullModelHFCheckpointer(tmp_path / "base", cache_quantized=cached)
        if model is None:
            with torch.device("meta"):
                model = qlora_llama2(**checkpointer.decoder_args, **(adapters or ADAPTERS))
        caplog.clear()
        with caplog.at_level(logging.INFO):
            checkpointer.load(model, device="cpu", dtype=dtype, cache_dir=cache_dir)
        quantized = {name: nf4_parts(p) for name, p in model.named_parameters() if is_quantized(p)}
        assert len(quantized) > 0 and not any(p.is_meta for p in model.parameters())
        load.model = model
        return quantized, caplog.messages

    return load


def same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(
        x.dtype == y.dtype and torch.equal(x, y) for name in a for x, y in zip(a[name], b[name], strict=True)
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
def test_what_is_read_is_what_was_quantised(load, tmp_path: Path, monkeypatch, dtype):
    expected, messages = load(cached=False, dtype=dtype)
    assert messages == [] and not (tmp_path / "cache").exists()
    written, [message] = load(dtype=dtype)
    assert message.startswith("wrote 10 weights (0.1 MB) in ") and same(written, expected)
    [folder] = (tmp_path / "cache").iterdir()
    assert folder.name.startswith("base-") and {file.name for file in folder.iterdir()} == {
        "MANIFEST.json",
        "nf4.safetensors",
    }

    monkeypatch.setattr(model_weights, "quantize", lambda weight: pytest.fail("quantised again"))
    read, [message] = load(dtype=dtype)
    assert message.startswith("read 10 weights (0.1 MB) in ") and message.endswith(str(folder))
    assert same(read, expected)
    plain = load.model.layers[0].attn.k_proj.weight
    assert plain.dtype == dtype and plain.abs().max() > 0
    assert load.model.layers[0].attn.q_proj.weight.requires_grad is False

    load.model.layers[0].attn.q_proj.weight.data.copy_(load.model.layers[0].attn.output_proj.weight)
    assert same(load(load.model, dtype=dtype)[0], expected)  # in place


def test_the_file_is_not_shown_through(load, tmp_path: Path):
    expected, _ = load()
    quantized, _ = load()
    [folder] = (tmp_path / "cache").iterdir()
    (folder / "nf4.safetensors").write_bytes(bytes((folder / "nf4.safetensors").stat().st_size))
    assert same(quantized, expected)


def test_another_base_dtype_selection_or_format_is_another_cache(load, tmp_path: Path, monkeypatch):
    def made() -> int:
        return len(list((tmp_path / "cache").iterdir()))

    load()
    for kwargs in ({"dtype": torch.float32}, {"lora_attn_modules": ["q_proj"]}):
        before = made()
        assert load(**kwargs)[1][0].startswith("wrote") and made() == before + 1
    os.utime(tmp_path / "base" / "model.safetensors")
    assert load()[1][0].startswith("wrote") and made() == 4
    config = json.loads((tmp_path / "base" / "config.json").read_text())
    config["rope_parameters"]["rope_theta"] = 600.0
    (tmp_path / "base" / "config.json").write_text(json.dumps(config))
    assert load()[1][0].startswith("wrote") and made() == 5
    monkeypatch.setattr(nf4_cache, "FORMAT", nf4_cache.FORMAT + 1)
    assert load()[1][0].startswith("wrote") and made() == 6
    assert load()[1][0].startswith("read") and made() == 6


@pytest.mark.parametrize("damage", ["truncated", "garbage", "absent", "a bit", "other weights", "breaks off"])
def test_a_damaged_cache_is_made_anew(load, tmp_path: Path, monkeypatch, damage: str):
    expected, _ = load()
    [folder] = (tmp_path / "cache").iterdir()
    file = folder / "nf4.safetensors"
    if damage == "truncated":
        os.truncate(file, file.stat().st_size - 1)
    elif damage == "garbage":
        file.write_bytes(b"\xff" * 100)
    elif damage == "absent":
        file.unlink()
    elif damage == "a bit":
        content = bytearray(file.read_bytes())
        content[-1000] ^= 4  # of a value: nothing else can tell
        file.write_bytes(content)
    elif damage == "other weights":
        file.write_bytes(file.read_bytes().replace(b"layers.0.mlp.w1.", b"layers.9.mlp.w1."))
        (folder / MANIFEST).unlink()
        write_manifest(folder, run_id=None, step=None)
    else:
        whole, calls = nf4_cache.from_nf4_parts, []

        def breaking(*args):
            calls.append(args)
            if len(calls) == 3:
                raise OSError("Input/output error")
            return whole(*args)

        monkeypatch.setattr(nf4_cache, "from_nf4_parts", breaking)
    quantized, [warning, message] = load()
    assert warning.startswith(f"the NF4 cache {folder} cannot be read and is rebuilt: ") and "\n" not in warning
    assert message.startswith("wrote") and same(quantized, expected)
    quantized, [message] = load()
    assert message.startswith("read") and same(quantized, expected)


def test_a_cache_that_cannot_be_kept_is_one_warning(load, tmp_path: Path):
    (tmp_path / "file").touch()
    expected, _ = load(cached=False)
    quantized, [message] = load(cache_dir=tmp_path / "file" / "cache")
    assert message.startswith("no NF4 cache is kept: ") and same(quantized, expected)
    quantized, [message] = load(cache_dir=None)
    assert message == "checkpointer.cache_quantized is without effect: this recipe keeps no cache"
    assert same(quantized, expected)


def test_a_model_without_nf4_has_no_cache(hf_base, build, caplog, tmp_path: Path):
    checkpointer = FullModelHFCheckpointer(hf_base.dir, cache_quantized=True)
    model = build(checkpointer)
    checkpointer.load(model, device="cpu", dtype=torch.float32, cache_dir=tmp_path / "cache")
    assert caplog.messages[-1].endswith("without effect: no weight of the model is in NF4")
    assert not (tmp_path / "cache").exists()


def test_a_fingerprint_sees_what_it_says_it_sees(tmp_path: Path):
    path = tmp_path / "weights"
    content = bytearray(os.urandom(4 << 20))
    path.write_bytes(content)
    os.utime(path, ns=(1, 1))
    first = fingerprint([path])
    assert first == fingerprint([path]) and [name for name, *_ in first] == ["weights"]

    def changed(at: int) -> bool:
        other = content.copy()
        other[at] ^= 1
        path.write_bytes(other)
        os.utime(path, ns=(1, 1))
        return fingerprint([path]) != first

    assert changed(10) and changed(len(content) - 10) and changed(32 * (len(content) // 64) + 100)
    assert not changed(32 * (len(content) // 64) + 10_000)  # between two samples, the mtime set back
    path.write_bytes(content)
    assert fingerprint([path]) != first  # the mtime alone
    shutil.copyfile(path, tmp_path / "renamed")
    assert fingerprint([tmp_path / "renamed"])[0][0] == "renamed"


def test_cached_weights_are_close_to_the_base(load, hf_base):
    """Negative control of the comparisons above: they compare real weights."""
    load()
    load()
    weight = dequantize(load.model.layers[0].attn.q_proj.weight).float()
    base = hf_base.model.model.layers[0].self_attn.q_proj.weight
    assert 0.01 < (weight - base).norm() / base.norm() < 0.15
