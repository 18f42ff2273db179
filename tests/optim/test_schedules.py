"""Learning-rate schedules against those of transformers and against a plain formula."""

import pytest
import torch
import transformers

from torchtune_lite import optim
from torchtune_lite.errors import ConfigError

LR = 3e-4


def an_optimizer():
    return torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=LR)


def rates(schedule, steps):
    """The learning rate of each optimizer step."""
    values = []
    for _ in range(steps):
        values.append(schedule.get_last_lr()[0])
        schedule.optimizer.step()
        schedule.step()
    return values


@pytest.mark.parametrize(("warmup", "steps"), [(0, 10), (1, 7), (10, 100), (10, 10)])
@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (optim.get_cosine_schedule_with_warmup, transformers.get_cosine_schedule_with_warmup),
        (optim.get_linear_schedule_with_warmup, transformers.get_linear_schedule_with_warmup),
        (
            optim.get_constant_schedule_with_warmup,
            lambda optimizer, warmup, steps: transformers.get_constant_schedule_with_warmup(optimizer, warmup),
        ),
    ],
    ids=["cosine", "linear", "constant"],
)
def test_the_rates_are_those_of_transformers(ours, theirs, warmup, steps):
    expected = rates(theirs(an_optimizer(), warmup, steps), steps)
    assert rates(ours(an_optimizer(), warmup, steps), steps) == pytest.approx(expected, rel=1e-12)


def test_num_cycles_counts_the_waves():
    expected = rates(transformers.get_cosine_schedule_with_warmup(an_optimizer(), 5, 60, num_cycles=1.5), 60)
    ours = optim.get_cosine_schedule_with_warmup(an_optimizer(), 5, 60, num_cycles=1.5)
    assert rates(ours, 60) == pytest.approx(expected, rel=1e-12)


def test_wsd_warms_up_stays_and_decays():
    warmup, decay, steps, floor = 4, 8, 20, 0.1
    expected = [
        LR * min(step / warmup, 1.0, floor + (1 - floor) * (steps - step) / decay) for step in range(steps)
    ]  # fmt: skip
    schedule = optim.get_wsd_schedule(an_optimizer(), warmup, steps, num_decay_steps=decay, min_lr_ratio=floor)
    assert rates(schedule, steps) == pytest.approx(expected, rel=1e-12)


def test_wsd_without_decay_is_constant():
    schedule = optim.get_wsd_schedule(an_optimizer(), 0, 5, num_decay_steps=0)
    assert rates(schedule, 5) == [LR] * 5


def test_cosine_ends_at_zero_and_stays_there():
    values = rates(optim.get_cosine_schedule_with_warmup(an_optimizer(), 2, 10), 14)
    assert max(values) == values[2] == LR
    assert values[10:] == [0.0] * 4


def test_a_restored_schedule_goes_on_where_it_was():
    straight = rates(optim.get_cosine_schedule_with_warmup(an_optimizer(), 3, 12), 12)
    first = optim.get_cosine_schedule_with_warmup(an_optimizer(), 3, 12)
    start = rates(first, 5)
    optimizer = an_optimizer()
    second = optim.get_cosine_schedule_with_warmup(optimizer, 3, 12)
    second.load_state_dict(first.state_dict())
    optimizer.load_state_dict(first.optimizer.state_dict())
    assert start + rates(second, 7) == straight


@pytest.mark.parametrize(
    "name", ["get_constant_schedule_with_warmup", "get_cosine_schedule_with_warmup", "get_linear_schedule_with_warmup"]
)
def test_a_warmup_longer_than_the_run_goes_on_with_a_warning(name, log_lines):
    schedule = getattr(optim, name)(an_optimizer(), 20, 10)
    [line] = log_lines
    assert "num_warmup_steps: 20 is more than the 10 optimizer steps" in line
    assert rates(schedule, 10) == pytest.approx([LR * step / 20 for step in range(10)])


def test_a_negative_warmup_is_an_error():
    with pytest.raises(ConfigError, match="num_warmup_steps: -1"):
        optim.get_cosine_schedule_with_warmup(an_optimizer(), -1, 10)


def test_a_wsd_decay_that_does_not_fit_the_run_is_an_error():
    with pytest.raises(ConfigError, match="num_decay_steps: 8 and num_warmup_steps: 3 must fit into the 10"):
        optim.get_wsd_schedule(an_optimizer(), 3, 10, num_decay_steps=8)


def test_a_constant_rate_needs_no_run_length():
    assert rates(optim.get_constant_schedule_with_warmup(an_optimizer(), num_warmup_steps=2), 4) == [
        0.0,
        LR / 2,
        LR,
        LR,
    ]
