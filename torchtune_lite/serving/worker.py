"""The thread that steps the engine, for requests that come from an event loop."""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from typing import NamedTuple

from torchtune_lite.generation import Engine, Request, Sampling, TokenLogprobs


class Progress(NamedTuple):
    """What a sample has got since it was last heard of; its `finish_reason` is that of `Request`."""

    tokens: list[int]
    logprobs: list[TokenLogprobs]
    finish_reason: str | None


Listener = Callable[[Progress], None]
CANCELLED = Progress([], [], "cancelled")


@dataclass
class Order:
    """A prompt to answer, once for each of `listeners`, until it is `cancelled`."""

    prompt: Sequence[int]
    sampling: Sampling
    listeners: Sequence[Listener]
    requests: list[Request] = field(default_factory=list)
    is_cancelled: bool = False


class Worker(threading.Thread):
    """Steps `engine` as long as there is something to answer, and tells listeners, in this thread, what has come.

    Only this thread touches the engine. `error` is what has ended it, None if it was stopped; then every sample under
    way, and each that is still submitted, is told to be cancelled, and `on_end` is called.
    """

    on_end: Callable[[], None] | None = None

    def __init__(self, engine: Engine) -> None:
        super().__init__(name="engine", daemon=True)
        self.error: Exception | None = None
        self._engine = engine
        self._orders: SimpleQueue[Order | None] = SimpleQueue()
        self._listeners: dict[Request, Listener] = {}
        self._told: dict[Request, int] = {}
        self._lock, self._has_ended = threading.Lock(), False

    def submit(self, prompt: Sequence[int], sampling: Sampling, listeners: Sequence[Listener]) -> Order:
        """Have a prompt answered, once for each of `listeners`."""
        order = Order(prompt, sampling, listeners)
        with self._lock:
            if not self._has_ended:
                self._orders.put(order)
                return order
        _call_off(order)
        return order

    def cancel(self, order: Order) -> None:
        """End what is still under way of an order; its listeners hear no more of it."""
        order.is_cancelled = True
        self._orders.put(order)

    def stop(self) -> None:
        """End the thread after the step it is in; a signal handler may call it."""
        self._orders.put(None)

    def run(self) -> None:
        """Take orders and step, until `stop`."""
        try:
            while self._take_orders():
                for request in self._engine.step():
                    self._tell(request)
        except Exception as error:
            self.error = error
        with self._lock:
            self._has_ended = True
        for listener in self._listeners.values():
            listener(CANCELLED)
        while not self._orders.empty():
            order = self._orders.get()
            if order is not None and not order.requests:
                _call_off(order)
        if self.on_end is not None:
            self.on_end()

    def _take_orders(self) -> bool:
        """Carry out what has been ordered, and wait for it where nothing is under way; return False to stop."""
        while True:
            try:
                order = self._orders.get(block=not self._listeners)
            except Empty:
                return True
            if order is None:
                return False
            if order.is_cancelled:
                self._drop(order)
            else:
                self._start(order)

    def _start(self, order: Order) -> None:
        order.requests = self._engine.submit(order.prompt, order.sampling, n=len(order.listeners))
        for request, listener in zip(order.requests, order.listeners, strict=True):
            self._listeners[request], self._told[request] = listener, 0

    def _drop(self, order: Order) -> None:
        for request in order.requests:
            self._engine.cancel(request)
            self._listeners.pop(request, None)
            self._told.pop(request, None)

    def _tell(self, request: Request) -> None:
        """Tell a sample's listener what is new; where it has ended, for the last time."""
        listener, told = self._listeners[request], self._told[request]
        self._told[request] = len(request.tokens)
        if request.finish_reason is not None:
            del self._listeners[request], self._told[request]
        listener(Progress(request.tokens[told:], request.logprobs[told:], request.finish_reason))


def _call_off(order: Order) -> None:
    for listener in order.listeners:
        listener(CANCELLED)
