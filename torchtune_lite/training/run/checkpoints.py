"""The checkpoints of one run: which are kept, which is the best, and what a save that fails does to the run."""

import dataclasses
import math
import shlex
import sys
import threading
from collections.abc import Callable
from pathlib import Path

from torch import nn

from torchtune_lite import checkpoint
from torchtune_lite.checkpoint.store.claim import replace_json
from torchtune_lite.checkpoint.store.discovery import BEST
from torchtune_lite.errors import SaveError
from torchtune_lite.training.memory.snapshot import snapshot_model, snapshot_state
from torchtune_lite.training.run.progress import Progress
from torchtune_lite.utils import get_logger

MAX_FAILURES_IN_A_ROW = 2

log = get_logger()


class Save(threading.Thread):
    """One save, which keeps the error that ended it."""

    def __init__(self, folder: Path, progress: Progress, write: Callable[[], None]) -> None:
        super().__init__(name=f"save {folder.name}", daemon=True)
        self.folder, self.progress, self._write = folder, dataclasses.replace(progress), write
        self.error: Exception | None = SaveError(f"{folder} was not saved: the save was interrupted")

    def run(self) -> None:
        """Write the checkpoint; called in place of `start`, in the caller's thread."""
        try:
            self._write()
            self.error = None
        except Exception as error:
            self.error = error


class Checkpoints:
    """Publishes checkpoint folders in `output_dir` and keeps the newest `keep_last_n` of them (None: all).

    `best.json` in `output_dir` names the folder with the lowest validation loss, of those saved at a step that was
    validated. That one and `resumed_from`, which holds the step `resumed_at`, are kept besides. `background` copies
    what training changes and writes it in a thread, one save at a time, which `poll` looks after. `verify` says which
    saves are read back and compared with the live model: "all", "first_and_last" of this process, or None of them. Of
    several processes that save together, the one of `rank` 0 keeps and removes.
    """

    def __init__(
        self,
        output_dir: Path,
        keep_last_n: int | None = None,
        resumed_from: Path | None = None,
        resumed_at: int = 0,
        *,
        background: bool = False,
        verify: str | None = None,
        rank: int = 0,
    ) -> None:
        self.output_dir, self.keep_last_n, self.resumed_from = output_dir, keep_last_n, resumed_from
        self.background, self.verify, self.keeps = background, verify, rank == 0
        self._newest, self._newest_step = resumed_from and resumed_from.resolve(), resumed_at
        self._pending: Save | None = None
        self._failures, self._saved = 0, False
        self._best = checkpoint.read_best(output_dir) if resumed_from else {}

    def at(self, step: int) -> Path | None:
        """Return the checkpoint of this step, if it is the newest one; waits for the one being written."""
        self.poll(wait=True)
        return self._newest if step == self._newest_step else None

    def save(
        self,
        name: str,
        progress: Progress,
        write: Callable[..., None],
        model: nn.Module,
        state: checkpoint.TrainingState,
        *,
        final: bool = False,
    ) -> None:
        """Let `write(folder, model=…, state=…, verify=…)` publish the folder `name`, unless a stop already has.

        A SaveError is logged and the run goes on to the next save; it is raised at the second in a row, and when this
        is the `final` save of the run.
        """
        folder = self.output_dir / name
        if self.at(progress.global_step) == folder.resolve():
            self._keep(folder, progress)
            return
        if self.background and not final:
            model, state = snapshot_model(model), snapshot_state(state)
        verify = self.verify == "all" or (self.verify == "first_and_last" and (final or not self._saved))
        self._pending = Save(folder, progress, lambda: write(folder, model=model, state=state, verify=verify))
        if self.background and not final:
            self._pending.start()
        else:
            self._pending.run()
            self.poll(final=final)

    def poll(self, *, wait: bool = False, final: bool = False) -> None:
        """Take note of a save that has ended, as `save` says; `wait` waits for its end."""
        save = self._pending
        if save is not None and wait and save.is_alive():
            save.join()
        if save is None or save.is_alive():
            return
        self._pending = None
        try:
            if save.error is not None:
                raise save.error
            self._newest, self._newest_step, self._saved = save.folder.resolve(), save.progress.global_step, True
            log.info("saved %s", save.folder)
            log.info("try it: %s", shlex.join(["tune", "chat", str(save.folder)]))
            self._keep(save.folder, save.progress)
            self._failures = 0
        except SaveError as error:
            self._failures += 1
            if final or self._failures == MAX_FAILURES_IN_A_ROW:
                raise
            log.error("%s; training goes on until the next save", error)

    def close(self) -> None:
        """Wait for a save in the background, unless the user has interrupted; what went wrong is only logged."""
        if isinstance(sys.exc_info()[1], KeyboardInterrupt):
            return
        try:
            self.poll(wait=True)
        except Exception as error:
            log.error("%s", error)

    def _keep(self, folder: Path, progress: Progress) -> None:
        if not self.keeps:
            return
        self._note_best(folder, progress)
        best = self.output_dir / self._best["checkpoint"] if self._best else None
        checkpoint.retain(self.output_dir, self.keep_last_n, protected=(best, self.resumed_from))

    def _note_best(self, folder: Path, progress: Progress) -> None:
        if progress.val_step != progress.global_step or not progress.val_loss < self._best.get("val_loss", math.inf):
            return
        best = {"checkpoint": folder.name, "step": progress.val_step, "val_loss": progress.val_loss}
        try:
            replace_json(self.output_dir / BEST, best)
        except OSError as error:
            raise SaveError(f"{self.output_dir / BEST} was not written: {error.strerror or error}") from error
        self._best = best
