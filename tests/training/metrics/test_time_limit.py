import threading

import pytest

from torchtune_lite.training.metrics.time_limit import Hangs, within


def test_a_call_returns_or_raises_what_it_does_and_is_left_to_itself_after_a_while():
    assert within(60, lambda: 3) == 3
    with pytest.raises(ZeroDivisionError):
        within(60, lambda: 1 / 0)
    release = threading.Event()
    with pytest.raises(Hangs, match=r"^not finished after 0.01 s$"):
        within(0.01, release.wait)
    release.set()
