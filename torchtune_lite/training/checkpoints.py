"""The checkpoints of one run: which are kept, which is the best, and what a save that fails does to the run."""

import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torchtune_lite.errors import SaveError
from torchtune_lite.training.progress import Progress
from torchtune_lite.utils import get_logger

BEST = "best.json"
MAX_FAILURES_IN_A_ROW = 2

log = get_logger()


class Checkpoints:
    """Publishes checkpoint folders in `output_dir` and keeps the newest `keep_last_n` of them (None: all).

    `best.json` in `output_dir` names the folder with the lowest validation loss, of those saved at a step that was
    validated. That one and `resumed_from`, which holds the step `resumed_at`, are kept besides.
    """

    def __init__(
        self,
        output_dir: Path,
        keep_last_n: int | None = None,
        *,
        resumed_from: Path | None = None,
        resumed_at: int = 0,
    ) -> None:
        self.output_dir, self.keep_last_n, self.resumed_from = output_dir, keep_last_n, resumed_from
        self.newest, self.newest_step = resumed_from and resumed_from.resolve(), resumed_at
        self._failures = 0
        self._best = self._read_best() if resumed_from else {}

    def at(self, step: int) -> Path | None:
        """Returns the checkpoint of this step, if it is the newest one."""
        return self.newest if step == self.newest_step else None

    def save(self, name: str, progress: Progress, write: Callable[[Path], None], *, final: bool = False) -> None:
        """Lets `write` publish the folder `name`, unless a stop has published it already.

        A SaveError is logged and the run goes on to the next save; it is raised at the second in a row, and when this
        is the `final` save of the run.
        """
        folder = self.output_dir / name
        try:
            if self.at(progress.global_step) != folder.resolve():
                write(folder)
                self.newest, self.newest_step = folder.resolve(), progress.global_step
                log.info("saved %s", folder)
            self._note_best(folder, progress)
            self._failures = 0
        except SaveError as error:
            self._failures += 1
            if final or self._failures == MAX_FAILURES_IN_A_ROW:
                raise
            log.error("%s; training goes on, and the next save is tried", error)

    def _note_best(self, folder: Path, progress: Progress) -> None:
        if progress.val_step != progress.global_step or not progress.val_loss < self._best.get("val_loss", math.inf):
            return
        best = {"checkpoint": folder.name, "step": progress.val_step, "val_loss": progress.val_loss}
        draft = self.output_dir / f".{BEST}.tmp"
        try:
            with draft.open("w", encoding="utf-8") as file:
                file.write(json.dumps(best) + "\n")
                file.flush()
                os.fsync(file.fileno())
            os.replace(draft, self.output_dir / BEST)
        except OSError as error:
            raise SaveError(f"{self.output_dir / BEST} was not written: {error.strerror or error}") from error
        self._best = best

    def _read_best(self) -> dict[str, Any]:
        """Reads which checkpoint was the best before the run was resumed; an empty dict if there is none now."""
        try:
            best = json.loads((self.output_dir / BEST).read_text(encoding="utf-8"))
            return best if math.isfinite(best["val_loss"]) and (self.output_dir / best["checkpoint"]).is_dir() else {}
        except (OSError, ValueError, TypeError, KeyError):
            return {}
