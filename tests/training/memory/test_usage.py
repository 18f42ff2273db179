"""Parameter counts, storage and peak memory, each against something measured another way."""

import resource
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from torchtune_lite.peft import LoRALinear
from torchtune_lite.training import parameter_summary, peak_memory, reset_peak_memory, storage_summary
from torchtune_lite.training.memory import usage as memory

CPU = torch.device("cpu")
MIB = 1024**2


def test_the_summary_counts_trainable_and_all_parameters():
    model = nn.Sequential(nn.Linear(1000, 1000, bias=False), nn.Linear(1000, 24, bias=False))
    model[0].weight.requires_grad_(False)
    assert parameter_summary(model) == "trainable params 24,000 of 1,024,000 (2.34 %)"


def test_the_summary_of_a_frozen_or_empty_model():
    assert parameter_summary(nn.Module()) == "trainable params 0 of 0 (0.00 %)"


def test_the_storage_of_a_quantised_model_is_counted_by_kind():
    model = nn.Sequential(LoRALinear(512, 512, 8, 16, quantize_base=True), nn.Linear(1024, 8192, bias=False))
    model[1].bfloat16()
    nf4 = 512 * 512 // 2 + 512 * 512 // 64 + 4 * 512 * 512 // 16384 + 4  # codes, scales, factors, mean
    assert storage_summary(model) == (
        f"weights: 8,388,608 in bfloat16 (0.02 GB), 262,144 in NF4 ({nf4 / 1e6:.2f} MB), 8,192 in float32 (0.03 MB)"
    )
    assert storage_summary(nn.Module()) == "weights: none"


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's /proc to reset the peak")
def test_a_cpu_peak_sees_an_allocation_that_is_gone_and_can_be_reset():
    reset_peak_memory(CPU)
    before = peak_memory(CPU)["peak_memory_resident"]
    block = torch.ones(64 * MIB // 4)
    del block
    grown = peak_memory(CPU)["peak_memory_resident"] - before
    assert 60 * MIB < grown * memory.GIB < 80 * MIB
    reset_peak_memory(CPU)
    assert peak_memory(CPU)["peak_memory_resident"] < before + grown / 2


def test_without_proc_the_peak_is_that_of_the_whole_process(monkeypatch, tmp_path):
    monkeypatch.setattr(memory, "STATUS", tmp_path / "missing")
    monkeypatch.setattr(memory, "CLEAR_REFS", tmp_path / "missing" / "clear_refs")
    reset_peak_memory(CPU)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    assert peak_memory(CPU)["peak_memory_resident"] == pytest.approx(peak / memory.GIB, rel=0.05)


def test_free_memory_is_what_the_system_has_and_a_container_leaves(monkeypatch, tmp_path):
    monkeypatch.setattr(memory, "MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(memory, "CGROUP", tmp_path)
    assert memory.free_memory(CPU) is None
    (tmp_path / "meminfo").write_text("MemTotal:  9000 kB\nMemAvailable:    5000 kB\n")
    assert memory.free_memory(CPU) == 5000 * 1024
    (tmp_path / "memory.current").write_text("1000\n")
    for limit, free in (("max\n", 5000 * 1024), ("4000\n", 3000)):
        (tmp_path / "memory.max").write_text(limit)
        assert memory.free_memory(CPU) == free


@pytest.mark.gpu
def test_a_gpu_peak_sees_an_allocation_that_is_gone_and_can_be_reset():
    device = torch.device("cuda")
    reset_peak_memory(device)
    before = peak_memory(device)
    block = torch.ones(64 * MIB // 4, device=device)
    del block
    after = peak_memory(device)
    assert set(after) == {"peak_memory_active", "peak_memory_alloc", "peak_memory_reserved"}
    assert (after["peak_memory_alloc"] - before["peak_memory_alloc"]) * memory.GIB == pytest.approx(64 * MIB)
    reset_peak_memory(device)
    assert peak_memory(device)["peak_memory_alloc"] == before["peak_memory_alloc"]
