"""The writing of a folder: what one process does, and all."""

import pytest
import torch
from safetensors.torch import load_file

from torchtune_lite.checkpoint.draft import Draft
from torchtune_lite.checkpoint.formats.weights import Weight
from torchtune_lite.errors import SaveError
from torchtune_lite.utils.world import World


class Second(World):
    """The second of two processes, after the first."""

    rank = 1

    def lead(self, call):
        """Leave it to the first."""


def draft(folder, world, start):
    """A file of two weights: one of two rows, of which each process has one, and one that is whole."""
    values = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    shared = Weight(torch.float32, (2, 2), lambda: values[start : start + 1]).of_shards(slice(start, start + 1))
    made = Draft(folder, world)
    made.add(lambda: (folder / "config.json").write_text("{}"))
    made.add(lambda: None, {folder / "a.safetensors": {"shared": shared, "whole": Weight.of(torch.ones(3))}})
    return made


def test_each_process_writes_its_part_and_the_first_the_rest(tmp_path):
    draft(tmp_path, World(), 0).write()
    before = load_file(tmp_path / "a.safetensors")
    assert before["shared"].tolist() == [[1, 2], [0, 0]] and before["whole"].tolist() == [1, 1, 1]
    draft(tmp_path, Second(), 1).write()
    assert load_file(tmp_path / "a.safetensors")["shared"].tolist() == [[1, 2], [3, 4]]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.safetensors", "config.json"]


def test_what_cannot_be_begun_is_not_filled(tmp_path):
    made = draft(tmp_path, World(), 0)
    made.add(lambda: (_ for _ in ()).throw(SaveError("no")))
    with pytest.raises(SaveError, match="no"):
        made.write()
    assert not (tmp_path / "a.safetensors").exists()
