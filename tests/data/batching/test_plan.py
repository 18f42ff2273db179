from collections import Counter
from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from torchtune_lite.data.batching import plan


def test_takes_samples_in_turn():
    batches = plan.Chunks([4, 2, 0, 1, 3], 2)
    assert list(batches) == [[4, 2], [0, 1], [3]] and len(batches) == 3
    assert list(plan.Chunks([], 2)) == []


def test_samples_of_a_length_come_together_in_an_order_that_is_no_order_of_lengths():
    rng = Random(0)
    lengths = [rng.randint(1, 500) for _ in range(1000)]
    batches = plan.by_length(range(1000), lengths, 4, Random(1))
    assert sorted(sum(batches, [])) == list(range(1000))
    spread = sum(max(lengths[i] for i in batch) - min(lengths[i] for i in batch) for batch in batches) / 250
    assert spread < 10  # of 300 for four at random
    means = [sum(lengths[i] for i in batch) for batch in batches]
    assert means != sorted(means) and means[::-1] != sorted(means)
    assert batches != plan.by_length(range(1000), lengths, 4, Random(2))


@settings(max_examples=200, derandomize=True, deadline=None)
@given(st.lists(st.integers(0, 20), max_size=60), st.integers(20, 50), st.randoms())
def test_best_fit_loses_nothing_and_fills_by_the_lengths_alone(lengths, capacity, rng):
    order = list(range(len(lengths)))
    packs = plan.best_fit(order, lengths, capacity)
    assert sorted(sum(packs, [])) == order
    fill = [sum(lengths[i] for i in pack) for pack in packs]
    assert all(each <= capacity for each in fill)
    assert sum(each <= capacity / 2 for each in fill) <= 1  # two half-empty ones would have been one
    rng.shuffle(order)
    shuffled = plan.best_fit(order, lengths, capacity)
    assert [sum(lengths[i] for i in pack) for pack in shuffled] == fill


def test_best_fit_takes_the_longest_first_where_the_least_room_is_left():
    assert plan.best_fit(range(6), [3, 7, 5, 2, 4, 1], 10) == [[1, 0], [2, 4, 5], [3]]


def test_packs_of_many_short_samples_are_full():
    """Lengths like Alpaca's: a mean of about 140, and a few up to the whole pack."""
    rng = Random(0)
    lengths = [min(512, int(rng.lognormvariate(4.7, 0.7))) for _ in range(5000)]
    packs = plan.best_fit(range(5000), lengths, 512)
    assert sum(lengths) / (512 * len(packs)) > 0.98


def test_samples_of_a_length_change_places_with_the_order():
    lengths = [5] * 20
    packs = [plan.best_fit(Random(seed).sample(range(20), 20), lengths, 10) for seed in range(5)]
    assert len({str(each) for each in packs}) == 5
    assert all(Counter(map(len, each)) == {2: 10} for each in packs)


def test_a_plan_of_a_draw_is_made_as_long_as_another():
    assert plan.as_many([[1], [2, 3], [4]], 2) == [[1], [2, 3]]
    assert plan.as_many([[1], [2, 3, 4], [5]], 5) == [[1], [2], [3], [4], [5]]


@settings(max_examples=200, derandomize=True, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=9), st.integers(1, 50))
def test_the_first_of_the_largest_is_halved_in_its_place(sizes, count):
    """Drawing an epoch again must give the one in which an older checkpoint stopped."""
    batches = expected = [[(number, i) for i in range(size)] for number, size in enumerate(sizes)]
    expected = expected[:count]
    while len(expected) < count:
        most = max(range(len(expected)), key=lambda number: len(expected[number]))
        half = len(expected[most]) // 2
        expected[most : most + 1] = [expected[most][:half], expected[most][half:]]
    assert plan.as_many(batches, count) == expected


def test_a_plan_twice_as_long_costs_about_twice_as_much():
    class Batch(list):
        looks = 0

        def __len__(self):
            Batch.looks += 1
            return super().__len__()

        def __getitem__(self, part):
            return Batch(super().__getitem__(part))

    looks = []
    for size in (200, 400):
        Batch.looks = 0
        assert len(plan.as_many([Batch(range(4)) for _ in range(size)], 3 * size)) == 3 * size
        looks.append(Batch.looks)
    assert looks[1] == 2 * looks[0]


@settings(max_examples=200, derandomize=True, deadline=None)
@given(st.integers(0, 40), st.integers(1, 5), st.integers(1, 4))
def test_processes_share_a_plan_step_by_step_whatever_their_number(count, size, accumulation):
    """A step of so many micro-batches in each takes the next of the plan, as one process with all of them does."""
    batches = plan.Chunks(range(3 * count), 3)
    length = -(-count // size)
    shares = [list(plan.Share(batches, rank, size, length)) for rank in range(size)]
    assert {len(share) for share in shares} == {length}
    for step in range(-(-length // accumulation)):
        span = slice(step * accumulation, (step + 1) * accumulation)
        taken = [batch for turn in zip(*(share[span] for share in shares), strict=True) for batch in turn]
        total = size * accumulation
        assert [list(batch) for batch in taken if batch] == [
            list(batch) for batch in list(batches)[step * total : (step + 1) * total]
        ]
        assert not any(taken[sum(map(bool, taken)) :]), "those that are empty come last"


def test_a_share_without_a_length_ends_with_the_plan():
    batches = plan.Chunks(range(5), 1)
    assert [list(each) for each in plan.Share(batches, 1, 2)] == [[1], [3]]
    assert list(plan.Share(batches, 7, 2)) == []
