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
