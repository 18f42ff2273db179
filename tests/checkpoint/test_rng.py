import json
import random

import numpy as np
import pytest
import torch

from torchtune_lite.checkpoint.rng import rng_state, set_rng_state


def draw() -> list:
    return [random.random(), random.gauss(0, 1), *np.random.rand(3), np.random.randn(), *torch.randn(17).tolist()]


def test_every_generator_goes_on_where_it_was():
    draw()  # leaves half a pair of Gaussians behind in each generator
    state = json.loads(json.dumps(rng_state()))
    expected = draw()
    assert draw() != expected
    set_rng_state(state)
    assert draw() == expected


@pytest.mark.parametrize("saved", [[1, 2, 3], None])
def test_an_apple_gpu_goes_on_too(saved, monkeypatch):
    state, ours = rng_state(), torch.tensor([4, 5], dtype=torch.uint8)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.mps, "get_rng_state", lambda: ours)
    monkeypatch.setattr(torch.mps, "set_rng_state", lambda state: ours.set_(state))
    assert json.loads(json.dumps(rng_state()))["mps"] == [4, 5]
    set_rng_state({**state, "mps": saved})
    assert ours.tolist() == (saved or [4, 5])
    del state["mps"]  # of an older version
    set_rng_state(state)
