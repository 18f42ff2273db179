"""The feed-forward with LoRA in few steps, against the same projections one by one."""

import pytest
import torch
from torch.testing import assert_close
from torch.utils.checkpoint import checkpoint

from torchtune_lite.errors import ConfigError
from torchtune_lite.models.builders import lora_decoder
from torchtune_lite.modules import DecoderConfig, FeedForward
from torchtune_lite.peft import DoRALinear, LoRAFeedForward, LoRALinear, nf4_linear
from torchtune_lite.training.step_memory import Allocations

CONFIG = DecoderConfig(
    vocab_size=8, num_layers=1, num_heads=2, num_kv_heads=2, embed_dim=128, max_seq_len=8, intermediate_dim=256
)
RANKS = {"w1": 3, "w2": 4, "w3": 5}


def both(quantize_base=False, dtype=torch.float32, tile=None):
    """A feed-forward of projections, and the fused one of the same; no update is zero, no two ranks are equal."""
    torch.manual_seed(0)
    plain = FeedForward(CONFIG, lambda name, i, o: LoRALinear(i, o, RANKS[name], 8, quantize_base=quantize_base))
    for w in (plain.w1, plain.w2, plain.w3):
        torch.nn.init.normal_(w.lora_b.weight, std=0.3)
    plain.to(dtype)
    return plain, LoRAFeedForward(plain, tile)


def gradients(mlp, x, probe, call=lambda mlp, x: mlp(x)):
    """The output, and the gradients of the input and the factors."""
    y = call(mlp, x)
    return y, torch.autograd.grad(y, [x, *(p for name, p in mlp.named_parameters() if "lora" in name)], probe)


@pytest.mark.parametrize(("dtype", "atol"), [(torch.float32, 2e-4), (torch.bfloat16, 0.15)])
@pytest.mark.parametrize("quantize_base", [False, True])
@pytest.mark.parametrize("tile", [None, 3, 10, 99])
def test_output_and_gradients_are_those_of_the_projections(tile, quantize_base, dtype, atol):
    plain, fused = both(quantize_base, dtype, tile)
    x, probe = torch.randn(2, 5, 128, dtype=dtype, requires_grad=True), torch.randn(2, 5, 128, dtype=dtype)
    assert list(plain.state_dict()) == list(fused.state_dict())
    expected, expected_grads = gradients(plain, x, probe)
    found, grads = gradients(fused, x, probe)
    assert_close(found, expected, atol=atol, rtol=2e-2)
    assert len(grads) == 7
    for mine, theirs in zip(grads, expected_grads, strict=True):
        assert mine.dtype == dtype and mine.abs().max() > 1e-2
        assert (mine - theirs).norm() <= (1e-5 if dtype == torch.float32 else 2e-2) * theirs.norm()


def test_factors_may_be_more_precise_than_the_input():
    plain, fused = both()
    for w in (plain.w1, plain.w2, plain.w3):
        w.weight.data = w.weight.data.bfloat16()
    x, probe = torch.randn(7, 128).bfloat16().requires_grad_(), torch.randn(7, 128).bfloat16()
    for mine, theirs in zip(gradients(fused, x, probe)[1], gradients(plain, x, probe)[1], strict=True):
        assert mine.dtype == theirs.dtype
        assert (mine - theirs).norm() <= 2e-2 * theirs.norm()


@pytest.mark.parametrize("tile", [None, 2])
def test_an_input_without_gradient_gets_none(tile):
    _, fused = both(tile=tile)
    fused(torch.randn(3, 128)).sum().backward()
    assert all(p.grad is not None for name, p in fused.named_parameters() if "lora" in name)


def test_the_input_and_two_values_of_the_middle_are_kept_for_the_backward_pass_and_of_tiles_the_input():
    plain, fused = both()
    x = torch.randn(1000, 128, requires_grad=True)
    kept = []
    for mlp in (plain, fused, LoRAFeedForward(plain, tile=300)):
        storages = {}
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t, into=storages: into.setdefault(t.data_ptr(), t), lambda t: t
        ):
            mlp(x)
        kept.append(sum(t.numel() for t in storages.values() if t.shape[0] == 1000) / 1000)
    assert kept[1] <= 128 + 2 * 256 + 3 + 4 + 5
    assert kept[0] >= 128 + 4 * 256
    assert kept[2] == 128


@pytest.mark.parametrize("tile", [None, 9])
@pytest.mark.parametrize("quantize_base", [False, True])
def test_recomputed_it_leaves_the_last_product_out_and_changes_no_bit(quantize_base, tile, monkeypatch):
    _, fused = both(quantize_base, tile=tile)
    x, probe = torch.randn(9, 128, requires_grad=True), torch.randn(9, 128)
    products = []
    for name in ("linear", "linear_t"):
        product = getattr(nf4_linear, name)
        counted = lambda *args, product=product, name=name, **kw: (products.append(name), product(*args, **kw))[1]  # noqa: E731
        for module in ("feed_forward", "products"):
            monkeypatch.setattr(f"torchtune_lite.peft.{module}.{name}", counted)

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


def test_only_plain_lora_without_dropout_is_taken_over():
    kinds = {
        "lora": LoRALinear(8, 8, 2, 4),
        "dora": DoRALinear(8, 8, 2, 4),
        "dropout": LoRALinear(8, 8, 2, 4, dropout=0.1),
        "plain": torch.nn.Linear(8, 8),
    }
    for kind, w2 in kinds.items():
        mlp = FeedForward(CONFIG, lambda name, *_, w2=w2: w2 if name == "w2" else kinds["lora"])
        assert LoRAFeedForward.fits(mlp) == (kind == "lora")


def test_a_tile_holds_a_share_of_the_memory():
    plain, whole = both()
    x = torch.randn(4096, 128, requires_grad=True)
    most = []
    for mlp in (whole, LoRAFeedForward(plain, tile=256)):
        with Allocations() as memory:
            mlp(x).sum().backward()
        most.append(memory.most)
    assert most[1] < most[0] / 2


def test_what_tiles_cannot_do_is_one_line():
    with pytest.raises(ValueError, match="mlp_tile 0 must be at least 1"):
        both(tile=0)
    _, fused = both(tile=2)
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(ConfigError, match="mlp_tile is not served with mixed"):
        fused(torch.randn(3, 128))
    for kwargs in ({"fused_lora": False}, {"apply_lora_to_mlp": False}, {"lora_dropout": 0.1}, {"use_dora": True}):
        lora = {"lora_attn_modules": ["q_proj"], "apply_lora_to_mlp": True, "mlp_tile": 4} | kwargs
        with pytest.raises(ValueError, match="mlp_tile needs fused_lora and apply_lora_to_mlp, without"):
            lora_decoder(CONFIG, **lora)
