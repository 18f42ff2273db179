import json
import sys
from types import SimpleNamespace

import pytest
import torch

from torchtune_lite.utils import machine


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    for name in ("WANDB_MODE", "WANDB_API_KEY", "CXX", "TORCHTUNE_LITE_NATIVE"):
        monkeypatch.delenv(name, raising=False)


def test_the_report_is_json_and_names_what_there_is():
    report = json.loads(json.dumps(machine.describe_machine()))
    assert report["versions"]["torch"] == torch.__version__
    assert report["versions"]["python"] == sys.version.split()[0]
    assert report["devices"]["cpu"]["threads"] == torch.get_num_threads()
    assert report["devices"]["cpu"]["memory_gib"] > 0


def test_a_package_that_is_missing_is_named_with_its_extra(monkeypatch):
    lines = [
        "torch>=2",
        'no-such-thing>=1; extra == "eval"',
        "ruff; extra == 'dev'",
        'x; python_version>"3" and extra == "a-b"',
    ]
    monkeypatch.setattr(machine.metadata, "requires", lambda name: lines)
    report = machine.describe_machine()
    assert report["versions"]["torch"]
    assert report["optional"] == {
        "no-such-thing": "not installed; pip install 'torchtune_lite[eval]'",
        "x": "not installed; pip install 'torchtune_lite[a-b]'",
    }


def test_nothing_raises_when_torch_cannot_be_imported_and_nothing_is_installed(monkeypatch):
    def nothing(name):
        raise machine.metadata.PackageNotFoundError(name)

    monkeypatch.setitem(sys.modules, "torch", None)
    for function in ("version", "requires"):
        monkeypatch.setattr(machine.metadata, function, nothing)
    monkeypatch.setattr(machine.shutil, "which", lambda name: None)
    report = machine.describe_machine()
    assert "ModuleNotFoundError" in report["devices"]["error"]
    assert report["versions"]["torch"] is None
    assert "no C++ compiler" in report["nf4"]["cpu"] and "Triton is not installed" in report["nf4"]["cuda"]


@pytest.mark.parametrize(
    ("has", "mkldnn", "bf16"),
    [
        ({"avx512_f": True, "avx512_bf16": False, "amx_bf16": False}, True, False),
        ({"avx512_f": True, "avx512_bf16": True, "amx_bf16": False}, True, True),
        ({"amx_bf16": True}, True, True),
        ({"neon": True, "bf16": True}, True, True),
        ({"neon": True, "bf16": True}, False, False),
        ({}, True, False),
    ],
)
def test_a_cpu_has_bf16_where_it_has_the_instructions_and_torch_uses_them(has, mkldnn, bf16, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: has, raising=False)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: mkldnn)
    assert machine.cpu_has_bf16() == bf16
    assert machine.describe_machine()["devices"]["cpu"]["bf16"] == ("in hardware" if bf16 else "emulated")


@pytest.mark.parametrize("has", [False, True])
def test_an_older_torch_is_asked_otherwise(has, monkeypatch):
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: has)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    assert machine.cpu_has_bf16() == has


def test_gpus_are_listed_with_their_memory_and_bf16(monkeypatch):
    gpus = [
        SimpleNamespace(name="new", total_memory=80 * 2**30, major=9),
        SimpleNamespace(name="old", total_memory=2**34, major=7),
    ]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: gpus[index])
    monkeypatch.setattr(torch.version, "hip", None)
    devices = machine.describe_machine()["devices"]
    assert devices["cuda:0"] == {"name": "new", "memory_gib": 80.0, "bf16": "in hardware"}
    assert devices["cuda:1"] == {"name": "old", "memory_gib": 16.0, "bf16": "emulated"}


def test_a_container_may_limit_the_memory(monkeypatch, tmp_path):
    limit = tmp_path / "memory.max"
    monkeypatch.setattr(machine, "CGROUP_LIMIT", limit)
    whole = machine._memory()
    limit.write_text("1048576\n")
    assert machine._memory() == 2**20
    limit.write_text("max\n")
    assert machine._memory() == whole


def test_what_is_free_is_what_machine_and_container_leave(monkeypatch, tmp_path):
    monkeypatch.setattr(machine, "MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(machine, "CGROUP_LIMIT", tmp_path / "memory.max")
    cpu = torch.device("cpu")
    assert machine.free_memory(cpu) is None
    machine.MEMINFO.write_text("MemTotal:  900 kB\nMemAvailable:   500 kB\n")
    assert machine.free_memory(cpu) == 500 * 1024
    (tmp_path / "memory.current").write_text("100\n")
    for limit, free in (("max", 500 * 1024), ("1000", 900), ("9000000", 500 * 1024)):
        machine.CGROUP_LIMIT.write_text(limit)
        assert machine.free_memory(cpu) == free
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (7, 9))
    assert machine.free_memory(torch.device("cuda", 0)) == 7


def test_the_key_of_wandb_is_not_shown(monkeypatch):
    assert "WANDB_MODE=offline needs no account" in machine.describe_machine()["wandb"]["mode"]
    monkeypatch.setenv("WANDB_API_KEY", "hunter2")
    report = machine.describe_machine()
    assert report["wandb"]["mode"] == "online (WANDB_API_KEY is set)" and "hunter2" not in str(report)
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert machine.describe_machine()["wandb"]["mode"] == "offline (WANDB_MODE)"


def test_compiled_loops_may_be_switched_off(monkeypatch):
    monkeypatch.setenv("TORCHTUNE_LITE_NATIVE", "0")
    assert "TORCHTUNE_LITE_NATIVE=0" in machine.describe_machine()["nf4"]["cpu"]
