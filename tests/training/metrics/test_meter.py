import pytest
import torch
from torch import nn

from torchtune_lite import training
from torchtune_lite.data import Batches
from torchtune_lite.datasets import concatenated

SAMPLES = [{"tokens": [1, 2, 3], "labels": [-100, 3, -100]}, {"tokens": [4], "labels": [-100]}]


@pytest.fixture
def clock(monkeypatch):
    """A clock whose time a test sets."""
    now = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    return now


def test_counts_what_the_steps_since_the_last_time_cost(clock):
    batches = Batches(SAMPLES, 2, seed=0, shuffle=False, pad_id=0, collate="padded")
    meter = training.Meter(nn.Module(), batches, torch.device("cpu"), memory=False)
    window = list(batches.epoch(0))
    for seconds in (2.0, 6.0):
        clock[0] += 10.0  # in which a checkpoint is saved
        meter.start(window)
        clock[0] += seconds
        assert meter.stop() == 4 / seconds
    expected = {"tokens_per_second": 1.0, "label_tokens_per_second": 0.25, "padding": 2 / 6, "data_wait": 0.0}
    assert meter.take() == pytest.approx(expected)
    meter.start(window)
    clock[0] += 1.0
    meter.stop()
    assert meter.take()["tokens_per_second"] == 4.0


@pytest.mark.parametrize("collate", ["padded", "padding_free"])
def test_the_share_of_padding_is_right_where_eos_pads(clock, collate):
    eos = 3
    batches = Batches(SAMPLES, 2, seed=0, shuffle=False, pad_id=eos, collate=collate)
    meter = training.Meter(nn.Module(), batches, torch.device("cpu"), memory=False)
    meter.start(list(batches.epoch(0)))
    clock[0] += 2.0
    assert meter.stop() == 4 / 2.0
    assert meter.take()["padding"] == pytest.approx(2 / 6 if collate == "padded" else 0.0)


def test_sums_up_the_run(clock, log_lines):
    batches = Batches(SAMPLES, 2, seed=0, shuffle=False, pad_id=0, collate="padded")
    meter = training.Meter(nn.Module(), batches, torch.device("cpu"), memory=False)
    window = list(batches.epoch(0))
    for seconds in (6.0, 1.0, 1.0):
        meter.start(window)
        clock[0] += seconds
        meter.stop()
        if seconds == 6.0:
            meter.take()
            clock[0] += 4.0
    assert meter.close() == {
        "steps": 3,
        "tokens": 12,
        "label_tokens": 3,
        "tokens_per_second": 1.5,
        "label_tokens_per_second": 0.375,
        "padding": 0.3333,
        "step_seconds": 8.0,
        "first_step_seconds": 6.0,
        "seconds": 12.0,
    }
    assert log_lines == [
        "3 steps, 12 tokens (3 in the loss) in 12.0 s, 8.0 s of it in steps (2 tokens/s), 6.0 s in the first"
    ]
    assert training.Meter(nn.Module(), batches, torch.device("cpu")).close() == {}


@pytest.mark.parametrize("collate", ["padded", "padding_free"])
def test_tells_the_share_of_the_peak_where_that_is_known(clock, monkeypatch, collate):
    monkeypatch.setattr("torchtune_lite.training.metrics.meter.peak_flops", lambda device: 1e6)
    monkeypatch.setattr(
        "torchtune_lite.training.metrics.meter.step_flops", lambda model, lens, labels: sum(lens) + labels
    )
    batches = Batches(SAMPLES, 2, seed=0, shuffle=False, pad_id=0, collate=collate)
    meter = training.Meter(nn.Module(), batches, torch.device("cpu"), memory=False)
    meter.start(list(batches.epoch(0)))
    clock[0] += 2.0
    meter.stop()
    assert meter.take()["mfu"] == pytest.approx((3 + 1 + 1) / 2.0 / 1e6)


def test_tells_the_peak_memory_since_the_last_time_unless_told_not_to():
    batches = Batches(SAMPLES, 2, seed=0, shuffle=False, pad_id=0)
    meter = training.Meter(nn.Module(), batches, torch.device("cpu"))
    window = list(batches.epoch(0))

    def peak(num_bytes):
        meter.start(window)
        torch.ones(num_bytes, dtype=torch.uint8)
        meter.stop()
        return meter.take()["peak_memory_resident"]

    assert peak(2**28) > peak(1) + 0.2


def test_gives_the_mean_loss_of_each_data_set(clock):
    batches = Batches(concatenated([SAMPLES, SAMPLES]), 4, seed=0, shuffle=False, pad_id=0)
    meter = training.Meter(nn.Module(), batches, torch.device("cpu"), memory=False)
    meter.start(list(batches.epoch(0)))
    meter.note([(0, torch.tensor(3.0), 2), (1, torch.tensor(0.0), 0)])
    meter.note([(0, torch.tensor(1.0), 3)])
    clock[0] += 1.0
    meter.stop()
    losses = {name: value for name, value in meter.take().items() if name.startswith("loss")}
    assert losses == {"loss/list_0": pytest.approx(4 / 5)}, "of the other there is no label"
