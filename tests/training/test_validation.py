"""The means of a validation."""

import math

import pytest

from torchtune_lite.training import mean_losses


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
