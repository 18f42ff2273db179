"""The schedule of AdaLoRA's budget, as PEFT computes it, and what ends a training before its ranks are final."""

import logging

import pytest
import torch
from torch import nn

from torchtune_lite.errors import ConfigError
from torchtune_lite.peft import AdaLoRA, RankAllocator, rank_allocator
from torchtune_lite.peft.projections.rank_allocation import budget_at


def a_model(**arguments):
    torch.manual_seed(0)
    method = AdaLoRA(**{"init_r": 4, "target_r": 2} | arguments)
    return nn.ModuleList(method.put(f"layers.{n}.attn.q_proj", nn.Linear(6, 6)) for n in range(2))


@pytest.mark.parametrize(
    ("tinit", "tfinal", "total", "every", "expected"),
    [
        (2, 3, 12, 1, "24- 24- 24- 21+ 18+ 17+ 16+ 16+ 16+ 16+ 16+ 16+ 16+"),
        (0, 0, 8, 1, "24- 21+ 19+ 17+ 17+ 16+ 16+ 16+ 16+"),
        (2, 3, 12, 3, "24- 24- 24- 21+ 18- 17- 16+ 16- 16- 16+ 16+ 16+ 16+"),
    ],
)
def test_the_budget_is_peft_s(tinit, tfinal, total, every, expected):
    method = AdaLoRA(tinit=tinit, tfinal=tfinal, deltaT=every)
    method.total_step = total
    found = [budget_at(step, 24, 16, method) for step in range(total + 1)]
    assert " ".join(f"{budget}{'+' if prunes else '-'}" for budget, prunes in found) == expected


def trained(model, allocator, steps, lr=0.1):
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=lr)
    number = 0
    allocator.follow(optimizer, lambda: number)
    for number in range(1, steps + 1):
        x = torch.randn(8, 6, generator=torch.Generator().manual_seed(number))
        (sum(each(x).square().sum() for each in model) + allocator.penalty()).backward()
        optimizer.step()
        optimizer.zero_grad()


def test_the_ranks_are_the_target_at_the_end_and_stay(caplog):
    model = a_model()
    allocator = rank_allocator(model, 20)
    assert (allocator.method.tinit, allocator.method.tfinal) == (2, 6)
    trained(model, allocator, 14)
    assert allocator.is_final and sum(allocator.ranks().values()) == 4
    final = allocator.ranks()
    trained(model, allocator, 6)  # an optimizer whose momentum would revive what is pruned
    assert allocator.ranks() == final
    with caplog.at_level(logging.INFO, "torchtune_lite"):
        allocator.log_end()
    assert "AdaLoRA has 4 of 8 triplets left: " in caplog.text


def test_a_run_that_ends_before_its_schedule_is_told(caplog):
    model = a_model()
    allocator = RankAllocator(model, 20)
    trained(model, allocator, 8)
    allocator.log_end()
    assert ", not 4: the run ended before its schedule of ranks did" in caplog.text


def test_the_budget_and_the_ranks_that_changed_are_logged_once():
    model = a_model()
    allocator = RankAllocator(model, 10)
    assert allocator.log_values(0) == {"rank_budget": 8, "rank/0": 4, "rank/1": 4}
    assert allocator.log_values(1) == {"rank_budget": 8}
    trained(model, allocator, 10)
    assert allocator.log_values(10)["rank_budget"] == 4
    assert allocator.log_values(10) == {}


def test_a_budget_that_is_no_less_prunes_nothing():
    model = a_model(target_r=4)
    allocator = RankAllocator(model, 10)
    trained(model, allocator, 10)
    assert allocator.ranks() == {"0": 4, "1": 4}


def test_a_schedule_that_never_ends_is_refused():
    with pytest.raises(ConfigError, match="of 10 steps, tinit 4 and tfinal 6 leave none to prune in; lower them"):
        RankAllocator(a_model(tinit=4, tfinal=6), 10)


def test_other_adapters_have_no_ranks_to_allocate():
    assert rank_allocator(nn.Linear(2, 2), 10) is None


def test_an_optimizer_that_is_not_torch_s_is_refused():
    with pytest.raises(ConfigError, match="AdaLoRA needs one of torch's class, which object is not"):
        RankAllocator(a_model(), 10).follow(object(), lambda: 1)
