"""A loss or gradient that is not finite stops the run before the optimizer."""

import pytest
import torch

from torchtune_lite.errors import NonFiniteError
from torchtune_lite.training import check_finite


def test_finite_values_pass():
    check_finite(3, loss=1.5, grad_norm=torch.tensor(0.25))


def test_every_value_that_is_not_finite_is_named():
    with pytest.raises(NonFiniteError, match="step 57: loss is nan and grad_norm is inf; .*optimizer.lr") as caught:
        check_finite(57, loss=float("nan"), lr=1e-4, grad_norm=torch.tensor(float("inf")))
    assert caught.value.exit_code == 6
    assert "\n" not in str(caught.value)
