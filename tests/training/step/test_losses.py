"""The loss of a batch of several data sets: the sum, the share of each, and the gradients."""

import pytest
import torch
from torch import nn

from torchtune_lite.data import Batches
from torchtune_lite.datasets import concatenated
from torchtune_lite.modules.loss import LinearCrossEntropyLoss
from torchtune_lite.training import summed_loss
from torchtune_lite.training.memory.step_memory import Allocations
from torchtune_lite.training.step.losses import known_rows

D, V = 8, 300


class OnesOwn(LinearCrossEntropyLoss):
    """A loss without values per token."""

    calls = 0

    def forward(self, output, hidden, labels):
        OnesOwn.calls += 1
        return 2 * super().forward(output, hidden, labels)


def problem(collate, sources=3):
    """An output projection, hidden states and a batch with two samples of each of several data sets."""
    torch.manual_seed(0)
    lengths = [[3, 2], [4, 1], [2, 5], [6, 2]][:sources]
    samples = [[{"tokens": [n] * n, "labels": [n * i + 1 for i in range(n - 1)] + [-100]} for n in s] for s in lengths]
    batches = Batches(concatenated(samples), 2 * sources, seed=1, shuffle=True, pad_id=0, collate=collate)
    [batch] = batches.epoch(0)
    hidden = torch.randn(*batch["tokens"].shape, D, requires_grad=True)
    return nn.Linear(D, V, bias=False), hidden, batch, samples


@pytest.mark.parametrize("collate", ["padded", "padding_free"])
@pytest.mark.parametrize(("loss_fn", "factor"), [(LinearCrossEntropyLoss(4), 1), (OnesOwn(), 2)])
def test_the_shares_are_those_of_each_data_set_and_add_up(collate, loss_fn, factor):
    output, hidden, batch, samples = problem(collate)
    loss, shares = summed_loss(loss_fn, output, hidden, batch["labels"], batch)
    plain = nn.CrossEntropyLoss(reduction="none", ignore_index=-100)
    each = plain(output(hidden).flatten(0, 1), batch["labels"].flatten()).view(batch["labels"].shape) * factor
    assert loss.item() == pytest.approx(each.sum().item(), rel=1e-6)
    found, wanted = (torch.autograd.grad(x, [hidden, output.weight], retain_graph=True) for x in (loss, each.sum()))
    torch.testing.assert_close(found, wanted)
    assert [source for source, _, _ in shares] == [0, 1, 2]
    assert [count for _, _, count in shares] == [sum(len(s["tokens"]) - 1 for s in both) for both in samples]
    of_tokens = iter(each[0].split(batch["seq_lens"]) if collate == "padding_free" else each)
    for _, share, _ in shares:
        assert not share.requires_grad
        assert share.item() == pytest.approx(sum(next(of_tokens).sum().item() for _ in "ab"), rel=1e-6)


def test_one_gradient_of_the_output_projection_is_there_however_many_data_sets():
    def peak(sources, loss_fn):
        output, hidden, batch, _ = problem("padding_free", sources)
        output.weight = nn.Parameter(torch.randn(20_000, D))  # far more than the rest
        with Allocations() as memory:
            loss, _ = summed_loss(loss_fn, output, hidden, batch["labels"], batch)
            most = memory.most
        loss.backward()
        return most / (20_000 * D * 4)

    assert peak(4, LinearCrossEntropyLoss(1)) == pytest.approx(peak(2, LinearCrossEntropyLoss(1)), abs=0.1)
    assert peak(4, OnesOwn(1)) > peak(2, OnesOwn(1)) + 1.9, "a loss of one's own is called for each"


def test_a_loss_is_called_once_where_there_are_no_shares():
    output, hidden, batch, _ = problem("padded")
    OnesOwn.calls = 0
    with torch.no_grad():  # a validation
        assert summed_loss(OnesOwn(), output, hidden, batch["labels"], batch)[1] == []
    del batch["sources"]
    assert summed_loss(OnesOwn(), output, hidden, batch["labels"], batch)[1] == []
    assert OnesOwn.calls == 2


def test_the_rows_that_a_loss_is_told_are_those_of_its_own_ignore_index():
    loss_fn, labels = LinearCrossEntropyLoss(ignore_index=7_777), torch.tensor([[3, 7_777, -100]])
    assert known_rows(loss_fn, labels, torch.device("cpu"))["rows"].tolist() == [0, 2]


def test_a_loss_of_the_users_own_is_given_what_it_takes():
    for loss_fn in (OnesOwn(), lambda output, hidden, labels: hidden.sum()):
        assert known_rows(loss_fn, torch.zeros(1, 3, dtype=torch.int64), torch.device("cpu")) == {}
