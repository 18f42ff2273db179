"""The feed-forward with LoRA in few steps, against the same projections one by one."""

import pytest
import torch
from torch.testing import assert_close
from torch.utils.checkpoint import checkpoint

from torchtune_lite.kernels import fused_mlp, plain
from torchtune_lite.kernels.nf4 import linear as nf4_linear
from torchtune_lite.modules import DecoderConfig, FeedForward
from torchtune_lite.peft import DoRALinear, LoRALinear
from torchtune_lite.training.memory.step_memory import Allocations

SIZES = {"vocab_size": 8, "num_layers": 1, "num_heads": 2, "num_kv_heads": 2, "embed_dim": 128, "max_seq_len": 8}
RANKS = {"w1": 3, "w2": 4, "w3": 5}


def feed_forward(quantize_base=False, dtype=torch.float32, tile=None, activation="silu"):
    """A feed-forward with LoRA; no update is zero, no two ranks are equal."""
    torch.manual_seed(0)
    config = DecoderConfig(**SIZES, intermediate_dim=256, activation=activation)
    mlp = FeedForward(config, lambda name, i, o: LoRALinear(i, o, RANKS[name], 8, quantize_base=quantize_base))
    for w in (mlp.w1, mlp.w2, mlp.w3):
        torch.nn.init.normal_(w.lora_b.weight, std=0.3)
    mlp.tile = tile
    return mlp.to(dtype)


def gradients(mlp, x, probe, call=lambda mlp, x: mlp(x)):
    """The output, and the gradients of the input and the factors."""
    y = call(mlp, x)
    return y, torch.autograd.grad(y, [x, *(p for name, p in mlp.named_parameters() if "lora" in name)], probe)


def plain_gradients(*args):
    with plain():
        return gradients(*args)


@pytest.mark.parametrize(("dtype", "atol"), [(torch.float32, 2e-4), (torch.bfloat16, 0.2)])
@pytest.mark.parametrize("quantize_base", [False, True])
@pytest.mark.parametrize("tile", [None, 3, 10, 99])
@pytest.mark.parametrize("activation", ["silu", "gelu_tanh"])
def test_output_and_gradients_are_those_of_the_projections(activation, tile, quantize_base, dtype, atol):
    mlp = feed_forward(quantize_base, dtype, tile, activation)
    x, probe = torch.randn(2, 5, 128, dtype=dtype, requires_grad=True), torch.randn(2, 5, 128, dtype=dtype)
    expected, expected_grads = plain_gradients(mlp, x, probe)
    found, grads = gradients(mlp, x, probe)
    assert type(found.grad_fn.next_functions[0][0]).__name__ in ("_AddProductBackward", "_InTilesBackward")
    assert_close(found, expected, atol=atol, rtol=2e-2)
    assert len(grads) == 7
    for mine, theirs in zip(grads, expected_grads, strict=True):
        assert mine.dtype == dtype and mine.abs().max() > 1e-2
        assert (mine - theirs).norm() <= (1e-5 if dtype == torch.float32 else 2e-2) * theirs.norm()


def test_factors_may_be_more_precise_than_the_input():
    mlp = feed_forward()
    for w in (mlp.w1, mlp.w2, mlp.w3):
        w.weight.data = w.weight.data.bfloat16()
    x, probe = torch.randn(7, 128).bfloat16().requires_grad_(), torch.randn(7, 128).bfloat16()
    for mine, theirs in zip(gradients(mlp, x, probe)[1], plain_gradients(mlp, x, probe)[1], strict=True):
        assert mine.dtype == theirs.dtype
        assert (mine - theirs).norm() <= 2e-2 * theirs.norm()


@pytest.mark.parametrize("tile", [None, 2])
def test_an_input_without_gradient_gets_none(tile):
    mlp = feed_forward(tile=tile)
    mlp(torch.randn(3, 128)).sum().backward()
    assert all(p.grad is not None for name, p in mlp.named_parameters() if "lora" in name)


def test_the_input_and_two_values_of_the_middle_are_kept_for_the_backward_pass_and_of_tiles_the_input():
    x = torch.randn(1000, 128, requires_grad=True)

    def kept(mlp):
        storages = {}
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t, into=storages: into.setdefault(t.data_ptr(), t), lambda t: t
        ):
            mlp(x)
        return sum(t.numel() for t in storages.values() if t.shape[0] == 1000) / 1000

    with plain():
        assert kept(feed_forward()) >= 128 + 4 * 256
    assert kept(feed_forward()) <= 128 + 2 * 256 + 3 + 4 + 5
    assert kept(feed_forward(tile=300)) == 128


@pytest.mark.parametrize("tile", [None, 9])
@pytest.mark.parametrize("quantize_base", [False, True])
def test_recomputed_it_leaves_the_last_product_out_and_changes_no_bit(quantize_base, tile, monkeypatch):
    fused = feed_forward(quantize_base, tile=tile)
    x, probe = torch.randn(9, 128, requires_grad=True), torch.randn(9, 128)
    products = []
    for name in ("linear", "linear_t"):
        product = getattr(nf4_linear, name)
        counted = lambda *args, product=product, name=name, **kw: (products.append(name), product(*args, **kw))[1]  # noqa: E731
        for module in ("fused_mlp", "fused_lora"):
            monkeypatch.setattr(f"torchtune_lite.kernels.{module}.{name}", counted)

    def residual(mlp, x):
        return x + mlp(x)

    _, expected = gradients(fused, x, probe, residual)
    assert products == ["linear"] * 3 + (["linear"] * 2 if tile else []) + ["linear_t"] * 3
    products.clear()
    _, found = gradients(fused, x, probe, lambda mlp, x: checkpoint(residual, mlp, x, use_reentrant=False))
    in_turn = ["linear"] * 2 + ["linear_t"] if tile else ["linear_t"] + ["linear"] * 2
    assert products == ["linear"] * 3 + in_turn + ["linear_t"] * 2
    for mine, theirs in zip(found, expected, strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize("odd_one", ["DoRA", "dropout", "trained", "bias", "edited"])
def test_whatever_is_not_plain_lora_is_computed_by_itself(odd_one, monkeypatch):
    monkeypatch.setattr(fused_mlp, "GatedMLP", None)  # would raise
    mlp = feed_forward()
    mlp.w2 = {
        "DoRA": lambda: DoRALinear(256, 128, 2, 4),
        "dropout": lambda: LoRALinear(256, 128, 2, 4, dropout=0.1),
        "trained": lambda: torch.nn.Linear(256, 128, bias=False),
        "bias": lambda: LoRALinear(256, 128, 2, 4, use_bias=True),
        "edited": lambda: LoRALinear(256, 128, 2, 4),
    }[odd_one]()
    if odd_one == "edited":
        monkeypatch.setattr(LoRALinear, "forward", lambda self, x: x.new_zeros(*x.shape[:-1], self.out_dim))
    y = mlp(torch.randn(3, 128))
    assert odd_one != "edited" or not y.any()


def test_a_tile_holds_a_share_of_the_memory():
    x = torch.randn(4096, 128, requires_grad=True)
    most = []
    for tile in (None, 256):
        mlp = feed_forward(tile=tile)
        with Allocations() as memory:
            mlp(x).sum().backward()
        most.append(memory.most)
    assert most[1] < most[0] / 2


@pytest.mark.parametrize("activation", ["silu", "gelu_tanh"])
def test_the_derivative_written_in_place_is_that_of_autograd(activation):
    """Each activation's backward pass equals that with `grad_input`, bit for bit."""
    made = fused_mlp.ACTIVATIONS[activation]
    for dtype in (torch.float32, torch.bfloat16):
        x, grad = torch.randn(1000, dtype=dtype, requires_grad=True), torch.randn(1000, dtype=dtype)
        (expected,) = torch.autograd.grad(made.forward(x), x, grad)
        assert torch.equal(made.backward(grad, x.detach(), grad_input=grad), expected)
