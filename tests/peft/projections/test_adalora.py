"""AdaLoRA on one projection: its function, its arguments, and what it needs to go on."""

import pytest
import torch
from torch import nn

from torchtune_lite.peft import AdaLoRA


@pytest.fixture
def adapter():
    torch.manual_seed(0)
    adapter = AdaLoRA(init_r=4, target_r=2, lora_alpha=6).put("layers.0.attn.q_proj", nn.Linear(6, 5))
    nn.init.normal_(adapter.lora_e)
    adapter.mask = torch.tensor([True, False, True, False])
    adapter.lora_e.data[1::2] = 0
    return adapter


def test_the_update_is_a_decomposition_of_a_scale_that_stays(adapter):
    x = torch.randn(3, 6)
    update = 6 / (4 + 1e-5) * adapter.lora_b @ (adapter.lora_e * adapter.lora_a)
    plain = nn.functional.linear(x, adapter.weight, adapter.bias)
    torch.testing.assert_close(adapter(x), plain + x @ update.t())
    torch.testing.assert_close(adapter.merged_weight(), adapter.weight + update)
    adapter.enabled = False
    assert torch.equal(adapter(x), plain)


@pytest.mark.parametrize(("rank", "made"), [(None, 2), (7, 7)])
def test_it_is_a_lora_of_its_live_triplets_or_of_more(adapter, rank, made):
    x = torch.randn(3, 6)
    lora = adapter.as_lora(rank)
    assert (lora.rank, lora.alpha) == (made, made)
    torch.testing.assert_close(lora(x), adapter(x))


def test_what_its_file_lacks_is_kept(adapter):
    adapter.importance = {"lora_a": (torch.rand(4, 6), torch.rand(4, 6))}
    again = AdaLoRA(init_r=4, target_r=2, lora_alpha=6).put("layers.0.attn.q_proj", nn.Linear(6, 5))
    live = adapter.live
    again.lora_a.data[live], again.lora_b.data[:, live] = adapter.lora_a.data[live], adapter.lora_b.data[:, live]
    again.restore_training(adapter.training_state())
    assert torch.equal(again.lora_a, adapter.lora_a) and torch.equal(again.lora_b, adapter.lora_b)
    assert torch.equal(again.mask, adapter.mask)
    assert all(map(torch.equal, again.importance["lora_a"], adapter.importance["lora_a"]))
    adapter.importance = None
    again.restore_training(adapter.training_state())
    assert again.importance is None


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ({"target_r": 13}, "target_r 13 must be at least 1 and at most init_r, 12"),
        ({"target_r": 0}, "target_r 0 must be at least 1"),
        ({"beta2": 1.0}, "beta2 must be between 0 and 1"),
        ({"deltaT": 0}, "deltaT must be at least 1"),
        ({"tinit": -1}, "tinit, tfinal and orth_reg_weight at least 0"),
    ],
)
def test_numbers_out_of_range_are_refused(arguments, problem):
    with pytest.raises(ValueError, match=problem):
        AdaLoRA(**arguments)
