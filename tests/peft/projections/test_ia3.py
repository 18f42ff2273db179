"""IA3 on one projection."""

import pytest
import torch
from torch import nn

from torchtune_lite.peft import IA3


@pytest.mark.parametrize("name", ["layers.0.attn.k_proj", "layers.0.mlp.w2"])
def test_factors_are_on_outputs_or_before_the_last_projection_of_a_feedforward(name):
    torch.manual_seed(0)
    base = nn.Linear(6, 4)
    adapter, x = IA3().put(name, base), torch.randn(3, 6)
    assert torch.equal(adapter(x), base(x))
    factors = torch.rand_like(adapter.ia3_l)
    adapter.ia3_l.data.copy_(factors)
    expected = base(x) * factors.t() if "k_proj" in name else base(x * factors)
    torch.testing.assert_close(adapter(x), expected)
    merged = x @ adapter.merged_weight().t() + adapter.merged_bias()
    torch.testing.assert_close(merged, expected)
    adapter.enabled = False
    assert torch.equal(adapter(x), base(x))
