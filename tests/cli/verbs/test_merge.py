from pathlib import Path

import pytest

from tests.export.models import BASE
from torchtune_lite.cli.main import start
from torchtune_lite.cli.verbs.merge import weighted
from torchtune_lite.errors import ConfigError


def test_a_weight_follows_the_last_equals_sign():
    assert weighted("runs/a") == (Path("runs/a"), 1.0)
    assert weighted("runs/a=0.5") == (Path("runs/a"), 0.5)
    assert weighted("runs/lr=1/adapter=-2") == (Path("runs/lr=1/adapter"), -2.0)
    assert weighted("runs/lr=1/adapter") == (Path("runs/lr=1/adapter"), 1.0)
    with pytest.raises(ConfigError, match="'half' is not a number; write FOLDER=WEIGHT, such as adapter=0.5"):
        weighted("runs/a=half")


def test_a_mistake_is_one_line(tmp_path):
    with pytest.raises(ConfigError, match="is a whole model; 'tune merge' takes adapters"):
        start("merge", str(BASE), "--out", str(tmp_path / "out"))
    with pytest.raises(ConfigError, match="exists and is not overwritten"):
        start("merge", str(BASE), "--out", str(tmp_path))
