import torch

from torchtune_lite.optim.rounding import join, round_at_random, split

EDGES = [0.0, -0.0, 1e-45, -1e-45, 1.0, 3.4028235e38, -3.4028235e38, float("inf"), -float("inf"), 1.00390625]


def test_split_rounds_to_the_nearest_and_join_restores_every_bit():
    bits = torch.randint(-(2**31), 2**31, (20_000,), generator=torch.Generator().manual_seed(0)).to(torch.int32)
    values = torch.cat([bits.view(torch.float32), torch.tensor(EDGES)])
    values = values[~values.isnan()]
    rounded, remainder = split(values)
    assert (rounded.dtype, remainder.dtype) == (torch.bfloat16, torch.int16)
    assert torch.equal(join(rounded, remainder).view(torch.int32), values.view(torch.int32))
    nearest = values.bfloat16()
    finite = nearest.isfinite() & rounded.isfinite()
    ties = (rounded != nearest) & finite
    assert ties.sum() < 3 and torch.equal(
        (rounded.float() - values).abs()[ties], (nearest.float() - values).abs()[ties]
    )


def test_rounding_at_random_gives_a_neighbour_and_the_mean():
    torch.manual_seed(0)
    low, high = torch.tensor([1.0, -1.0]), torch.tensor([1.0078125, -1.0078125])
    for share in (0.0, 0.1, 0.5, 0.9):
        rounded = round_at_random((low + share * (high - low)).repeat(20_000, 1)).float()
        assert (torch.isin(rounded, torch.cat([low, high]))).all()
        up = (rounded == high).double().mean(0)
        assert torch.allclose(up, torch.full((2,), share, dtype=torch.double), atol=4 * 0.5 / 20_000**0.5), (share, up)


def test_rounding_at_random_repeats_with_the_random_state():
    values = torch.randn(100)
    state = torch.get_rng_state()
    first, second = round_at_random(values), round_at_random(values)
    torch.set_rng_state(state)
    assert torch.equal(round_at_random(values), first) and not torch.equal(first, second)
