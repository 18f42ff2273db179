import json
import random

import numpy as np
import pytest
import torch

from torchtune_lite.checkpoint.rng import as_json, rng_state, set_rng_state


def draw() -> list:
    return [random.random(), random.gauss(0, 1), *np.random.rand(3), np.random.randn(), *torch.randn(17).tolist()]


@pytest.mark.parametrize("saved", [True, False])
def test_every_generator_goes_on_where_it_was(saved):
    draw()  # leaves half a pair of Gaussians behind in each generator
    state = rng_state()
    if saved:
        state = json.loads(json.dumps(as_json(state)))
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
    assert json.loads(json.dumps(as_json(rng_state())))["mps"] == [4, 5]
    set_rng_state({**state, "mps": saved})
    assert ours.tolist() == (saved or [4, 5])
    del state["mps"]  # of an older version
    set_rng_state(state)


def test_a_step_turns_no_state_into_numbers(monkeypatch):
    """A step keeps copies; only a save writes them out."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_rng_state_all", lambda: [torch.get_rng_state()])
    state = rng_state()
    arrays = [state["torch"], *state["cuda"]]
    assert all(isinstance(each, torch.Tensor) for each in arrays) and isinstance(
        state["numpy"]["state"]["key"], np.ndarray
    )
    draw()
    assert not torch.equal(state["torch"], torch.get_rng_state())
    assert as_json(state)["torch"] == as_json(state)["cuda"][0] == state["torch"].tolist()
