import gguf
import numpy as np
import pytest
import torch

from torchtune_lite.checkpoint.formats.weights import Weight
from torchtune_lite.errors import CheckpointError, ConfigError, SaveError
from torchtune_lite.export.gguf import files
from torchtune_lite.export.gguf.files import FILE_TYPES, KINDS, library, read_gguf, write_gguf

MATRIX = torch.randn(6, 64, generator=torch.Generator().manual_seed(0))
TENSORS = {"m.weight": Weight.of(MATRIX), "v.weight": Weight.of(MATRIX[0]), "odd.weight": Weight.of(MATRIX[:, :33])}
KEYS = {"a.text": "市", "a.whole": 7, "a.number": 0.5, "a.yes": True, "a.list": ["x", "y"], "a.numbers": [0.5, 2.0]}


@pytest.mark.parametrize("kind", KINDS)
def test_the_package_reads_what_was_written(kind, tmp_path, caplog):
    write_gguf(tmp_path / "f.gguf", "llama", KEYS, TENSORS, kind)
    reader = gguf.GGUFReader(tmp_path / "f.gguf")
    assert {key: reader.fields[key].contents() for key in KEYS} == KEYS
    assert reader.fields["a.whole"].types == [gguf.GGUFValueType.UINT32]
    types = {tensor.name: tensor.tensor_type.name for tensor in reader.tensors}
    odd = "F16" if kind == "q8_0" else KINDS[kind]
    assert types == {"m.weight": KINDS[kind], "v.weight": "F32", "odd.weight": odd}
    expected = gguf.quants.quantize(MATRIX.numpy(), gguf.GGMLQuantizationType[KINDS[kind]])
    [matrix] = [tensor for tensor in reader.tensors if tensor.name == "m.weight"]
    assert matrix.data.tobytes() == expected.tobytes()
    assert ("1 tensor is written as F16" in caplog.text) == (kind == "q8_0")
    assert gguf.LlamaFileType[FILE_TYPES[kind]] is not None


@pytest.mark.parametrize("kind", KINDS)
def test_what_was_written_is_read(kind, tmp_path):
    write_gguf(tmp_path / "f.gguf", "llama", KEYS, TENSORS, kind)
    metadata, tensors = read_gguf(tmp_path / "f.gguf")
    assert metadata["general.architecture"] == "llama" and all(metadata[key] == KEYS[key] for key in KEYS)
    assert {name: weight.shape for name, weight in tensors.items()} == {n: w.shape for n, w in TENSORS.items()}
    read = tensors["m.weight"].read()
    assert read.dtype == tensors["m.weight"].dtype == files.PLAIN.get(KINDS[kind], torch.float32)
    assert (read.float() - MATRIX).abs().max() < 0.02
    assert torch.equal(tensors["v.weight"].read(), MATRIX[0])


def test_each_tensor_is_read_when_its_turn_comes(tmp_path):
    order = []
    tensors = {
        name: weight.mapped(lambda values, name=name: order.append(name) or values) for name, weight in TENSORS.items()
    }
    write_gguf(tmp_path / "f.gguf", "llama", {}, tensors, "f32")
    assert order == list(TENSORS)


@pytest.mark.parametrize("value", [1e6, float("nan")])
def test_a_value_that_a_type_cannot_hold_is_named(value, tmp_path):
    with pytest.raises(SaveError, match=r"m.weight holds NaN, infinity, or values beyond F16; write bf16 or f32"):
        write_gguf(tmp_path / "f.gguf", "llama", {}, {"m.weight": Weight.of(MATRIX * value)}, "f16")


def test_a_damaged_file_is_one_line(tmp_path):
    write_gguf(tmp_path / "f.gguf", "llama", KEYS, TENSORS, "f32")
    whole = (tmp_path / "f.gguf").read_bytes()
    for name, content in {"cut": whole[:900], "head": whole[:30], "other": b"GGML" + whole[4:], "empty": b""}.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(CheckpointError, match="is not a GGUF file, or truncated; fetch it again"):
            read_gguf(tmp_path / name)
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_gguf(tmp_path / "none")


def test_parts_and_types_that_cannot_be_read_are_refused(tmp_path):
    write_gguf(tmp_path / "part.gguf", "llama", {"split.count": 3}, TENSORS, "f32")
    with pytest.raises(CheckpointError, match="is one of 3 parts; join them: llama-gguf-split --merge"):
        read_gguf(tmp_path / "part.gguf")
    kind = gguf.GGMLQuantizationType.Q8_K
    writer = gguf.GGUFWriter(tmp_path / "q8_k.gguf", "llama")
    writer.add_tensor("m.weight", np.zeros((1, gguf.GGML_QUANT_SIZES[kind][1]), np.uint8), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(CheckpointError, match="holds tensors of type Q8_K, which the package gguf cannot read"):
        read_gguf(tmp_path / "q8_k.gguf")


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "gguf", None)
    with pytest.raises(ConfigError, match=r"GGUF needs the package gguf: pip install 'torchtune_lite\[gguf\]'"):
        library()
