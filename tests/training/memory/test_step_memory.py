"""The counted memory of a step against the peaks of processes that take one."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from torchtune_lite.data import COLLATES
from torchtune_lite.models.builders import decoder, lora_decoder
from torchtune_lite.modules import DecoderConfig
from torchtune_lite.modules.loss import LinearCrossEntropyLoss
from torchtune_lite.peft import PromptTuning
from torchtune_lite.training.memory.step_memory import Allocations, StepMemory, count_step

SCRIPT = Path(__file__).with_name("step_in_a_process.py")
BATCH = COLLATES["padding_free"]([{"tokens": [1] * 9, "labels": [2] * 9}, {"tokens": [1] * 5, "labels": [2] * 5}])
CONFIG = DecoderConfig(100, num_layers=4, num_heads=2, num_kv_heads=2, embed_dim=128, max_seq_len=64)


CASES = (
    *("lora,float32,padding_free,2", "lora,bfloat16,padded,0,4"),
    *("qlora,bfloat16,padding_free,0,2", "full,float32,padding_free,0"),
)


@pytest.fixture(scope="module")
def pairs():
    """Counted and measured bytes of each case."""
    done = subprocess.run([sys.executable, SCRIPT, *CASES], stdout=subprocess.PIPE, text=True, check=True)
    return dict(zip(CASES, map(json.loads, done.stdout.splitlines()), strict=True))


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's /proc to reset the peak")
@pytest.mark.parametrize("case", CASES)
def test_the_peak_of_a_process_is_the_one_counted(case, pairs):
    for counted, measured in pairs[case]:
        assert counted == pytest.approx(measured, rel=0.15)


def test_allocations_are_counted_until_they_are_freed():
    given = torch.ones(1000)
    with Allocations() as memory:
        assert given.view(10, 100).t().shape == (100, 10) and memory.now == 0  # was there before
        a = given + 1
        b = a.view(10, 100)[2:].t()  # the same memory
        a += given
        c = (b.contiguous() * 2).sum()
        assert memory.now == 4000 + 4
        assert memory.most == 4000 + 2 * 3200
        del a
        assert memory.now == 4000 + 4
        del b, c
        assert memory.now == 0


def test_counting_leaves_no_gradient_and_changes_neither_weights_nor_random_numbers():
    model = decoder(replace(CONFIG, attn_dropout=0.5)).train()
    before, random = {name: value.clone() for name, value in model.state_dict().items()}, torch.get_rng_state()
    count_step(model, LinearCrossEntropyLoss(), BATCH)
    assert torch.equal(torch.get_rng_state(), random)
    assert all(param.grad is None for param in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_what_is_trained_is_counted_by_where_it_is():
    memory = count_step(lora_decoder(CONFIG, ["q_proj"], lora_rank=8), LinearCrossEntropyLoss(), BATCH)
    assert (memory.num_layers, memory.hidden) == (4, 14 * 128 * 4)
    assert memory.layer_gradients == 2 * 8 * 128 * 4
    assert (memory.gradients, memory.output_gradients) == (4 * memory.layer_gradients, 0)
    full = count_step(decoder(CONFIG), LinearCrossEntropyLoss(), BATCH)
    assert full.gradients == full.weights
    assert full.output_gradients == 100 * 128 * 4


def test_virtual_tokens_are_counted_before_each_sample():
    plain = lora_decoder(CONFIG, lora_attn_modules=["q_proj"])
    plain.requires_grad_(False)
    prompted = lora_decoder(CONFIG, adapter=PromptTuning(7))
    without, counted = (count_step(model, LinearCrossEntropyLoss(), BATCH) for model in (plain, prompted))
    assert counted.hidden == without.hidden / 14 * (14 + 2 * 7)
    assert counted.kept > 1.5 * without.kept and counted.loss == without.loss


def test_each_moment_of_a_step_may_be_the_peak():
    sizes = dict(num_layers=4, weights=1000, gradients=0, layer_gradients=0, output_gradients=0, hidden=1, kept=10,
                 working=5, loss=3)  # fmt: skip
    of = lambda checkpointed, **changed: StepMemory(**sizes | changed).peak(checkpointed) - 1000  # noqa: E731
    assert [of(n) for n in range(5)] == [1 + 40 + 5, 1 + 1 + 30 + 5, 1 + 2 + 20 + 5, 1 + 3 + 10 + 5, 1 + 4 + 15]
    assert of(0, loss=7) == 1 + 40 + 7
    trained = dict(gradients=1100, layer_gradients=200, output_gradients=100)
    assert of(0, **trained) == 2 * 1100 + max(46 + 100, 1 + 15 + 100 + 3 * 200, 1100)
    assert of(0, **trained, working=1000) == 2 * 1100 + 1 + 10 + 1000 + 100 + 3 * 200
    assert of(2, **trained, working=2000) == 2 * 1100 + 1 + 10 + 2000 + 100 + 3 * 200
    assert of(0, **trained, accumulates=True) == 2 * 1100 + 1 + 40 + 5 + 1100


@pytest.mark.gpu
@pytest.mark.parametrize(("recomputed", "collate"), [(0, "padding_free"), (3, "padded"), (6, "padding_free")])
@pytest.mark.parametrize("method", ["lora", "qlora", "full"])
def test_on_a_gpu_the_peak_of_the_allocator_is_the_one_counted(method, recomputed, collate, default_dtype):
    config = DecoderConfig(8000, 6, 8, 8, 1024, 2048, 2816)
    x = torch.ones(64, 64, device="cuda", dtype=torch.bfloat16)
    torch.nn.functional.linear(x, x)  # allocates what the library of products works in
    before = torch.cuda.memory_allocated()
    adapted = {"apply_lora_to_mlp": True, "quantize_base": method == "qlora"}
    with torch.device("cuda"), default_dtype(torch.bfloat16):
        model = decoder(config) if method == "full" else lora_decoder(config, ["q_proj", "v_proj"], **adapted)
    loss_fn = LinearCrossEntropyLoss()
    model.train().activation_checkpointing = range(recomputed)
    batch = COLLATES[collate]([{"tokens": [1] * n, "labels": [1] * n} for n in (1024, 512, 512)])
    counted = count_step(model, loss_fn, batch).peak(recomputed)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], fused=True)
    tokens, labels = batch["tokens"].cuda(), batch["labels"].cuda()
    for _ in range(2):
        torch.cuda.reset_peak_memory_stats()
        loss_fn(model.output, model(tokens, seq_lens=batch.get("seq_lens"), skip_output=True), labels).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert torch.cuda.max_memory_allocated() - before == pytest.approx(counted, rel=0.1)
