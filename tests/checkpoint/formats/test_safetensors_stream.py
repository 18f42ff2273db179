import json
import os
import resource
import stat
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from torchtune_lite.checkpoint.formats.safetensors_stream import (
    DTYPES,
    read_safetensors,
    write_safetensors,
    write_safetensors_files,
)
from torchtune_lite.checkpoint.formats.weights import Weight
from torchtune_lite.checkpoint.store.publishing import publish
from torchtune_lite.errors import CheckpointError, SaveError

TENSORS = {
    "odd": torch.randn(7).bfloat16(),
    "a/µ": torch.randn(3, 5),
    "scalar": torch.tensor(3, dtype=torch.int64),
    "empty": torch.empty(0, 4),
    "view": torch.randn(4, 6).t(),
    "flags": torch.tensor([True, False, True]),
}


def test_a_written_file_is_read_by_safetensors(tmp_path: Path):
    path = tmp_path / "x.safetensors"
    write_safetensors(path, {name: Weight.of(tensor) for name, tensor in TENSORS.items()})
    read = load_file(path)
    assert read.keys() == TENSORS.keys()
    assert all(torch.equal(read[name], TENSORS[name]) and read[name].dtype == TENSORS[name].dtype for name in TENSORS)
    with safe_open(path, "pt") as file:
        assert file.metadata() == {"format": "pt"}


def test_every_value_is_aligned(tmp_path: Path):
    write_safetensors(tmp_path / "x", {name: Weight.of(tensor) for name, tensor in TENSORS.items()})
    content = (tmp_path / "x").read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    starts = {name: header[name]["data_offsets"][0] + 8 + length for name in TENSORS}
    assert all(start % TENSORS[name].element_size() == 0 for name, start in starts.items())


def test_a_file_of_safetensors_is_read(tmp_path: Path):
    path = tmp_path / "x.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in TENSORS.items()}, path)
    for name, weight in read_safetensors(path).items():
        assert (weight.dtype, weight.shape) == (TENSORS[name].dtype, tuple(TENSORS[name].shape))
        assert torch.equal(weight.read(), TENSORS[name])


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_every_dtype_goes_there_and_back(tmp_path: Path, dtype: torch.dtype):
    tensor = torch.tensor([0, 1, 0, 1]).to(dtype)
    write_safetensors(tmp_path / "x.safetensors", {"x": Weight.of(tensor)})
    back = read_safetensors(tmp_path / "x.safetensors")["x"].read()
    assert back.dtype == dtype and torch.equal(back.view(torch.uint8), tensor.view(torch.uint8))


def test_tensors_are_read_one_after_the_other_while_writing(tmp_path: Path):
    path, written = tmp_path / "x.safetensors", []

    def read() -> torch.Tensor:
        written.append(path.read_bytes()[-400_000:].count(1))
        return torch.ones(100_000, dtype=torch.uint8)

    write_safetensors(path, {f"{i}": Weight(torch.uint8, (100_000,), read) for i in range(4)})
    assert written == [0, 100_000, 200_000, 300_000]


def test_a_disk_too_small_is_known_before_any_tensor_is_read(tmp_path: Path):
    def weight(size: int) -> Weight:
        return Weight(torch.uint8, (size,), lambda: pytest.fail("was read"))

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, limits[1]))  # a file larger than this does not fit
    try:
        with pytest.raises(SaveError, match="was not saved: File too large"), publish(tmp_path / "out") as draft:
            write_safetensors_files({draft / "a": {"x": weight(500_000)}, draft / "b": {"y": weight(2_000_000)}})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list(tmp_path.iterdir())


def test_mode_follows_the_umask_and_nothing_is_overwritten(tmp_path: Path):
    old = os.umask(0o027)
    try:
        write_safetensors(tmp_path / "x.safetensors", {})
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "x.safetensors").stat().st_mode) == 0o640
    with pytest.raises(FileExistsError):
        write_safetensors(tmp_path / "x.safetensors", {})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "git-lfs pointer"),
        (b"<!DOCTYPE html><html>403</html>", "web page"),
        (b"PK\x03\x04" + bytes(100), "PyTorch file"),
        (b"\xff" * 8 + b"{}", "is not a safetensors file, or its header is damaged \\(header too large\\)"),
        (b"{}", "x.safetensors: is not a safetensors file"),
    ],
)
def test_a_file_that_is_something_else(tmp_path: Path, content: bytes, message: str):
    (tmp_path / "x.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        read_safetensors(tmp_path / "x.safetensors")


@pytest.mark.parametrize(("change", "words"), [(-100, "truncated"), (1, "too long")])
def test_a_file_of_another_length_says_how_much_is_there(tmp_path: Path, change: int, words: str):
    path = tmp_path / "x.safetensors"
    write_safetensors(path, {"x": Weight.of(torch.zeros(1000))})
    size = path.stat().st_size
    os.truncate(path, size + change)
    with pytest.raises(CheckpointError, match=f"is {words}: {size + change:,} of {size:,} bytes"):
        read_safetensors(path)


def test_a_file_passes_through_the_memory_of_one_tensor(tmp_path: Path, peak_bytes):
    size = 4 << 20

    def there_and_back(path: Path, count: int) -> None:
        full = [Weight(torch.float32, (size,), lambda i=i: torch.full((size,), float(i))) for i in range(count)]
        write_safetensors(path, {f"{i}": weight for i, weight in enumerate(full)})
        for i, weight in read_safetensors(path).items():
            assert weight.read().sum() == int(i) * size

    there_and_back(tmp_path / "warm-up", 1)
    num_bytes = peak_bytes(lambda: there_and_back(tmp_path / "x", 8))
    assert num_bytes < 3 * 4 * size, "of the 8 tensors in the file"
