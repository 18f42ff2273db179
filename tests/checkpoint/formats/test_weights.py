import pytest
import torch

from torchtune_lite.checkpoint.formats.weights import Weight, as_bytes, joined


def test_reads_only_when_asked_and_gives_the_bytes_in_rows():
    reads = []
    tensor = torch.arange(6, dtype=torch.bfloat16).reshape(2, 3).t()
    weight = Weight(torch.bfloat16, (3, 2), lambda: reads.append(1) or tensor)
    assert weight.num_bytes == 12 and not reads
    [(row, values)] = weight.pieces(leads=True)
    assert row == 0 and bytes(as_bytes(values)) == tensor.contiguous().view(torch.uint8).numpy().tobytes()
    assert reads == [1]


def test_a_tensor_other_than_announced_never_reaches_a_file():
    with pytest.raises(AssertionError):
        list(Weight(torch.float32, (2,), lambda: torch.zeros(3)).pieces(leads=True))


def test_rows_changes_and_joins_read_nothing_before_they_are_read():
    reads = []
    tensor = torch.arange(6.0).reshape(3, 2)
    weight = Weight(torch.float32, (3, 2), lambda: reads.append(1) or tensor)
    last, doubled = weight.rows(1, 3), weight.mapped(lambda values: 2 * values)
    both = joined([last, doubled])
    assert not reads and last.shape == (2, 2) and both.shape == (5, 2)
    assert torch.equal(both.read(), torch.cat([tensor[1:], 2 * tensor]))


def test_rows_are_read_without_the_others():
    reads = []

    def read_rows(first, end):
        reads.append((first, end))
        return torch.arange(6.0)[first:end]

    weight = Weight(torch.float32, (6,), lambda: reads.append("all") or torch.arange(6.0), read_rows)
    assert weight.part(1, 3).tolist() == [1, 2] and weight.rows(2, 6).part(1, 3).tolist() == [3, 4]
    assert weight.rows(2, 6).read().tolist() == [2, 3, 4, 5] and weight.part(0, 6).tolist() == [0, 1, 2, 3, 4, 5]
    assert reads == [(1, 3), (3, 5), (2, 6), "all"]


def test_each_process_writes_its_rows_and_one_what_is_whole():
    """Of a fused matrix whose second part is whole, this process has the last row of the first part."""
    part = Weight(torch.float32, (3, 2), lambda: torch.ones(1, 2)).of_shards(slice(2, 3))
    fused = joined([part, Weight.of(torch.zeros(2, 2)), part])
    assert [(row, values.shape[0]) for row, values in fused.pieces(leads=True)] == [(2, 1), (3, 2), (7, 1)]
    assert [(row, values.shape[0]) for row, values in fused.pieces(leads=False)] == [(2, 1), (7, 1)]
