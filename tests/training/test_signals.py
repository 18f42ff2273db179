"""Signals are noted while a handler is installed, and acted on at a poll."""

import os
import signal
import threading

import pytest

from torchtune_lite.training import Signals, StopRequested

SIGHUP = pytest.param("SIGHUP", 129, marks=pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="has no SIGHUP"))
needs_sigusr1 = pytest.mark.skipif(not hasattr(signal, "SIGUSR1"), reason="this system has no SIGUSR1")


def send(number: int) -> None:
    os.kill(os.getpid(), number)


@pytest.fixture
def before():
    """A handler for each signal that counts its deliveries."""
    got = []
    numbers = [signal.SIGINT, signal.SIGTERM, *(getattr(signal, n, signal.SIGTERM) for n in ("SIGHUP", "SIGUSR1"))]
    old = {number: signal.signal(number, lambda number, frame: got.append(number)) for number in numbers}
    yield got
    for number, handler in old.items():
        signal.signal(number, handler)


@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143), SIGHUP])
def test_a_stop_is_noted_and_raised_at_the_next_poll(before, tmp_path, name, code):
    number = getattr(signal, name)
    with Signals() as signals:
        signals.poll()
        send(number)
        with pytest.raises(StopRequested) as caught:
            signals.poll()
    stop = caught.value.stopped(57, tmp_path / "step_57")
    assert stop.exit_code == code
    assert str(stop) == (
        f"stopped by {name} after step 57; saved {tmp_path}/step_57; continue with resume_from_checkpoint=True"
    )
    assert str(caught.value.stopped(0, None)) == f"stopped by {name} before the first step; nothing to save"


def test_a_second_sigint_interrupts_at_once_whatever_the_first_was(before):
    for first in (signal.SIGINT, signal.SIGTERM):
        with Signals():
            send(first)
            with pytest.raises(KeyboardInterrupt):
                send(signal.SIGINT)


def test_a_second_sigterm_does_not(before):
    with Signals() as signals:
        send(signal.SIGINT)
        send(signal.SIGTERM)
        with pytest.raises(StopRequested) as caught:
            signals.poll()
    assert caught.value.signum == signal.SIGINT, "the first one decides the exit code"


@needs_sigusr1
def test_sigusr1_asks_once_to_save_and_never_to_stop(before):
    with Signals() as signals:
        assert not signals.take_save()
        send(signal.SIGUSR1)
        signals.poll()
        assert signals.take_save() and not signals.take_save()


def test_handlers_that_were_there_are_called_too_and_restored(before):
    installed = signal.getsignal(signal.SIGTERM)
    with Signals():
        assert signal.getsignal(signal.SIGTERM) != installed
        send(signal.SIGTERM)
    assert before == [signal.SIGTERM]
    assert signal.getsignal(signal.SIGTERM) == installed
    send(signal.SIGTERM)
    assert before == [signal.SIGTERM] * 2


def test_they_are_restored_after_an_error(before):
    installed = signal.getsignal(signal.SIGINT)
    with pytest.raises(ZeroDivisionError), Signals():
        1 / 0  # noqa: B018
    assert signal.getsignal(signal.SIGINT) == installed


def test_pythons_own_handler_does_not_raise_at_the_first_ctrl_c():
    with Signals() as signals:
        send(signal.SIGINT)
        with pytest.raises(StopRequested):
            signals.poll()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_an_ignored_signal_stays_ignored(before):
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # as nohup and a shell's & do
    with Signals() as signals:
        send(signal.SIGINT)
        signals.poll()
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN


def test_another_thread_than_the_main_one_gets_none(before):
    installed = signal.getsignal(signal.SIGINT)
    seen = []

    def work() -> None:
        with Signals() as signals:
            signals.poll()
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [installed]


def test_a_system_without_sigusr1_has_the_others(before, monkeypatch):
    monkeypatch.setattr("torchtune_lite.training.signals.SAVE", ("SIGNOTHERE",))
    with Signals() as signals:
        send(signal.SIGINT)
        with pytest.raises(StopRequested):
            signals.poll()


@needs_sigusr1
def test_several_processes_heed_a_signal_once_all_know_of_it(before):
    with Signals(processes=2) as signals, Signals(processes=2) as other:
        send(signal.SIGTERM)
        send(signal.SIGUSR1)
        signals.poll()
        assert not signals.take_save()
        noted = signals.noted()
        assert sum(noted) == 2 and signals.noted()[-1] == 0, "a save is told of once"
        with pytest.raises(StopRequested) as caught:
            other.told(noted)
        assert caught.value.signum == signal.SIGTERM
        assert other.take_save() and not other.take_save()
