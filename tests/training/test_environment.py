"""dtype and seed."""

import random

import numpy as np
import pytest
import torch

from torchtune_lite.errors import ConfigError
from torchtune_lite.training import get_dtype, set_seed

CPU = torch.device("cpu")


def draw():
    return random.random(), np.random.rand(), torch.rand(1).item()


def test_the_names_of_the_dtypes():
    assert get_dtype("fp32", CPU) is torch.float32
    assert get_dtype("bf16", CPU) is torch.bfloat16


@pytest.mark.parametrize("name", ["fp16", "float32", "int8"])
def test_another_dtype_is_an_error_that_lists_the_choices(name):
    with pytest.raises(ConfigError, match=f"dtype: '{name}' .* fp32, bf16"):
        get_dtype(name, CPU)


def test_bf16_on_a_device_without_it_is_an_error(monkeypatch):
    monkeypatch.setattr(torch.backends.mps, "is_macos_or_newer", lambda major, minor: False)
    with pytest.raises(ConfigError, match="bf16 is not supported by mps .* dtype: fp32"):
        get_dtype("bf16", torch.device("mps"))
    assert get_dtype("fp32", torch.device("mps")) is torch.float32


def test_one_seed_sets_every_generator():
    assert set_seed(7) == 7
    first = draw()
    set_seed(7)
    assert draw() == first
    set_seed(8)
    assert all(a != b for a, b in zip(draw(), first, strict=True))


def test_no_seed_draws_one_that_repeats_the_run():
    seed = set_seed(None)
    first = draw()
    assert set_seed(seed) == seed
    assert draw() == first
    assert len({set_seed(None) for _ in range(5)}) > 1


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_a_seed_out_of_range_is_an_error(seed):
    with pytest.raises(ConfigError, match=f"seed: {seed} is out of range"):
        set_seed(seed)
