"""lm-evaluation-harness: which version, which tasks, and where these have their data."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from glob import has_magic
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from torchtune_lite.errors import ConfigError, DataError, did_you_mean

OLDEST, BEFORE = (0, 4, 10), (0, 5)
"""The versions of lm-eval that serve: this one and later ones before that one."""


def check_version() -> None:
    """Raise ConfigError where lm-eval is missing, or is a version that does not serve."""
    wanted = "pip install 'torchtune_lite[eval]'"
    try:
        installed = version("lm_eval")
    except PackageNotFoundError:
        raise ConfigError(f"this needs lm-evaluation-harness; {wanted}") from None
    if not OLDEST <= tuple(int(part) for part in installed.split(".")[:3] if part.isdigit()) < BEFORE:
        raise ConfigError(f"lm-eval {installed} is not served, only 0.4.10 and later before 0.5; {wanted}")


def find_tasks(tasks: Sequence[str], include_path: str | Path | None) -> Any:
    """Return a `TaskManager` that has `tasks`; ConfigError for a name that is unknown, or without lm-eval.

    Where the folder `include_path` has them all, the tasks of the harness are left unread: they are thousands.
    """
    check_version()
    logging.getLogger("lm_eval").setLevel(logging.WARNING)
    from lm_eval.tasks import TaskManager

    if include_path is not None and not Path(include_path).is_dir():
        raise ConfigError(f"include_path: {include_path} is not a folder; name one with the YAML files of tasks")
    if not tasks:
        raise ConfigError("tasks: the list is empty; name a task, such as arc_easy")
    folder = None if include_path is None else str(include_path)
    for include_defaults in (False, True) if folder else (True,):
        manager = TaskManager(include_path=folder, include_defaults=include_defaults)
        missing = [task for task in tasks if not manager.match_tasks([task])]
        if not missing:
            return manager
    nearest = did_you_mean(missing[0], manager.all_tasks)
    raise ConfigError(f"tasks: there is no task {missing[0]!r} (include_path: a folder with your own){nearest}")


@contextmanager
def data_files_beside(folder: Path | None) -> Iterator[None]:
    """Make tasks look for their data files in `folder` first, then, as the harness does, in the working directory."""
    from lm_eval.api.task import ConfigurableTask

    download = ConfigurableTask.download

    def download_beside(task: Any, dataset_kwargs: Mapping[str, Any] | None = None, **kwargs: Any) -> None:
        if dataset_kwargs and "data_files" in dataset_kwargs:
            dataset_kwargs = {**dataset_kwargs, "data_files": _beside(dataset_kwargs["data_files"], folder)}
        download(task, dataset_kwargs, **kwargs)

    if folder is not None:
        ConfigurableTask.download = download_beside
    try:
        yield
    finally:
        ConfigurableTask.download = download


def _beside(files: Any, folder: Path) -> Any:
    if isinstance(files, Mapping):
        return {name: _beside(each, folder) for name, each in files.items()}
    if isinstance(files, list | tuple):
        return [_beside(each, folder) for each in files]
    if Path(files).is_absolute():
        return files
    is_there = any(folder.glob(files)) if has_magic(files) else (folder / files).exists()
    return str((folder / files).resolve()) if is_there else files


def run_harness(
    model: Any,
    manager: Any,
    tasks: Sequence[str],
    *,
    seed: int = 1234,
    apply_chat_template: bool = False,
    fewshot_as_multiturn: bool = True,
    **options: Any,
) -> dict[str, Any]:
    """Ask an `as_harness_model` the `tasks` that `find_tasks` has found; return what `lm_eval.simple_evaluate` does.

    `options` are arguments of that, such as `limit`, `num_fewshot`, `system_instruction` and `log_samples`. Raise
    DataError where the data of a task cannot be read.
    """
    import datasets
    from lm_eval import simple_evaluate

    folder = manager.include_path
    try:
        with data_files_beside(None if folder is None else Path(folder)):
            return simple_evaluate(
                model,
                tasks=manager.match_tasks(list(tasks)),
                task_manager=manager,
                apply_chat_template=apply_chat_template,
                fewshot_as_multiturn=apply_chat_template and fewshot_as_multiturn,
                numpy_random_seed=seed,
                torch_random_seed=seed,
                fewshot_random_seed=seed,
                **options,
            )
    except (OSError, datasets.exceptions.DatasetsError) as error:
        reason = str(error).partition("\n")[0]
        raise DataError(f"tasks: the data of a task cannot be read: {reason}") from error


def score_tables(results: dict[str, Any]) -> str:
    """Write the scores of tasks, and of groups if there are any, as tables."""
    from lm_eval.utils import make_table

    return "\n".join(make_table(results, column) for column in ("results", "groups") if results.get(column))
