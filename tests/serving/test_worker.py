import threading
import time
from queue import SimpleQueue

import pytest

from torchtune_lite.generation import Sampling, generate
from torchtune_lite.serving.worker import CANCELLED, Worker

LONG = Sampling(max_new_tokens=200)
PROMPTS = [[1, 300, 301], [1, 302], [1, 303, 304, 305]]


@pytest.fixture
def worker(engine):
    worker = Worker(engine)
    worker.start()
    yield worker
    worker.stop()
    worker.join(60)
    assert not worker.is_alive()


class Held(SimpleQueue):
    """What a listener hears; the worker goes on only when it is told to."""

    def __init__(self):
        super().__init__()
        self.go = threading.Event()

    def listen(self, progress):
        self.put(progress)
        assert self.go.wait(60)


def heard(news, until=lambda progress: progress.finish_reason is not None):
    """Gives what a listener hears up to the first that fits."""
    found = [news.get(timeout=60)]
    while not until(found[-1]):
        found.append(news.get(timeout=60))
    return found


def test_answers_come_token_by_token_and_are_those_of_generate(worker, model):
    queues = [SimpleQueue() for _ in PROMPTS]
    for prompt, news in zip(PROMPTS, queues, strict=True):
        worker.submit(prompt, Sampling(max_new_tokens=20, logprobs=1), [news.put])
    told = [heard(news) for news in queues]
    assert all(len(progress.tokens) <= 1 for each in told for progress in each)
    answers = [[token for progress in each for token in progress.tokens] for each in told]
    worker.stop()
    worker.join(60)
    assert answers == generate(model, PROMPTS, max_new_tokens=20, stop_tokens=worker._engine.stop_tokens)
    assert [len(progress.logprobs) for progress in told[0]] == [len(progress.tokens) for progress in told[0]]


def test_requests_are_answered_together(worker, engine, monkeypatch):
    sizes, step = [], engine.step
    monkeypatch.setattr(engine, "step", lambda: sizes.append(len(requests := step())) or requests)
    queues = [Held() for _ in PROMPTS]
    for prompt, news in zip(PROMPTS, queues, strict=True):
        worker.submit(prompt, Sampling(max_new_tokens=3), [news.listen])
    for news in queues:
        news.go.set()
    for news in queues:
        heard(news)
    assert max(sizes) == len(PROMPTS)


def test_a_cancelled_order_frees_its_slots_and_is_not_heard_of_again(worker, engine):
    news = Held()
    order = worker.submit(PROMPTS[0], LONG, [news.listen, news.listen])
    news.get(timeout=60)
    worker.cancel(order)
    news.go.set()
    other = SimpleQueue()
    worker.submit(PROMPTS[1], Sampling(max_new_tokens=3), [other.put])
    heard(other)  # after the order to cancel
    assert [request.finish_reason for request in order.requests] == ["cancelled", "cancelled"]
    assert worker._listeners == worker._told == {} and not any(slot.request for slot in engine._slots)
    worker.cancel(order)  # once more, as the end of a response does


def test_what_is_under_way_is_called_off_at_the_end(worker):
    news, late = Held(), SimpleQueue()
    worker.submit(PROMPTS[0], LONG, [news.listen])
    news.get(timeout=60)
    worker.stop()
    worker.submit(PROMPTS[1], LONG, [late.put])
    news.go.set()
    assert heard(news)[-1] == heard(late)[-1] == CANCELLED
    worker.join(60)
    worker.submit(PROMPTS[1], LONG, [late.put])
    assert late.get(timeout=60) == CANCELLED and worker.error is None


def test_an_error_of_the_engine_ends_the_worker_and_is_kept(worker, engine, monkeypatch):
    ended, news = [], SimpleQueue()
    worker.on_end = lambda: ended.append(True)
    monkeypatch.setattr(engine, "step", lambda: 1 / 0)
    worker.submit(PROMPTS[0], LONG, [news.put])
    assert heard(news)[-1] == CANCELLED
    worker.join(60)
    assert isinstance(worker.error, ZeroDivisionError) and ended == [True]


def test_it_rests_where_nothing_is_to_be_answered(worker, engine, monkeypatch):
    steps = []
    monkeypatch.setattr(engine, "step", lambda: steps.append(1) or [])
    time.sleep(0.1)
    assert steps == []
