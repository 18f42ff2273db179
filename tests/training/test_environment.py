"""dtype, mixed precision and seed."""

import contextlib
import random

import numpy as np
import pytest
import torch

from torchtune_lite.errors import ConfigError
from torchtune_lite.models import llama2
from torchtune_lite.modules import transformer
from torchtune_lite.modules.loss import LinearCrossEntropyLoss
from torchtune_lite.training import choose_dtype, environment, get_dtype, get_precision, set_seed

CPU = torch.device("cpu")


def draw():
    return random.random(), np.random.rand(), torch.rand(1).item()


def test_the_names_of_the_dtypes():
    assert get_dtype("fp32", CPU) is torch.float32
    assert get_dtype("bf16", CPU) is torch.bfloat16
    assert get_dtype("fp16", CPU) is torch.float16


@pytest.mark.parametrize("name", ["float32", "int8"])
def test_another_dtype_is_an_error_that_lists_the_choices(name):
    with pytest.raises(ConfigError, match=f"dtype: '{name}' .* fp32, bf16, fp16"):
        get_dtype(name, CPU)


def test_bf16_on_a_device_without_it_is_an_error(monkeypatch):
    monkeypatch.setattr(torch.backends.mps, "is_macos_or_newer", lambda major, minor: False)
    with pytest.raises(ConfigError, match="bf16 is not supported by mps .* dtype: fp32"):
        get_dtype("bf16", torch.device("mps"))
    assert get_dtype("fp32", torch.device("mps")) is torch.float32


@pytest.fixture
def bf16(monkeypatch):
    """Pretend to have devices, some of them with bf16."""

    def pretend(cpu=False, gpu=False, mps=False):
        monkeypatch.setattr(environment, "cpu_has_bf16", lambda: cpu)
        monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: gpu)
        monkeypatch.setattr(torch.backends.mps, "is_macos_or_newer", lambda major, minor: mps)

    return pretend


@pytest.mark.parametrize("has", [False, True])
@pytest.mark.parametrize(("kind", "here"), [("cpu", "this CPU"), ("cuda", "this GPU"), ("mps", "this GPU")])
def test_auto_is_bf16_where_the_device_has_it_and_says_what_it_chose(kind, here, has, bf16, log_lines):
    bf16(**{"gpu" if kind == "cuda" else kind: has})
    assert choose_dtype("auto", torch.device(kind)) == ("bf16" if has else "fp32")
    chosen = f"bf16 (native on {here})" if has else f"fp32 ({here} has no native bf16)"
    assert log_lines == [f"dtype: auto chose {chosen}"]


@pytest.mark.parametrize(
    ("dtype", "cpu", "factor", "warned"),
    [
        ("bf16", False, 11.24, True),
        ("bf16", False, 0.9, False),  # a CPU that is better than is known of it
        ("bf16", True, 11.24, False),
        ("fp16", True, 17.0, True),
        ("fp32", False, 11.24, False),
    ],
)
def test_16_bits_that_a_cpu_emulates_are_warned_of_with_the_factor(
    dtype, cpu, factor, warned, bf16, log_lines, monkeypatch
):
    bf16(cpu=cpu)
    monkeypatch.setattr(environment, "slowdown", lambda dtype: factor)
    assert choose_dtype(dtype, CPU) == dtype
    line = f"dtype: {dtype} is emulated by this CPU: a product takes about {factor:.2g} times as long as in fp32; "
    assert log_lines == ([f"{line}set dtype: fp32, or auto"] if warned else [])


def test_a_gpu_is_not_measured(bf16, log_lines, monkeypatch):
    bf16(gpu=True)
    monkeypatch.setattr(environment, "slowdown", None)
    assert [choose_dtype(name, torch.device("cuda")) for name in ("bf16", "fp16", "fp32")] == ["bf16", "fp16", "fp32"]
    assert log_lines == []


def test_the_slowdown_is_the_shortest_time_by_the_shortest_in_float32(monkeypatch):
    seconds = iter([0, 9, 0, 8, 0, 10, 0, 4, 0, 2, 0, 3])
    monkeypatch.setattr(environment.time, "perf_counter", lambda: next(seconds))
    assert environment.slowdown(torch.bfloat16) == 4


LORA = {"lora_attn_modules": ["q_proj", "v_proj"], "apply_lora_to_mlp": True, "lora_rank": 4, "lora_alpha": 8}


@pytest.fixture
def model_and_tokens():
    """A small model `build(options)` whose update is not zero, and tokens of two documents."""

    def build(options):
        torch.manual_seed(0)
        sizes = {"num_layers": 2, "num_heads": 4, "num_kv_heads": 4, "embed_dim": 128, "intermediate_dim": 256}
        make = llama2.lora_llama2 if options else llama2.llama2
        model = make(vocab_size=96, max_seq_len=64, **sizes, **options).train()
        for name, param in model.named_parameters():
            if "lora_b" in name:
                torch.nn.init.normal_(param, std=0.1)
        return model, torch.randint(0, 96, (1, 40))

    return build


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize(
    "options",
    [{}, LORA, LORA | {"quantize_base": True}, LORA | {"use_dora": True}],
    ids=["full", "lora", "qlora", "dora"],
)
def test_mixed_precision_computes_in_16_bits_what_float32_computes(
    options, checkpointing, model_and_tokens, monkeypatch
):
    model, tokens = model_and_tokens(options)
    model.activation_checkpointing = checkpointing
    attended = []

    def attention(q, k, v, *args, **options):
        attended.extend((q.dtype, k.dtype, v.dtype))
        return real(q, k, v, *args, **options)

    real = transformer.attention
    monkeypatch.setattr(transformer, "attention", attention)

    def losses(dtype):
        weights, autocast = get_precision(dtype, CPU, mixed=dtype != "fp32")
        assert weights is torch.float32
        model.zero_grad()
        attended.clear()
        with autocast:
            hidden = model(tokens, seq_lens=[25, 15], skip_output=True)
            loss = LinearCrossEntropyLoss()(model.output, hidden, tokens)
        loss.backward()
        assert set(attended) == {get_dtype(dtype, CPU)}
        return loss.item(), torch.cat([p.grad.flatten() for p in model.parameters() if p.requires_grad])

    loss, grad = losses("fp32")
    for dtype, tolerance in (("bf16", 0.02), ("fp16", 0.0025)):
        other_loss, other_grad = losses(dtype)
        assert other_loss == pytest.approx(loss, rel=tolerance / 10)
        assert 0 < (other_grad - grad).norm() / grad.norm() < tolerance


def test_without_mixed_precision_nothing_is_cast():
    dtype, autocast = get_precision("bf16", CPU)
    with autocast:
        assert torch.nn.functional.linear(torch.ones(1, 1), torch.ones(1, 1)).dtype == torch.float32
    assert dtype is torch.bfloat16


def test_mixed_precision_of_fp32_is_an_error():
    with pytest.raises(ConfigError, match="mixed_precision: True is for dtype: bf16 or fp16; with dtype: fp32, set it"):
        get_precision("fp32", CPU, mixed=True)


def test_one_seed_sets_every_generator():
    assert set_seed(7) == 7
    first = draw()
    set_seed(7)
    assert draw() == first
    set_seed(8)
    assert all(a != b for a, b in zip(draw(), first, strict=True))


def test_no_seed_draws_one_that_is_logged_and_repeats_the_run(log_lines):
    seed = set_seed(None)
    first = draw()
    assert set_seed(seed) == seed
    assert log_lines == [f"seed: {seed} (drawn)"]
    assert draw() == first
    assert len({set_seed(None) for _ in range(5)}) > 1


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_a_seed_out_of_range_is_an_error(seed):
    with pytest.raises(ConfigError, match=f"seed: {seed} is out of range"):
        set_seed(seed)
