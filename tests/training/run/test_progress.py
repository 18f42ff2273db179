"""The counters of a run."""

import math
from dataclasses import asdict
from datetime import date

import pytest

from torchtune_lite.errors import ConfigError
from torchtune_lite.training import Progress, check_patience


def test_it_is_plain_values_and_an_older_one_without_newer_counters_is_read():
    progress = Progress(seed=7, global_step=3)
    assert Progress(**asdict(progress)) == progress
    assert Progress(**asdict(progress)).start_id == progress.start_id != Progress(seed=7).start_id
    assert date.fromisoformat(progress.start_date) <= date.today()
    assert all(value is None or isinstance(value, int | float | str) for value in asdict(progress).values())
    assert Progress(seed=7, global_step=3).skipped_steps == 0


def test_patience_counts_validations_without_a_better_loss():
    progress = Progress(seed=7)
    patient = []
    for step, loss in enumerate([3.0, 2.0, 2.5, 2.0, 1.5, math.nan, math.inf], start=1):
        progress.global_step, progress.val_pending = step, True
        progress.validated(loss)
        assert not progress.val_pending and progress.val_step == step
        patient.append(progress.is_out_of_patience(2))
    assert patient == [False, False, False, True, False, False, True]
    assert progress.best_val_loss == 1.5
    assert progress.is_out_of_patience(1) and not progress.is_out_of_patience(3)
    assert not progress.is_out_of_patience(None)


def test_a_validation_for_a_save_may_reset_patience_but_not_wear_it():
    progress = Progress(seed=7)
    for loss in (2.0, 2.5):
        progress.validated(loss)
    for loss in (3.0, 3.0, math.nan):
        progress.validated(loss, counts=False)
    assert progress.validations_since_best == 1 and progress.best_val_loss == 2.0
    progress.validated(1.5, counts=False)
    assert progress.validations_since_best == 0 and progress.best_val_loss == 1.5


@pytest.mark.parametrize(
    ("first_step", "losses", "line"),
    [
        (0, [2.0, 1.0], None),
        (0, [1.0, 2.0, 2.0], "early stop after step 4; best val_loss 1.0000"),
        (0, [math.nan, math.nan], "early stop after step 4; best val_loss none"),
        (4, [1.0, 2.0, 2.0], None),  # which `check_resumable` said at the start
    ],
)
def test_the_end_of_a_run_says_why_where_it_is_not_its_last_step(first_step, losses, line, log_lines):
    progress = Progress(seed=7, global_step=4)
    for loss in losses:
        progress.validated(loss)
    progress.log_end(first_step, patience=2)
    assert log_lines == ([line] if line else [])


def test_a_first_validation_that_is_nan_is_not_the_best():
    progress = Progress(seed=7)
    progress.validated(math.nan)
    assert progress.best_val_loss is None and progress.is_out_of_patience(1)
    progress.validated(9.0)
    assert progress.best_val_loss == 9.0 and not progress.is_out_of_patience(1)


def test_patience_needs_a_validation_to_count():
    check_patience(None, None)
    check_patience(3, {"_component_": "x"})
    with pytest.raises(ConfigError, match="dataset_val"):
        check_patience(3, None)
