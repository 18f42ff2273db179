"""torchtune's dotted path to the schedules."""

from torchtune_lite import optim, training
from torchtune_lite.training import lr_schedulers


def test_every_schedule_is_found_under_both_paths():
    for name in optim.__all__:
        assert getattr(lr_schedulers, name) is getattr(optim, name) is getattr(training, name)
