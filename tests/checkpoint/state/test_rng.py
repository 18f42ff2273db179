import json
import random

import numpy as np
import pytest
import torch

from torchtune_lite.checkpoint.state.rng import as_json, rng_state, set_own_rng_state, set_rng_state


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


def test_each_of_several_processes_has_its_own_state(log_lines):
    states = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        states.append(as_json(rng_state()))
    expected = torch.rand(1)
    set_own_rng_state({"processes": states}, rank=1, size=2, seed="5/3")
    assert torch.rand(1) == expected and log_lines == []


@pytest.mark.parametrize(
    ("saved", "size", "said"), [(1, 2, "1 process, here are 2"), (2, 1, "2 processes, here are 1")]
)
def test_another_number_of_processes_draws_anew_and_says_so(saved, size, said, log_lines):
    state = as_json(rng_state())
    content = state if saved == 1 else {"processes": [state, state]}
    drawn = []
    for rank in (0, 0, 1):
        set_own_rng_state(content, rank, size, "5/3") if rank < size else None
        drawn.append(draw())
    assert drawn[0] == drawn[1] != drawn[2]
    assert said in log_lines[0] and "dropout differs from an unbroken run" in log_lines[0]
