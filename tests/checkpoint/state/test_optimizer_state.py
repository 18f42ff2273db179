"""An optimizer continues from a save as if it had not stopped, whatever its state consists of."""

import json
import warnings
from functools import partial

import pytest
import torch
from torch import nn

from torchtune_lite import optim
from torchtune_lite.checkpoint import gather, rng_state
from torchtune_lite.checkpoint.formats.safetensors_stream import read_safetensors
from torchtune_lite.checkpoint.state.optimizer_state import restore_moments, restore_options
from torchtune_lite.checkpoint.state.rng import set_rng_state
from torchtune_lite.models.llama import LLAMA


def eight_bit_of_torchao(params, **options):
    from torchao.optim import AdamW8bit

    return AdamW8bit(params, **options)


def of_bitsandbytes(name, params, **options):
    import bitsandbytes

    return getattr(bitsandbytes.optim, name)(params, **options)


OPTIMIZERS = {
    "torch": torch.optim.AdamW,
    "torch, fused": partial(torch.optim.AdamW, fused=True),
    "master": optim.MasterAdamW,
    "stochastic": optim.StochasticAdamW,
    "paged": optim.PagedAdamW,
    "offloaded": optim.CPUOffloadAdamW,
    "torchao 8 bit": eight_bit_of_torchao,
    "bitsandbytes 8 bit": partial(of_bitsandbytes, "AdamW8bit"),
    "bitsandbytes paged": partial(of_bitsandbytes, "PagedAdamW"),
    "bitsandbytes paged 8 bit": partial(of_bitsandbytes, "PagedAdamW8bit"),
}


class Run:
    def __init__(self, make):
        generator = torch.Generator().manual_seed(0)
        self.model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 3)).bfloat16()
        for param in self.model.parameters():
            param.data = torch.randn(param.shape, generator=generator).bfloat16()
        self.optimizer = make(self.model.parameters(), lr=1e-2, weight_decay=0.1)
        self.schedule = optim.get_cosine_schedule_with_warmup(self.optimizer, 2, 10)

    def train(self, steps):
        for _ in range(steps):
            for param in self.model.parameters():
                param.grad = torch.randn_like(param)
            self.optimizer.step()
            self.schedule.step()
        return self.model.state_dict(), [group["lr"] for group in self.optimizer.param_groups]


@pytest.fixture
def eager():
    """torchao compiles its step, which takes half a minute; torch without compilation takes the same step."""
    torch.compiler.set_stance("force_eager")
    yield
    torch.compiler.set_stance("default")


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_a_resumed_optimizer_goes_on_to_the_bit(make, tmp_path, eager):
    warnings.filterwarnings("ignore", message="Paged optimizers are not supported on CPU")
    run = Run(make)
    torch.manual_seed(1)
    run.train(3)
    gather(run.model, run.optimizer, run.schedule, {}).write(tmp_path / "resume", LLAMA)
    weights = {name: value.clone() for name, value in run.model.state_dict().items()}
    state = rng_state()
    expected, rates = run.train(3)

    other = Run(make)
    other.model.load_state_dict(weights)
    trainer = json.loads((tmp_path / "resume" / "trainer.json").read_text())
    restore_options(other.optimizer, other.schedule, trainer)
    tensors = read_safetensors(tmp_path / "resume" / "optimizer.safetensors")
    restore_moments(other.optimizer, dict(other.model.named_parameters()), tensors, trainer["optimizer"])
    set_rng_state(state)
    resumed, other_rates = other.train(3)
    assert rates == other_rates
    for name, value in expected.items():
        assert torch.equal(value, resumed[name]), name
    for param, same in zip(run.model.parameters(), other.model.parameters(), strict=True):
        assert run.optimizer.state[param].keys() == other.optimizer.state[same].keys()
        assert len(run.optimizer.state[param]) >= 3


def test_options_of_a_schedule_that_is_not_ours_are_the_saved_ones():
    run = Run(eight_bit_of_torchao)
    trainer = json.loads(json.dumps(gather(run.model, run.optimizer, None, {}).trainer))
    trainer["optimizer"]["groups"][0] |= {"lr": 0.5, "betas": [0.8, 0.9]}
    restore_options(run.optimizer, None, trainer)
    [group] = run.optimizer.param_groups
    assert (float(group["lr"]), group["betas"]) == (0.5, (0.8, 0.9)) and isinstance(group["lr"], torch.Tensor)


@pytest.mark.parametrize(
    ("name", "method", "key"),
    [("paged", "new_state", "exp_avg"), ("bitsandbytes paged", "get_state_buffer", "state1")],
)
def test_a_state_is_read_to_where_the_optimizer_keeps_it(name, method, key, tmp_path, monkeypatch):
    """State goes to page-locked or managed memory, not to the device, where it may not fit."""
    warnings.filterwarnings("ignore", message="Paged optimizers are not supported on CPU")
    run = Run(OPTIMIZERS[name])
    run.train(1)
    gather(run.model, run.optimizer, None, {}).write(tmp_path / "resume", LLAMA)
    make, made = getattr(run.optimizer, method), []

    def making(*args, **options):
        made.append(make(*args, **options))
        return made[-1]

    monkeypatch.setattr(run.optimizer, method, making)
    tensors = read_safetensors(tmp_path / "resume" / "optimizer.safetensors")
    trainer = json.loads((tmp_path / "resume" / "trainer.json").read_text())
    restore_moments(run.optimizer, dict(run.model.named_parameters()), tensors, trainer["optimizer"])
    places = {id(each.get(key) if isinstance(each, dict) else each) for each in made}
    assert all(id(run.optimizer.state[param][key]) in places for param in run.model.parameters())
