import torch

from torchtune_lite.checkpoint.formats.rotary_layout import half_split, interleaved


def test_neighbours_of_a_head_are_its_halves():
    rows = torch.arange(12)  # two heads of six rows
    assert interleaved(rows, 2).tolist() == [0, 3, 1, 4, 2, 5, 6, 9, 7, 10, 8, 11]


def test_each_is_the_reverse_of_the_other():
    weight = torch.randn(24, 5)
    assert torch.equal(half_split(interleaved(weight, 3), 3), weight)
    assert torch.equal(interleaved(half_split(weight, 3), 3), weight)
