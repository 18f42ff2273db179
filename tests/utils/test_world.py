"""One process, which has nobody to wait for."""

import pytest
import torch
from torch import nn

from torchtune_lite.errors import ConfigError
from torchtune_lite.utils.world import World


def test_one_process_has_nobody_to_wait_for():
    world = World(torch.device("cpu"))
    param = nn.Parameter(torch.ones(2))
    world.sum_gradients([param])
    assert param.grad is None
    assert world.sum(2.5) == [2.5] and world.gather("a") == ["a"] and world.on_main(lambda: 3) == 3
    error = ConfigError("no")
    assert world.first(error) is error


def test_what_one_process_calls_returns_or_raises_there():
    world = World()
    assert world.together(lambda: 3) == 3 and world.save(lambda: 4) == 4 and world.lead(lambda: 5) is None
    assert world.writers is world
    with pytest.raises(ConfigError, match="no"):
        world.lead(_fail)


def _fail() -> None:
    raise ConfigError("no")
