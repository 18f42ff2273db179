import pytest
import torch

from torchtune_lite.checkpoint.formats.weights import Weight, joined


def test_reads_only_when_asked_and_gives_the_bytes_in_rows():
    reads = []
    tensor = torch.arange(6, dtype=torch.bfloat16).reshape(2, 3).t()
    weight = Weight(torch.bfloat16, (3, 2), lambda: reads.append(1) or tensor)
    assert weight.num_bytes == 12 and not reads
    assert bytes(weight.read_bytes()) == tensor.contiguous().view(torch.uint8).numpy().tobytes()
    assert reads == [1]


def test_a_tensor_other_than_announced_never_reaches_a_file():
    with pytest.raises(AssertionError):
        Weight(torch.float32, (2,), lambda: torch.zeros(3)).read_bytes()


def test_rows_changes_and_joins_read_nothing_before_they_are_read():
    reads = []
    tensor = torch.arange(6.0).reshape(3, 2)
    weight = Weight(torch.float32, (3, 2), lambda: reads.append(1) or tensor)
    last, doubled = weight.rows(1, 3), weight.mapped(lambda values: 2 * values)
    both = joined([last, doubled])
    assert not reads and last.shape == (2, 2) and both.shape == (5, 2)
    assert torch.equal(both.read(), torch.cat([tensor[1:], 2 * tensor]))
