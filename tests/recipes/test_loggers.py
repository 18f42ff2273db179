"""A run whose W&B fails in every way: the same losses in metrics.jsonl as without it, and an end in bounded time."""

import sys
import threading
import types

import pytest

from tests.recipes.conftest import common_keys, metrics
from torchtune_lite import catalog, config
from torchtune_lite.training.metrics.loggers import WandBLogger

CONFIG = """
model: {_component_: torchtune_lite.models.llama2.lora_llama2, lora_attn_modules: [q_proj], lora_rank: 2}
optimizer: {_component_: torch.optim.AdamW, lr: 1.0e-2}
"""
WANDB = "{_component_: torchtune_lite.training.WandBLogger}"


class FakeRun:
    """A W&B run whose calls a test can define."""

    dir = "/nowhere/files"

    def __init__(self, **calls):
        self.calls, self.rows = calls, 0
        self.config = types.SimpleNamespace(update=lambda *args, **kwargs: None)

    def define_metric(self, *args, **kwargs):
        pass

    def log(self, row):
        self.rows += 1
        if self.rows == self.calls.get("breaks_at"):
            raise BrokenPipeError("service killed")

    def finish(self):
        self.calls.get("finish", lambda: None)()


@pytest.fixture
def losses(tiny, tmp_path, monkeypatch):
    """Train 8 steps in this process with `wandb.init` as given, None for no logger; return the losses."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.yaml").write_text(common_keys(tiny, tmp_path) + CONFIG)

    def train(name, init):
        words = [f"output_dir={tmp_path / name}", "batch_size=4", "verify_saves=null", "save_adapter_weights_only=True"]
        if init is not None:
            module = types.ModuleType("wandb")
            module.run, module.init = None, init
            module.errors = types.SimpleNamespace(UsageError=type("UsageError", (Exception,), {}))
            monkeypatch.setitem(sys.modules, "wandb", module)
            words.append(f"metric_logger={WANDB}")
        script = catalog.find_recipe("lora_finetune_single_device").path
        monkeypatch.setattr(sys, "argv", [str(script), "--config", "run.yaml", *words])
        settings = config.settings_of(script)
        sys.modules[settings.__module__].recipe_main()
        return metrics(tmp_path / name, "loss")

    return train


def raising(*args, **kwargs):
    raise ConnectionError("no network")


def test_no_failure_of_wandb_changes_a_run(losses, capsys, monkeypatch):
    wake, ended = threading.Event(), []

    def hanging(*args, **kwargs):
        ended.append(wake.wait(60))

    alone = losses("alone", None)
    assert len(alone) == 8
    for name, init, warning in (
        ("hangs in init", hanging, "W&B did not start (not finished after 0.2 s); training goes on without it"),
        ("raises in init", raising, "W&B did not start (no network); training goes on without it"),
        ("breaks", lambda **_: FakeRun(breaks_at=7), "WandBLogger failed (BrokenPipeError: service killed)"),
        ("hangs at the end", lambda **_: FakeRun(finish=hanging), "not finished after 0.2 s; send the run later"),
        ("raises at the end", lambda **_: FakeRun(finish=raising), "WandBLogger failed (ConnectionError: no network)"),
    ):
        for limit, hangs in (("init_timeout_s", "hangs in init"), ("finish_timeout_s", "hangs at the end")):
            monkeypatch.setattr(WandBLogger, limit, 0.2 if name == hangs else 60)
        assert (name, losses(name, init)) == (name, alone)
        assert ended == [], name
        assert capsys.readouterr().err.count(warning) == 1, name
    wake.set()
