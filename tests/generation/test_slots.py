"""A prompt gets the slot in which least has to be computed."""

from torchtune_lite.generation.slots import Slot, find_place, shared_length


def slot(number, held=(), *, pending=(), busy=False, last_use=0):
    made = Slot(number)
    made.held, made.pending, made.last_use = list(held), list(pending), last_use
    made.request = "a request" if busy else None
    return made


def test_shared_length_counts_the_equal_beginning():
    for one in ([], [1], [1, 2, 3], list(range(100))):
        for other in ([], [2], [1, 2], [1, 2, 4], [*range(57), 9, *range(58, 100)]):
            pairs = list(zip(one, other, strict=False))
            expected = next((i for i, (a, b) in enumerate(pairs) if a != b), len(pairs))
            assert shared_length(one, other) == expected


def test_an_empty_slot_is_taken_first_then_the_one_unused_for_longest():
    first, second, empty = slot(0, [1, 2], last_use=1), slot(1, [3, 4], last_use=2), slot(2, last_use=9)
    assert find_place([first, second, empty], [7, 8]) == (empty, empty, 0)
    assert find_place([first, second], [7, 8]) == (first, first, 0)
    first.request = "a request"
    assert find_place([first, second], [7, 8]).slot is second
    second.request = "a request"
    assert find_place([first, second], [7, 8]) is None


def test_a_conversation_goes_on_in_its_slot():
    other, conversation = slot(0), slot(1, range(50), last_use=5)
    assert find_place([other, conversation], [*range(50), 60, 61]) == (conversation, conversation, 50)
    assert find_place([other, conversation], [*range(49), 60, 61]).slot is conversation  # its last token is another


def test_what_begins_like_another_is_copied_and_leaves_it_whole():
    empty, conversation, busy = slot(0), slot(1, range(50), last_use=5), slot(2, range(60), busy=True)
    assert find_place([empty, conversation], [*range(20), 99]) == (empty, conversation, 20)
    assert find_place([empty, conversation, busy], [*range(55), 99]) == (empty, busy, 55)
    assert find_place([conversation, busy], [*range(20), 99]) == (conversation, conversation, 20)


def test_the_last_token_of_a_prompt_is_always_computed():
    held = slot(0, range(50))
    assert find_place([held], list(range(50))).shared == 49
    assert find_place([held], list(range(30))).shared == 29


def test_keys_of_slots_that_do_not_fit_are_not_used():
    held = slot(0, range(50))
    assert find_place([held], [*range(50), 1], lambda each: False) == (held, held, 0)


def test_a_prompt_waits_for_one_that_is_being_read_if_it_saves_enough():
    reading, free = slot(0, range(10), pending=range(10, 60), busy=True), slot(1)
    assert find_place([reading, free], [*range(40), 99]) is None
    assert find_place([reading, free], [*range(12), 99]) == (free, reading, 10)
    assert find_place([reading, free], list(range(60))) is None
    answering = slot(0, range(10), pending=[10], busy=True)
    assert find_place([answering, free], list(range(40))) == (free, answering, 10)


def test_samples_of_a_short_prompt_wait_for_it_too():
    reading, free = slot(0, pending=[1, 2, 3], busy=True), slot(1)
    assert find_place([reading, free], [1, 2, 3]) is None
    assert find_place([reading, free], [1, 2, 4]) == (free, free, 0)
    assert find_place([reading, free], [1, 5, 4]) == (free, free, 0)
