"""A validation and its means."""

import math

import pytest
import torch
from torch import nn

from torchtune_lite.data import Batches
from torchtune_lite.training import mean_losses
from torchtune_lite.training.distributed import World
from torchtune_lite.training.run.validation import validate


def test_the_only_set_has_one_mean_over_its_label_tokens():
    assert mean_losses({"": [(6.0, 3), (1.0, 1)]}) == {"val_loss": 7 / 4}


def test_several_sets_have_a_mean_each_and_one_over_the_label_tokens_of_all():
    losses = mean_losses({"large": [(90.0, 30), (60.0, 60)], "small": [(30.0, 10)]})
    assert losses == {"val_loss": 180 / 100, "val_loss/large": 150 / 90, "val_loss/small": 3.0}
    named = mean_losses({"mine": [(2.0, 1)]})
    assert named == {"val_loss": 2.0, "val_loss/mine": 2.0}


@pytest.mark.parametrize("sums", [[], [(0.0, 0), (0.0, 0)]])
def test_without_a_label_token_there_is_no_mean(sums):
    assert math.isnan(mean_losses({"": sums})["val_loss"])
    losses = mean_losses({"none": sums, "some": [(2.0, 1)]})
    assert losses["val_loss"] == 2.0 and math.isnan(losses["val_loss/none"])


def test_all_sets_are_gone_through_without_gradients_and_training_goes_on():
    samples = [{"tokens": [n] * n, "labels": [1] * (n - 1) + [-100]} for n in (2, 3, 5)]
    sets = {name: Batches(samples[:count], 2, seed=0, shuffle=False, pad_id=0) for name, count in (("a", 1), ("b", 3))}
    model, modes = nn.Dropout().train(), []

    def loss(batch):
        modes.append((model.training, torch.is_grad_enabled()))
        return torch.tensor(float(batch["tokens"].numel()))

    losses = validate(model, sets, loss, World(torch.device("cpu")))
    assert set(modes) == {(False, False)} and len(modes) == 3
    assert model.training and torch.is_grad_enabled()
    assert losses == {"val_loss": 12 / 8, "val_loss/a": 2 / 1, "val_loss/b": 10 / 7}
