"""A run that ends by a bug in the user's code: its place on the terminal, the whole traceback in the run's log."""

from tests.recipes.conftest import common_keys

BUG = """
from torchtune_lite.modules.loss import LinearCrossEntropyLoss
from torchtune_lite.training.metrics.loggers import MetricLoggerInterface
from torchtune_lite.utils import get_logger


class Quiet(MetricLoggerInterface):
    def __init__(self, api_key):
        get_logger().warning("careful")


class Bug(LinearCrossEntropyLoss):
    def forward(self, output, hidden, labels):
        return {}["missing"]
"""


def test_a_slip_in_a_loss_is_the_users_and_in_the_log_beside_what_was_logged(tiny, tune, tmp_path):
    (tmp_path / "bug.py").write_text(BUG)
    (tmp_path / "full.yaml").write_text(
        common_keys(tiny, tmp_path / "out")
        + "model: {_component_: torchtune_lite.models.llama2.llama2}\n"
        + "optimizer: {_component_: torch.optim.AdamW, lr: 1.0e-3}\nloss: {_component_: bug.Bug}\nverify_saves: null\n"
        + "metric_logger: {_component_: bug.Quiet, api_key: s3cret}\n"
    )
    done = tune("run", "full_finetune_single_device", "--config", "full.yaml", check=False)
    log = tmp_path / "out" / "run.log"
    assert done.returncode == 1
    shown = done.stderr.partition("Traceback (most recent call last):\n")[2].splitlines()
    assert shown[0] == f'  File "{tmp_path}/bug.py", line 14, in forward'
    assert shown[-1] == f"tune: error: bug.py:14: KeyError: 'missing'; the whole traceback is in {log}"
    assert "report it" not in done.stderr and "torchtune_lite/" not in "".join(shown)
    said = log.read_text()
    assert "torchtune_lite/training/step/losses.py" in said
    assert "WARNING careful" in said and "KeyError: 'missing'\n" in said and 'return {}["missing"]' in said
    assert "s3cret" not in "".join(path.read_text() for path in (tmp_path / "out").rglob("*") if path.is_file())
