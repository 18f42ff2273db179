"""Signals to a run: to stop at the last step boundary, or (SIGUSR1) to save and go on."""

import signal
import threading
from collections.abc import Sequence
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

from torchtune_lite.errors import Stopped

STOP = ("SIGINT", "SIGTERM", "SIGHUP")  # SIGHUP: the terminal is gone
SAVE = ("SIGUSR1",)  # Windows has neither this nor SIGHUP


class StopRequested(Exception):  # noqa: N818 (no error)
    """Signals the end of the loop at a poll."""

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.signum = signum

    def stopped(self, step: int, saved: Path | None) -> Stopped:
        """Make the end of the run, once it is `saved` (None: there is nothing to save)."""
        name = signal.Signals(self.signum).name
        place = f"after step {step}; saved {saved}; continue with resume_from_checkpoint=True"
        return Stopped(f"stopped by {name} {place if saved else 'before the first step; nothing to save'}", self.signum)


class Signals:
    """Notes signals while it is entered, and does nothing else about them: the loop polls.

    A second SIGINT raises KeyboardInterrupt where it finds the run. Handlers that were there before are called too, and
    restored at the end; a signal that was ignored stays so. Outside of the main thread, which alone gets signals, it
    notes none. Where several `processes` run together, nothing is done about a signal before all have been `told`.
    """

    def __init__(self, processes: int = 1) -> None:
        self.processes = processes
        self._stop: int | None = None
        self._save = self._all_save = False
        self._before: dict[int, Any] = {}

    def poll(self) -> None:
        """Raise StopRequested when a signal has asked to stop, and this process may do so by itself."""
        if self._stop is not None and self.processes == 1:
            raise StopRequested(self._stop)

    def take_save(self) -> bool:
        """Return whether a signal has asked to save since the last call."""
        asked, self._all_save = self._all_save, False
        if self.processes == 1:
            asked, self._save = self._save, False
        return asked

    def noted(self) -> list[int]:
        """Return a number for each of STOP, and one for SAVE: 1 where such a signal has come to this process."""
        save, self._save = self._save, self._save and self.processes == 1
        return [*(int(number == self._stop) for number in _known(STOP)), int(save)]

    def told(self, noted: Sequence[int]) -> None:
        """Take the sums of what each process has `noted`, to save in this step; raise StopRequested for one of STOP."""
        *stops, save = noted
        self._all_save = self._all_save or save > 0
        for number, count in zip(_known(STOP), stops, strict=True):
            if count:
                raise StopRequested(number)

    def __enter__(self) -> "Signals":
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.getsignal(number) for number in _known(STOP + SAVE)}
            for number, before in self._before.items():
                if before is not signal.SIG_IGN:
                    signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for number, before in self._before.items():
            signal.signal(number, signal.SIG_DFL if before is None else before)  # None: set outside of Python
        self._before = {}

    def _note(self, number: int, frame: FrameType | None) -> None:
        if signal.Signals(number).name in SAVE:
            self._save = True
        elif number == signal.SIGINT and self._stop is not None:
            raise KeyboardInterrupt
        else:
            self._stop = self._stop or number
        before = self._before.get(number)
        if callable(before) and before is not signal.default_int_handler:
            before(number, frame)


def _known(names: Sequence[str]) -> list[int]:
    return [getattr(signal, name) for name in names if hasattr(signal, name)]
