import os
from pathlib import Path

import pytest
import torch

from torchtune_lite.checkpoint.formats.torch_stream import read_torch
from torchtune_lite.errors import CheckpointError

TENSORS = {"a": torch.randn(3, 5), "b": torch.randn(7).bfloat16(), "c": torch.tensor(3), "view": torch.randn(4, 6).t()}


def test_a_file_of_torch_is_read(tmp_path: Path):
    torch.save(TENSORS, tmp_path / "x.bin")
    read = read_torch(tmp_path / "x.bin")
    assert all(torch.equal(read[name].read(), tensor) for name, tensor in TENSORS.items())


class Payload:
    def __reduce__(self):
        return os.system, ("touch /tmp/never-made-by-a-checkpoint",)


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda path: torch.save({"x": Payload()}, path), "would run code"),
        (lambda path: torch.save({"model": TENSORS}, path), "not a plain dictionary"),
        (lambda path: torch.save([torch.zeros(1)], path), "not a plain dictionary"),
        (lambda path: torch.save(TENSORS, path, _use_new_zipfile_serialization=False), "version 1.6"),
        (lambda path: path.write_bytes(b""), "is empty"),
        (lambda path: path.write_bytes(b"version https://git-lfs.github.com/spec/v1\n"), "git-lfs pointer"),
        (lambda path: path.write_bytes(b"<html>"), "web page"),
        (lambda path: torch.save(TENSORS, path) or os.truncate(path, path.stat().st_size // 2), "truncated"),
    ],
)
def test_a_file_that_is_refused(tmp_path: Path, write, message: str):
    write(tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match=message):
        read_torch(tmp_path / "x.pth")
