"""What a run writes beside checkpoints, and who writes it."""

import json

import pytest
import torch

from tests.recipes.killed_runs import COMMON
from tests.training.run.test_run import REST
from torchtune_lite import checkpoint, config, training
from torchtune_lite.errors import ConfigError
from torchtune_lite.training.distributed import World
from torchtune_lite.training.run.records import Records
from torchtune_lite.utils import get_logger


class Second(World):
    """The second of two processes, once the first has claimed the folder."""

    rank, size = 1, 2

    def on_main(self, call):
        return None


@pytest.fixture
def cfg(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(f"output_dir: {tmp_path}/out\n{COMMON}{REST}")
    return config.load(path, [], training.TrainingSettings)


def test_the_first_process_claims_the_folder_and_writes(cfg, tmp_path):
    records = Records(cfg, training.Progress(seed=1), World(torch.device("cpu")))
    with pytest.raises(ConfigError, match="another run"):
        checkpoint.claim_output_dir(tmp_path / "out")
    records.log({"loss": 2.5}, step=3)
    records.close({"steps": 3})
    assert json.loads((tmp_path / "out" / "metrics.jsonl").read_text()) == {"step": 3, "loss": 2.5}
    assert json.loads((tmp_path / "out" / "run.json").read_text())["steps"] == 3
    assert (tmp_path / "out" / "config.yaml").is_file()
    checkpoint.claim_output_dir(tmp_path / "out").release()


def test_another_keeps_a_log_of_its_own_and_writes_nothing_else(cfg, tmp_path):
    records = Records(cfg, training.Progress(seed=1), Second(torch.device("cpu")))
    get_logger().info("of the second")
    records.log({"loss": 2.5}, step=3)
    records.close({"steps": 3})
    assert [path.name for path in (tmp_path / "out").rglob("*") if path.is_file()] == ["rank_1.log"]
    assert "INFO of the second" in (tmp_path / "out" / "logs" / "rank_1.log").read_text()
