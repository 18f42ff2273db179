"""What processes tell each other: in two of them, forked, and alone."""

import ast
import json
import re
from pathlib import Path

import pytest
import torch

from tests.recipes.conftest import tune_in, tune_server  # noqa: F401
from torchtune_lite import launcher
from torchtune_lite.errors import ConfigError
from torchtune_lite.training import distributed
from torchtune_lite.training.distributed import buckets
from torchtune_lite.utils import sharding, world

CASES = '''
import json
import sys
import time
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import torch
from torch.distributed.distributed_c10d import _set_pg_timeout

from torchtune_lite import config
from torchtune_lite.errors import DataError
from torchtune_lite.training import distributed
from torchtune_lite.training.distributed import Processes
from torchtune_lite.training.environment import set_seed
from torchtune_lite.training.settings import Parallel


@dataclass(kw_only=True)
class Settings:
    case: str
    parallel: Parallel = config.mapping(Parallel)


def numbers(world):
    return world.sum(1.0, world.rank, 1e-9), world.gather({"rank": world.rank}), world.on_main(lambda: world.rank)


def gradients(world):
    """Two dtypes, a parameter without a gradient, and buckets smaller than one of them."""
    distributed.BUCKET = 64
    params = [torch.nn.Parameter(torch.zeros(size, dtype=dtype)) for size, dtype in
              ((3, torch.float32), (40, torch.float32), (5, torch.bfloat16), (2, torch.float32))]
    for number, param in enumerate(params[:3]):
        param.grad = torch.full_like(param, number + 10 * world.rank)
    if world.rank:
        params[3].grad = torch.ones(2)
    world.sum_gradients(params)
    return [(param.grad[0].item(), param.grad[-1].item(), str(param.grad.dtype)) for param in params]


def spread(world):
    param = torch.nn.Parameter(torch.full((2,), 3.0 + world.rank))
    world.spread([param])
    return param.tolist()


class Drawing(torch.optim.SGD):
    def step(self):
        self.drawn = torch.rand(1).item()


def draws(world):
    set_seed(5)
    world.draw_apart(5)
    before = torch.rand(1).item()
    optimizer = Drawing([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    world.draw_alike(optimizer, lambda: "5/1")
    optimizer.step()
    return before, optimizer.drawn, torch.rand(1).item()


def another_config(world):
    world.check_alike({"seed": 1, "optimizer": {"lr": world.rank}})


def error_of_one(world):
    raise world.first(DataError("a.jsonl:3: bad") if world.rank == 1 else None)


def error_of_a_disk(world):
    """Everybody has it, and goes on."""
    def write():
        if world.rank == 1:
            raise OSError(28, "No space left")
        return 5

    found = []
    for call in (world.together, world.lead):
        try:
            found.append(call(write))
        except OSError as error:
            found.append(error.strerror)
    return found


def error_of_code(world):
    raise world.first(ZeroDivisionError("no") if world.rank == 1 else None)


def absent(world):
    """Rank 0 waits a second for rank 1, which comes once the other has ended."""
    world.place, world.timeout = "step 4", timedelta(seconds=1)
    _set_pg_timeout(world.timeout, world._control)
    if world.rank == 0:
        try:
            world.sum()
        finally:
            Path("ended").touch()
    while not Path("ended").exists():
        time.sleep(0.02)


@config.parse(Settings)
def recipe_main(cfg):
    world = Processes(torch.device("cpu"), cfg.parallel.timeout)
    found = globals()[cfg.case](world)
    print(json.dumps([world.rank, found]) + "\\n", end="", flush=True)  # in one piece
    world.close()


if __name__ == "__main__":
    sys.exit(recipe_main())
'''


@pytest.fixture
def together(tune_in, tmp_path):  # noqa: F811
    """Runs a case in two processes; gives what each found, or the whole result where it fails."""
    (tmp_path / "cases.py").write_text(CASES)
    (tmp_path / "cases.yaml").write_text("parallel: {timeout: 60}\n")

    def run(case: str, *words: str, check: bool = True):
        command = ["run", "cases.py", "--config", "cases.yaml", f"case={case}", *words]
        result = tune_in(tmp_path, *command, processes=2, check=check)
        return [found for _, found in sorted(map(json.loads, result.stdout.splitlines()))] if check else result

    return run


def test_numbers_are_summed_gathered_and_told(together):
    expected = [[2.0, 1.0, 2e-9], [{"rank": 0}, {"rank": 1}], 0]
    assert together("numbers") == [expected, expected]


def test_parameters_start_as_those_of_the_first(together):
    assert together("spread") == [[3.0, 3.0], [3.0, 3.0]]


def test_an_error_of_one_can_be_that_of_all(together):
    assert together("error_of_a_disk") == [["No space left", None]] * 2  # the second call is rank 0's alone


def test_gradients_are_summed_in_their_dtype(together):
    summed = [[10.0, 10.0, "torch.float32"], [12.0, 12.0, "torch.float32"], [14.0, 14.0, "torch.bfloat16"]]
    summed.append([1.0, 1.0, "torch.float32"])
    assert together("gradients") == [summed, summed]


def test_a_process_draws_its_own_numbers_and_an_optimizer_those_of_all(together):
    (before, drawn, after), (other_before, other_drawn, other_after) = together("draws")
    assert before != other_before and after != other_after
    assert drawn == other_drawn != before
    torch.manual_seed(5)
    assert [before, after] == torch.rand(2).tolist()  # of the first, as if it were alone


@pytest.mark.parametrize(
    ("case", "code", "line"),
    [
        ("another_config", 2, "error: rank 1 has another optimizer than rank 0: {'lr': 1}, not {'lr': 0}; start"),
        ("error_of_one", 3, "error: a.jsonl:3: bad"),
        ("error_of_code", 1, "error: rank 1: ZeroDivisionError: no"),
    ],
)
def test_an_error_of_one_ends_all(together, case, code, line):
    result = together(case, check=False)
    assert result.returncode == code
    assert result.stderr.count(f"tune: {line}") == (1 if case == "error_of_code" else 2)


def test_who_does_not_come_is_named(together):
    error = together("absent", check=False).stderr
    assert re.search(r"tune: error: rank 1 did not come to step 4 in \d+ s \(parallel.timeout\): it hangs", error)


def test_buckets_have_one_dtype_and_about_a_size():
    tensors = [torch.zeros(n, dtype=dtype) for n in (3, 5, 1) for dtype in (torch.float32, torch.bfloat16)]
    found = list(buckets(tensors, most=20))
    assert sorted(map(id, (each for bucket in found for each in bucket))) == sorted(map(id, tensors))
    assert all(len({each.dtype for each in bucket}) == 1 for bucket in found)
    assert [[len(each) for each in bucket] for bucket in found] == [[3, 5], [3, 5, 1], [1]]


@pytest.mark.parametrize(
    ("device", "gpus", "here", "local", "answer"),
    [
        ("cuda", 4, 4, 3, "cuda:3"),
        ("auto", 4, 2, 1, "cuda:1"),
        ("cpu", 0, 8, 5, "cpu"),
        ("cuda", 2, 4, 3, "--nproc_per_node 4: this machine has 2 GPUs, one for each process"),
        ("cuda:1", 2, 2, 1, "device: cuda:1 is one device, and several processes run"),
    ],
)
def test_each_process_has_a_gpu_of_its_own(monkeypatch, device, gpus, here, local, answer):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(here))
    monkeypatch.setenv("LOCAL_RANK", str(local))
    monkeypatch.setattr(distributed, "get_device", lambda name: torch.device("cuda" if gpus else "cpu"))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(torch.cuda, "set_device", lambda index: None)
    if "this" in answer or "is one" in answer:
        with pytest.raises(ConfigError, match=answer):
            distributed._device_of(device)
    else:
        assert str(distributed._device_of(device)) == answer


def test_one_process_imports_nothing_of_it():
    """What torch.distributed has is imported where several processes are started, or meet."""
    for module in (distributed, launcher, sharding, world):
        top = [node for node in ast.parse(Path(module.__file__).read_text()).body if isinstance(node, ast.ImportFrom)]
        assert not [node.module for node in top if node.module.startswith("torch.")]
