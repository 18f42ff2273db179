"""torchtune's dotted path to the schedules."""

from torchtune_lite import optim, training
from torchtune_lite.training import lr_schedulers


def test_every_schedule_is_found_under_both_paths():
    names = [name for name in optim.__all__ if name.startswith("get_")]
    assert len(names) == len(lr_schedulers.__all__) == 4
    for name in names:
        assert getattr(lr_schedulers, name) is getattr(optim, name) is getattr(training, name)
