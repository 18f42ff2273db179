"""YAMLs that try to run code or to delete a folder: `tune validate` and `tune run` refuse them, and nothing happens."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest
import torch.optim  # noqa: F401 (before anything is watched)
import yaml

from tests.error_files import CHECK, CONFIG, RUN, Case, lay_out
from tests.test_error_messages import call, said

EVENTS = {
    *("os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.symlink", "os.truncate", "os.chmod", "shutil.rmtree"),
    *("os.system", "os.exec", "os.posix_spawn", "os.fork", "subprocess.Popen", "pickle.find_class"),
    *("socket.connect", "socket.getaddrinfo", "ctypes.dlopen"),
}
watchers: list[list[str]] = []


def watch(event: str, arguments: tuple) -> None:
    """Note calls that change files, start programs or use the network; files may be opened for reading."""
    if watchers and (event in EVENTS or (event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR))):
        watchers[-1].append(event)


@pytest.fixture(scope="module", autouse=True)
def hook() -> None:
    sys.addaudithook(watch)  # it stays, and does nothing without a watcher


@contextmanager
def watched() -> Iterator[list[str]]:
    watchers.append([])
    try:
        yield watchers[-1]
    finally:
        watchers.pop()


REMOVE = {"_component_": "torchtune_lite.checkpoint.store.disk.remove", "path": "victim"}
NAMES = [
    *("os.system", "os.remove", "posix.system", "shutil.rmtree", "subprocess.run", "builtins.exec", "builtins.eval"),
    *("importlib.import_module", "runpy.run_path", "pickle.loads", "ctypes.CDLL", "webbrowser.open", "pathlib.Path"),
    *("functools.partial", "operator.methodcaller", "code.interact", "pip.main", "yaml.unsafe_load"),
    *("torch.load", "torch.save", "torch.hub.load", "torch.ops.load_library", "torch.utils.cpp_extension.load"),
    *("torch.nn.modules.module.torch.hub.load", "torch.nn.init.os.system", "torch.optim.optimizer.functools.partial"),
    *("torch.nn.Module.load_state_dict", "torch.nn.utils.rnn.os.system", "torchao.quantization.quant_api.os.system"),
    *(
        "torchtune_lite.checkpoint.store.disk.remove",
        "torchtune_lite.checkpoint.store.disk.rename",
        "torchtune_lite.os.system",
    ),
    *(
        "torchtune_lite.checkpoint.publish",
        "torchtune_lite.checkpoint.retain",
        "torchtune_lite.checkpoint.store.publishing.Path",
    ),
    *("torchtune_lite.catalog.find_recipe", "torchtune_lite.catalog.Path", "torchtune_lite.cli.main.start"),
    *("torchtune_lite.config.load", "torchtune_lite.config.save", "torchtune_lite.config.settings_of"),
    *(
        "torchtune_lite.config.trusting",
        "torchtune_lite.config.registry.trust.os.putenv",
        "torchtune_lite.config.instantiate",
    ),
    *(
        "torchtune_lite.data.load_rows",
        "torchtune_lite.data.readers.sources.DataFiles",
        "torchtune_lite.data.batching.workers.os.kill",
    ),
    *("torchtune_lite.datasets.inspect_data", "torchtune_lite.errors.log_tracebacks", "torchtune_lite.utils.LogFile"),
    *("torchtune_lite.training.plot_loss_curve", "torchtune_lite.training.metrics.loggers.within"),
    *("torchtune_lite.training.WandBLogger.__init__.__globals__", "torchtune_lite.training.DiskLogger.__class__"),
    *("torchtune_lite.assets.make_base.main", "torchtune_lite.recipes.generate.recipe_main", "tests.conftest.folder"),
    *("bitsandbytes.cextension.ct.CDLL", "wandb.login", "wandb.init"),
]


def changed(**changes: Any) -> str:
    """The text of a config that would run, with values put at dotted keys, `/` for the dot."""
    config = yaml.safe_load(CONFIG)
    for key, value in changes.items():
        node, (*above, last) = config, key.split("/")
        for part in above:
            node = node[part]
        node[last] = value
    return yaml.safe_dump(config, sort_keys=False)


def attempts() -> Iterator[Any]:
    for name, key in zip(NAMES, cycle(["dataset/filter_fn", "tokenizer/prompt_template"]), strict=False):
        yield pytest.param(changed(optimizer={"_component_": name, "path": "victim"}), id=name)
        yield pytest.param(changed(**{key: name}), id=f"{key}: {name}")
    good = yaml.safe_load(CONFIG)["dataset"]
    for key, value in {
        "loss": REMOVE,
        "dataset": [good, REMOVE],
        "dataset_val": [good, good | {"source": REMOVE}],
        "dataset/data_files": [REMOVE],
        "dataset/source": REMOVE,
        "dataset/filter_fn": {"_component_": "own.keep", "deep": [[{"deeper": REMOVE}]]},
        "tokenizer/path": REMOVE,
        "model/lora_rank": REMOVE,
        "checkpointer/checkpoint_files": [REMOVE],
        "optimizer/lr": REMOVE,
        "optimizer": {"_component_": "own.remove"},
        "loss/": {"_component_": "own.shutil.rmtree"},
        "metric_logger": [{"_component_": "torchtune_lite.training.DiskLogger", "log_dir": REMOVE}],
        "profiler": {"_component_": "own.Rows.clear"},
        "lr_scheduler": {
            "_component_": "torchtune_lite.optim.get_wsd_schedule",
            "num_warmup_steps": 0,
            "num_decay_steps": REMOVE,
        },
    }.items():
        yield pytest.param(changed(**{key.rstrip("/"): value}), id=f"nested in {key.rstrip('/')}")


OWN = """import shutil
from functools import partial
from shutil import rmtree
remove = partial(rmtree, "victim")
def keep(row=None, deep=None): return True
class Rows(list): ...
"""


@pytest.mark.parametrize("command", [CHECK, RUN], ids=["validate", "run"])
@pytest.mark.parametrize("text", list(attempts()))
def test_an_attempt_is_refused_in_a_line_and_nothing_happens(text, command, folder, monkeypatch, capsys):
    for name, content in {"my.yaml": text, "own.py": OWN, "train.jsonl": '{"input": "a", "output": "b"}\n'}.items():
        (folder / name).write_text(content)
    (folder / "victim").mkdir()
    before = sorted(folder.rglob("*"))
    monkeypatch.delitem(sys.modules, "own", raising=False)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    with watched() as seen:
        code = call(command, monkeypatch)
    lines = said(capsys.readouterr().err)
    assert code == 2 and len(lines) == 1 and lines[0].startswith("tune: error: my.yaml:"), lines
    assert "allowed component" in lines[0] or "is an attribute of an object" in lines[0] or "cannot find" in lines[0]
    assert seen == [] and sorted(folder.rglob("*")) == before


def test_the_watch_sees_what_an_attempt_would_do(folder):
    """The control."""
    with watched() as seen:
        Path("made").mkdir()
        Path("written").write_text("")
    assert seen == ["os.mkdir", "open"]


def test_the_config_that_the_attempts_change_runs(tmp_path, monkeypatch, capsys):
    """The other control: without the attempt there is nothing to refuse."""
    monkeypatch.chdir(tmp_path)
    lay_out(Case("", ""), tmp_path, tmp_path)
    assert call(CHECK, monkeypatch) == 0, capsys.readouterr().err
