"""VeRA's random matrices, and its update on projections of several shapes."""

import pytest
import torch
from torch import nn

from torchtune_lite.peft import VeRA


def test_the_matrices_are_peft_s():
    """Seed 0 on projections of 16 inputs and 16 outputs, rank 4, as PEFT 0.21 draws it."""
    adapter = VeRA(r=4).put("layers.0.attn.q_proj", nn.Linear(16, 16))
    a, b = adapter.factors.like(adapter.vera_lambda_d)
    assert a[0, :3].tolist() == pytest.approx([-0.004585, 0.328503, -0.504010], abs=1e-6)
    assert b[0, :3].tolist() == pytest.approx([0.672351, -0.154584, 0.046763], abs=1e-6)


def test_projections_of_all_shapes_share_them():
    torch.manual_seed(0)
    method = VeRA(r=3)
    wide, tall = (method.put("layers.0.attn.q_proj", nn.Linear(*dims)) for dims in ((10, 4), (5, 8)))
    a, b = wide.factors.like(wide.vera_lambda_d)
    assert a.shape == (3, 10) and b.shape == (8, 3)
    for adapter in (wide, tall):
        x = torch.randn(2, adapter.in_dim)
        plain = nn.functional.linear(x, adapter.weight, adapter.bias)
        assert torch.equal(adapter(x), plain)
        adapter.vera_lambda_b.data.normal_()
        adapter.vera_lambda_d.data.normal_()
        update = (adapter.vera_lambda_b[:, None] * b[: adapter.out_dim]) @ (
            adapter.vera_lambda_d[:, None] * a[:, : adapter.in_dim]
        )
        torch.testing.assert_close(adapter(x), plain + x @ update.t())
        torch.testing.assert_close(adapter.merged_weight(), adapter.weight + update)
        adapter.enabled = False
        assert torch.equal(adapter(x), plain)


def test_a_rank_below_one_is_refused():
    with pytest.raises(ValueError, match="r 0 must be at least 1"):
        VeRA(r=0)
