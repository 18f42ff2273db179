import torch

from torchtune_lite.optim import MasterAdamW, PagedAdamW


def test_the_state_on_the_device_is_that_of_two_buckets_and_a_copy(monkeypatch):
    """The rest is in the host's memory: what is computed are copies, and those of a bucket are dropped after it."""
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
