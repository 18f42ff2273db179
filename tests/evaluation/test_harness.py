"""Which versions of the harness are taken, which tasks it finds, and where their data are."""

import inspect
from importlib.metadata import PackageNotFoundError

import pytest
import yaml
from lm_eval import simple_evaluate
from lm_eval.api.task import ConfigurableTask
from lm_eval.tasks import TaskManager

from tests.evaluation.conftest import COMMON, TASKS
from torchtune_lite.errors import ConfigError, DataError
from torchtune_lite.evaluation import harness
from torchtune_lite.evaluation.harness import check_version, data_files_beside, find_tasks, run_harness, score_tables


def test_tasks_are_found_in_the_folder_alone_and_data_beside_them_first(task_folder, manager, tmp_path, monkeypatch):
    assert not [task for task in manager.all_tasks if not task.startswith("local_")]  # the harness's own are not read
    monkeypatch.chdir(tmp_path)
    (tmp_path / "other.jsonl").write_text("{}")
    seen = []
    monkeypatch.setattr(ConfigurableTask, "download", lambda task, kwargs=None, **more: seen.append(kwargs))
    with data_files_beside(task_folder):
        for files in ("rows.jsonl", ["*.jsonl", "other.jsonl", "/a/*.jsonl"], {"test": "rows.jsonl"}):
            ConfigurableTask.download(None, {"data_files": files, "field": "a"})
        ConfigurableTask.download(None, None)
    here = str(task_folder / "rows.jsonl")
    files = [each["data_files"] for each in seen[:-1]]
    assert files == [here, [str(task_folder / "*.jsonl"), "other.jsonl", "/a/*.jsonl"], {"test": here}]
    assert seen[-1] is None and seen[0]["field"] == "a"


def test_what_cannot_be_asked_is_one_line(ours, task_folder, manager, tmp_path, monkeypatch):
    for tasks, folder, problem in (
        ([], task_folder, "^tasks: the list is empty"),
        (["local_choice"], task_folder / "none", "^include_path: .*none is not a folder"),
    ):
        with pytest.raises(ConfigError, match=problem):
            find_tasks(tasks, folder)
    few = TaskManager(include_path=str(task_folder), include_defaults=False)  # not the thousands of the harness
    monkeypatch.setattr("lm_eval.tasks.TaskManager", lambda **_: few)
    with pytest.raises(ConfigError, match="^tasks: there is no task 'local_choise' .*; did you mean 'local_choice'"):
        find_tasks(["local_text", "local_choise"], task_folder)
    text = yaml.safe_dump({"task": "gone", **COMMON, **TASKS["local_text"]})
    (tmp_path / "gone.yaml").write_text(text)
    with pytest.raises(DataError, match="^tasks: the data of a task cannot be read: .*rows.jsonl"):
        run_harness(ours, TaskManager(include_path=str(tmp_path), include_defaults=False), ["gone"])


@pytest.mark.parametrize(
    ("found", "problem"),
    [("0.4.9.2", "lm-eval 0.4.9.2 is not served"), ("0.5.0", "0.5.0 is not served"), ("0.4.10", ""), ("0.4.13", "")],
)
def test_only_versions_that_serve_are_taken(found, problem, monkeypatch):
    monkeypatch.setattr(harness, "version", lambda name: found)
    if not problem:
        check_version()
        return
    with pytest.raises(ConfigError, match=f"{problem}.*pip install 'torchtune_lite\\[eval\\]'"):
        check_version()


def test_without_the_harness_the_extra_is_named(monkeypatch):
    def missing(name):
        raise PackageNotFoundError

    monkeypatch.setattr(harness, "version", missing)
    with pytest.raises(ConfigError, match="needs lm-evaluation-harness; pip install 'torchtune_lite"):
        check_version()


def test_the_installed_version_takes_what_it_is_given():
    """Each version has to: its signature is all that is known of one that is not installed."""
    passed = inspect.signature(simple_evaluate).parameters
    ours = ("model", "tasks", "task_manager", "limit", "num_fewshot", "apply_chat_template", "fewshot_as_multiturn")
    ours += ("system_instruction", "bootstrap_iters", "log_samples")
    ours += ("numpy_random_seed", "torch_random_seed", "fewshot_random_seed")
    assert set(ours) <= set(passed)
    assert {"include_path", "include_defaults"} <= set(inspect.signature(TaskManager.__init__).parameters)


def test_the_tables_have_the_scores(ours, manager):
    found = run_harness(ours, manager, ["local_ch*"], limit=2)
    assert "|local_choice|" in score_tables(found) and "acc_norm" in score_tables(found)
    assert found["n-samples"]["local_choice"]["effective"] == 2
