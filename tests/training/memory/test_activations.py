"""The layers that are recomputed for each key, and the messages about them."""

from types import SimpleNamespace

import pytest
import torch

from torchtune_lite.data import Batches
from torchtune_lite.errors import ConfigError
from torchtune_lite.models.builders import decoder
from torchtune_lite.modules import DecoderConfig
from torchtune_lite.modules.loss import LinearCrossEntropyLoss
from torchtune_lite.training import set_activations
from torchtune_lite.training.memory import activations
from torchtune_lite.training.memory.step_memory import count_step

CONFIG = DecoderConfig(100, num_layers=7, num_heads=2, num_kv_heads=2, embed_dim=32, max_seq_len=64)
LOSS = LinearCrossEntropyLoss()


class Samples(list):
    """Samples of 5, 60 and 20 tokens."""

    def __init__(self):
        super().__init__({"tokens": [1] * n, "labels": [1] * n} for n in (5, 60, 20))


def batches(batch_size=2):
    return Batches(Samples(), batch_size, seed=0, shuffle=False, pad_id=0)


def settings(**given):
    """The keys, all off except for those given."""
    off = dict(enable_activation_checkpointing=False, ac_mode=None, ac_option=None, memory_budget=None)
    return SimpleNamespace(**off | {"enable_activation_offloading": False, "gradient_accumulation_steps": 1} | given)


def chosen(model=None, **given):
    model = model or decoder(CONFIG)
    set_activations(model, settings(**given), batches(), LOSS)
    return list(model.activation_checkpointing)


@pytest.mark.parametrize(
    ("given", "layers"),
    [
        ({}, []),
        ({"enable_activation_checkpointing": True}, [0, 1, 2, 3, 4, 5, 6]),
        ({"ac_mode": "full"}, [0, 1, 2, 3, 4, 5, 6]),
        ({"ac_mode": "selective", "ac_option": 1}, [0, 1, 2, 3, 4, 5, 6]),
        ({"ac_mode": "selective", "ac_option": 2}, [1, 3, 5]),
        ({"ac_mode": "selective", "ac_option": 3}, [2, 5]),
        ({"ac_mode": "selective", "ac_option": 9}, []),
        ({"ac_option": 2}, []),  # torchtune heeds it with ac_mode only
    ],
    ids=str,
)
def test_each_nth_layer_is_recomputed_as_torchtune_counts(given, layers):
    assert chosen(**given) == layers


def test_the_layers_chosen_are_the_ones_recomputed():
    model = decoder(CONFIG).train()
    chosen(model, ac_mode="selective", ac_option=3)
    calls = []
    for number, layer in enumerate(model.layers):
        layer.register_forward_pre_hook(lambda *_, number=number: calls.append(number))
    model(torch.zeros(1, 8, dtype=torch.int64)).sum().backward()
    assert sorted(calls) == sorted([*range(7), 2, 5])


def test_ac_mode_is_overruled_with_a_warning(log_lines):
    assert len(chosen(enable_activation_checkpointing=True, ac_mode="selective", ac_option=2)) == 7
    assert log_lines == ["ac_mode has no effect beside enable_activation_checkpointing: True, all layers"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"ac_mode": "half"}, "ac_mode: 'half' is not known; choose full, selective or null"),
        ({"ac_mode": "selective", "ac_option": "op"}, "ac_option: 'op' is not served; .* each n-th layer"),
        ({"ac_mode": "selective"}, "ac_option: None is not served"),
        ({"ac_mode": "selective", "ac_option": 0}, "ac_option: 0 is not served"),
        ({"memory_budget": "8GB"}, "memory_budget: '8GB' is not known; set auto, a number of GB above 0, or null"),
        ({"memory_budget": 0}, "memory_budget: 0 is not known"),
        ({"memory_budget": 1, "ac_mode": "full"}, "leave out enable_activation_checkpointing and ac_mode"),
        ({"memory_budget": 1e-4}, r"all layers recomputed a step takes about 0.00 GB .*; lower batch_size"),
    ],
    ids=str,
)
def test_keys_that_cannot_be_followed(given, message):
    with pytest.raises(ConfigError, match=message):
        chosen(**given)


def test_a_budget_recomputes_the_fewest_layers_with_which_the_largest_batch_fits(log_lines):
    memory = count_step(decoder(CONFIG), LOSS, batches().largest())
    peaks = [memory.peak(n) for n in range(8)]
    assert peaks[0] > peaks[3] > peaks[6]
    assert chosen(memory_budget=peaks[0] / 1e9) == []
    assert chosen(memory_budget=peaks[3] / 1e9) == [0, 1, 2]
    assert chosen(memory_budget=(peaks[3] - 1) / 1e9) == [0, 1, 2, 3]
    assert log_lines[1] == (
        f"activations: 3 of 7 layers recomputed; a step takes about {peaks[3] / 1e9:.2f} GB "
        f"of {peaks[3] / 1e9:.2f} GB (memory_budget: {peaks[3] / 1e9})"
    )


def test_accumulated_gradients_are_part_of_the_budget():
    memory = count_step(decoder(CONFIG), LOSS, batches().largest())
    budget = memory.peak(3) / 1e9
    assert len(chosen(memory_budget=budget)) == 3
    assert len(chosen(memory_budget=budget, gradient_accumulation_steps=2)) > 3


def test_auto_leaves_a_tenth_of_what_is_free(monkeypatch, log_lines):
    memory = count_step(decoder(CONFIG), LOSS, batches().largest())
    beside_weights = memory.peak(3) - memory.weights
    monkeypatch.setattr(activations, "free_memory", lambda device: beside_weights / 0.9 + 1)
    assert chosen(memory_budget="auto") == [0, 1, 2]
    monkeypatch.setattr(activations, "free_memory", lambda device: 0)
    assert len(chosen(memory_budget="auto")) == 7  # and tries
    assert "7 of 7 layers recomputed" in log_lines[-1]
    monkeypatch.setattr(activations, "free_memory", lambda device: None)
    with pytest.raises(ConfigError, match="auto cannot find out how much memory is free here; set a number of GB"):
        chosen(memory_budget="auto")


def test_offloading_on_a_cpu_is_one_warning(log_lines):
    model = decoder(CONFIG)
    chosen(model, enable_activation_offloading=True)
    assert log_lines == ["enable_activation_offloading has no effect on cpu; it is for a GPU"]
    assert not model._forward_pre_hooks
