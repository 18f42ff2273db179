"""The requested device, or an error that says how to get one."""

import subprocess
import sys

import pytest
import torch

from torchtune_lite.errors import ConfigError
from torchtune_lite.utils import get_device, to_device


@pytest.fixture
def machine(monkeypatch):
    """Pretend to have a build of torch with CUDA and the given number of GPUs."""

    def pretend(gpus, cuda_build="13.0"):
        monkeypatch.setattr(torch.version, "cuda", cuda_build)
        monkeypatch.setattr(torch.version, "hip", None)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Test GPU")
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)

    return pretend


def test_auto_takes_the_gpu_and_says_so(machine, capsys):
    machine(gpus=1)
    assert get_device("auto") == torch.device("cuda")
    assert "auto chose cuda (Test GPU)" in capsys.readouterr().err


@pytest.mark.parametrize(("gpus", "chosen"), [(0, "mps (Apple GPU)"), (1, "cuda (Test GPU)")])
def test_auto_takes_the_gpu_of_a_mac(gpus, chosen, machine, monkeypatch, log_lines):
    machine(gpus)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert get_device("auto").type == chosen.split()[0]
    assert log_lines == [f"device: auto chose {chosen}"]


def test_auto_takes_the_cpu_without_a_gpu_and_says_so(machine, capsys):
    machine(gpus=0)
    assert get_device() == torch.device("cpu")
    assert "auto chose cpu" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["cpu", "cuda", "cuda:1"])
def test_a_device_that_is_there_is_taken_by_its_name(machine, name):
    machine(gpus=2)
    assert get_device(name) == torch.device(name)


@pytest.mark.parametrize(
    ("name", "gpus", "cuda_build", "reason"),
    [
        ("cuda", 0, None, "built without CUDA; install"),
        ("cuda", 0, "13.0", "nvidia-smi"),
        ("cuda:2", 2, "13.0", "has 2 GPUs, from cuda:0 on"),
    ],
)
def test_a_missing_gpu_is_an_error_that_names_the_fix(machine, name, gpus, cuda_build, reason):
    machine(gpus, cuda_build)
    with pytest.raises(ConfigError, match=f"device: {name} is not available: .*{reason}.* device: cpu"):
        get_device(name)


def test_a_missing_mps_is_an_error(monkeypatch):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="device: mps .* device: cpu"):
        get_device("mps")


@pytest.mark.parametrize("name", ["gpu", "cuda:", "cuda:x", "cpu:1", "mps:0", ""])
def test_an_unknown_name_lists_the_choices(machine, name):
    machine(gpus=1)
    with pytest.raises(ConfigError, match="choose auto, cpu, cuda, cuda:N or mps"):
        get_device(name)


def test_importing_utils_does_not_import_torch():
    code = "import sys, torchtune_lite.utils; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


class Calls(list):
    """A tensor that notes its moves."""

    def pin_memory(self):
        self.append("pinned")
        return self

    def to(self, device, non_blocking):
        self.append(f"to {device}" + ", not waited for" * non_blocking)
        return self


@pytest.mark.parametrize(
    ("device", "calls"),
    [
        ("cuda:1", ["pinned", "to cuda:1, not waited for"]),
        ("mps", ["to mps"]),
        ("meta", ["to meta, not waited for"]),
    ],
)
def test_nobody_waits_for_a_copy_to_a_gpu(device, calls):
    assert to_device(Calls(), torch.device(device)) == calls


def test_on_a_cpu_there_is_nothing_to_copy():
    tensor = torch.ones(2)
    assert to_device(tensor, torch.device("cpu")) is tensor
