"""The progress of a run, which a checkpoint keeps besides weights, optimizer, schedule and random states."""

import math
import secrets
from dataclasses import dataclass, field
from datetime import date
from typing import Any

from torchtune_lite.errors import ConfigError
from torchtune_lite.utils import get_logger

log = get_logger()


@dataclass
class Progress:
    """The counters of a run, all plain values.

    `start_id` names the start that the run goes back to, however often resumed, and `start_date` is its day, which a
    chat template may write. `global_step` counts optimizer steps,
    those left out too; the position in the data follows from it and `seed`.
    `val_loss` is that of the validation at `val_step`; `val_pending` says that one is due at `global_step`, not done.
    """

    seed: int
    start_id: str = field(default_factory=lambda: secrets.token_hex(4), compare=False)
    start_date: str = field(default_factory=lambda: date.today().isoformat(), compare=False)
    global_step: int = 0
    skipped_steps: int = 0
    skipped_in_a_row: int = 0
    val_pending: bool = False
    val_step: int = 0
    val_loss: float | None = None
    best_val_loss: float | None = None
    validations_since_best: int = 0
    cursor: dict[str, Any] | None = None  # the position in a stream, which does not follow from the step
    scaler: dict[str, Any] | None = None  # the state of fp16's loss scale; None: no scale

    def validated(self, val_loss: float, counts: bool = True) -> None:
        """Note the validation of this step; one that is nan is not an improvement.

        One that does not count, since it was made for a save alone, does not count towards patience.
        """
        self.val_pending, self.val_step, self.val_loss = False, self.global_step, val_loss
        if math.isfinite(val_loss) and (self.best_val_loss is None or val_loss < self.best_val_loss):
            self.best_val_loss, self.validations_since_best = val_loss, 0
        else:
            self.validations_since_best += counts

    def log_end(self, first_step: int, patience: int | None) -> None:
        """Log that training ends before its last step; `first_step` is where it began."""
        if self.global_step > first_step and self.is_out_of_patience(patience):
            best = "none" if self.best_val_loss is None else f"{self.best_val_loss:.4f}"
            log.info("early stop after step %d; best val_loss %s", self.global_step, best)

    def is_out_of_patience(self, patience: int | None) -> bool:
        """Return whether the last `patience` validations brought no better loss; None waits forever."""
        return patience is not None and self.validations_since_best >= patience


def check_patience(patience: int | None, dataset_val: Any) -> None:
    """Raise ConfigError where there is no validation whose results `patience` could count."""
    if patience is not None and dataset_val is None:
        raise ConfigError("patience: counts validations; give dataset_val too, or set patience: null")
