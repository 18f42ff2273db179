import pytest
import torch

from tests.optim.test_adamw import trained
from torchtune_lite.optim import MasterAdamW, PagedAdamW, paged


def test_the_state_on_the_device_is_that_of_two_buckets_and_a_copy(monkeypatch):
    """All state is in the host's memory; a bucket is computed on copies, which are dropped afterwards."""
    params = [torch.nn.Parameter(torch.ones(1000)) for _ in range(8)]
    optimizer = PagedAdamW(params)
    optimizer.bucket = 2000
    alive, seen = set(), []
    fetch, finish = optimizer.fetch, optimizer.finish

    def fetching(bucket):
        fetched = fetch(bucket)
        alive.add(id(bucket))
        seen.append(len(alive))
        of_state = {state["exp_avg"].data_ptr() for state in optimizer.state.values()}
        assert all(state["exp_avg"].data_ptr() not in of_state for state in fetched[1])
        return fetched

    def finishing(group, fetched):
        finish(group, fetched)
        alive.remove(id(fetched[0]))

    monkeypatch.setattr(optimizer, "fetch", fetching)
    monkeypatch.setattr(optimizer, "finish", finishing)
    for param in params:
        param.grad = torch.ones_like(param)
    optimizer.step()
    assert seen == [1, 2, 2, 2]


def test_the_state_is_that_of_the_optimizer_it_pages_for():
    param = torch.nn.Parameter(torch.ones(3, 2, dtype=torch.bfloat16))
    paged, plain = PagedAdamW([param]).new_state(param), MasterAdamW([param]).new_state(param)
    assert {key: (v.dtype, v.shape) for key, v in paged.items()} == {
        key: (v.dtype, v.shape) for key, v in plain.items()
    }
    assert all(not value.any() for value in paged.values())


class Log(list):
    """A stream whose calls are written down; marks are numbered."""

    def copies(self, *, of_results=False):
        self.append("results out" if of_results else "state in")
        return torch.no_grad()

    def mark(self):
        self.append(f"mark {sum(each.startswith('mark') for each in self)}")
        return self[-1]

    def before_computing(self, mark):
        self.append(f"device waits for {mark}")

    def wait(self, mark):
        self.append(f"host waits for {mark}")


def step_of_two_buckets(optimizer_class, module, monkeypatch):
    """The calls to the stream in a step of two buckets, and where each is computed."""
    log = Log()
    monkeypatch.setattr(module, "copy_stream", lambda device: log)
    params = [torch.nn.Parameter(torch.ones(10)) for _ in range(2)]
    optimizer = optimizer_class(params)
    optimizer.bucket = 10
    monkeypatch.setattr(optimizer, "update", lambda group, bucket: log.append("compute"))
    for param in params:
        param.grad = torch.ones_like(param)
    optimizer.step()
    return log


def test_a_bucket_is_computed_when_its_state_is_in_while_the_next_comes_in(monkeypatch):
    assert step_of_two_buckets(PagedAdamW, paged, monkeypatch) == [
        *("state in", "mark 0", "state in", "mark 1"),
        *("device waits for mark 0", "compute", "results out"),
        *("device waits for mark 1", "compute", "results out"),
        *("mark 2", "host waits for mark 2"),
    ]


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_on_a_gpu_it_is_the_optimizer_it_pages_for(dtype):
    expected, _ = trained(MasterAdamW, dtype, device="cuda", steps=8)
    params, optimizer = trained(PagedAdamW, dtype, device="cuda", steps=8, bucket=1000)
    for param, other in zip(params, expected, strict=True):
        assert torch.equal(param, other)
        assert all(value.is_pinned() for key, value in optimizer.state[param].items() if key != "step")
