"""What a folder is, and with which model, tokenizer and template it is asked: a run, a checkpoint, an adapter, a model.

Nothing is repeated that the folder's own files say: the run's config.yaml names tokenizer and template, the adapter's
adapter_config.json its base, config.json the family and its sizes. No weight is read here.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torchtune_lite.checkpoint.formats.adapter import adapter_folder
from torchtune_lite.checkpoint.formats.adapter_config import CONFIG as ADAPTER_CONFIG
from torchtune_lite.checkpoint.formats.files import WEIGHTS, read_json
from torchtune_lite.checkpoint.store.claim import DRAFT, TRASH
from torchtune_lite.checkpoint.store.discovery import newest, read_best
from torchtune_lite.checkpoint.store.manifest import has_manifest, verify
from torchtune_lite.checkpoint.store.publishing import published
from torchtune_lite.config.text import document
from torchtune_lite.data.messages import ALPACA_PROMPT
from torchtune_lite.data.tokenizers.chat_template import CHAT_TEMPLATE, find_chat_template
from torchtune_lite.data.tokenizers.files import read_json as read_json_if_there
from torchtune_lite.data.tokenizers.loader import FILES
from torchtune_lite.errors import CheckpointError
from torchtune_lite.utils import counted

RUN_CONFIG = "config.yaml"
PACKAGE = "torchtune_lite"
CHECKPOINTER = f"{PACKAGE}.training.FullModelHFCheckpointer"
FILE_KEYS = ("_component_", "checkpoint_files", "model_type")
"""What a checkpointer's config says of the files of its base."""
QUESTIONS = dict.fromkeys(
    ("alpaca_dataset", "alpaca_cleaned_dataset"), ALPACA_PROMPT.replace("{instruction}", "{question}")
)
"""What data sets put around each question themselves, beside the tokenizer's template."""
MODEL = f"{PACKAGE}.models.from_checkpoint"
TOKENIZER = f"{PACKAGE}.models.tokenizer_of_checkpoint"
KINDS = "a run's output_dir, a checkpoint epoch_N or step_N, an adapter of PEFT's, or the folder of a model"

log = logging.getLogger("torchtune_lite")

Component = dict[str, Any]


@dataclass(frozen=True)
class ModelFolder:
    """What a folder is asked with.

    `path` has the weights: of `runs/x` the checkpoint that was chosen. They are a whole model, and then `base` is that
    folder too, or an `adapter` (else None) for the model in `base`. `model`, `tokenizer`, `checkpointer` and `dtype`
    are the values of these keys of a recipe's config (`training.RecipeSettings`): components as a YAML names them, none
    of them built. `system` and `question_template` (`training.AskingSettings`) are the system prompt, and the text
    around each question, that all rows of the training had; None for none.
    """

    path: Path
    base: Path
    adapter: Path | None
    model: Component
    tokenizer: Component
    checkpointer: Component
    dtype: str
    system: str | None
    question_template: str | None

    def __str__(self) -> str:
        return f"adapter {self.adapter} on {self.base}" if self.adapter else f"model {self.path}"

    @property
    def values(self) -> dict[str, Any]:
        """The keys of a config that runs this model."""
        return {key: getattr(self, key) for key in ("model", "tokenizer", "checkpointer", "dtype")}

    @property
    def answering_values(self) -> dict[str, Any]:
        """The keys of a config that asks it as it was trained."""
        return {**self.values, "system": self.system, "question_template": self.question_template}


def find_model(path: Path | str, base: Path | str | None = None) -> ModelFolder:
    """Find out what a folder is, and return what it is asked with.

    `path` is a run's output_dir, whose best checkpoint by validation loss is taken, or else the newest; a checkpoint
    of ours, merged or with the adapter alone; the adapter in it, or one of PEFT's; or the folder of a model in Hugging
    Face's layout. `base` is the folder of an adapter's base, in the place of the one that its files name.

    Template, tokenizer, base and quantisation are those of the training where the run's config.yaml lies beside the
    checkpoint; else the folder's own, a model without a chat template being given the bare text. CheckpointError for a
    folder that is none of these, a checkpoint that is not whole, and a base that is not there.
    """
    folder = chosen_folder(path)
    if has_manifest(folder):
        verify(folder, quick=True)
    has_weights = any(any(folder.glob(pattern)) for pattern in WEIGHTS)
    if (folder / "config.json").is_file() and (has_weights or not (folder / ADAPTER_CONFIG).is_file()):
        if base is not None:
            raise CheckpointError(f"{folder} is a whole model and has no base; leave --base out")
        return _whole_model(folder, _run_config(folder))
    adapter = adapter_folder(folder)
    if not (adapter / ADAPTER_CONFIG).is_file():
        raise CheckpointError(
            f"{folder} holds no model: neither config.json nor {ADAPTER_CONFIG} nor a checkpoint; expected {KINDS}"
        )
    checkpoint = adapter.parent if adapter.name == "adapter" else adapter
    return _adapter(folder, adapter, checkpoint, base)


def chosen_folder(path: Path | str) -> Path:
    """Return the folder that is meant: of a run's output_dir a checkpoint, the best or else the newest; or itself.

    CheckpointError where there is none, or one that is not whole.
    """
    folder = Path(path).expanduser()
    folder = folder if folder.name.strip(".") else folder.resolve()  # of `.`, whose name tells what it is
    if not folder.is_dir():
        raise CheckpointError(f"{path} is not a folder; expected {KINDS}")
    if folder.name.startswith((DRAFT, TRASH)):
        raise CheckpointError(
            f"{path} is not a whole checkpoint: it is being written, or a run that was killed has left it there"
        )
    is_run = (folder / RUN_CONFIG).is_file() and not (folder / "config.json").exists()
    found = published(folder)
    if not found and is_run:
        raise CheckpointError(f"{folder} is the output_dir of a run that has saved no checkpoint yet")
    if not found or (folder / "config.json").exists():
        return folder
    last = newest(folder)
    best = read_best(folder).get("checkpoint", last.name)
    if len(found) > 1:
        which = "the newest" if best == last.name else f"the best by validation loss (the newest is {last.name})"
        log.info("%s: %s of %s: %s", folder, which, counted(len(found), "checkpoint"), best)
    return folder / best


def _run_config(checkpoint: Path) -> Mapping[str, Any]:
    """Read the config of the run that saved a checkpoint; an empty one where there is none."""
    checkpoint = checkpoint.resolve()
    path = checkpoint.parent / RUN_CONFIG
    if checkpoint not in published(checkpoint.parent) or not path.is_file():
        return {}
    values = document.read(path).values
    return values if {"model", "tokenizer", "checkpointer"} <= set(values) else {}


def _whole_model(folder: Path, run: Mapping[str, Any]) -> ModelFolder:
    return ModelFolder(
        path=folder,
        base=folder,
        adapter=None,
        model={"_component_": MODEL},
        tokenizer=_tokenizer(folder, run),
        checkpointer={"_component_": CHECKPOINTER, "checkpoint_dir": str(folder)},
        **_asked(run),
    )


def _adapter(folder: Path, adapter: Path, checkpoint: Path, given: Path | str | None) -> ModelFolder:
    if checkpoint != folder and has_manifest(checkpoint):
        verify(checkpoint, quick=True)
    run = _run_config(checkpoint)
    trained = run.get("checkpointer", {})
    if trained.get("merge_adapter"):
        other = trained.get("adapter_checkpoint")
        raise CheckpointError(
            f"adapter {adapter}: {other} is merged into its base; name the merged model, {checkpoint}"
        )
    base = _base(adapter, given, trained.get("checkpoint_dir"))
    kept = FILE_KEYS if given is None else ()
    return ModelFolder(
        path=folder,
        base=base,
        adapter=adapter,
        model=dict(run.get("model", {"_component_": MODEL})),
        tokenizer=_tokenizer(checkpoint if _has_tokenizer(checkpoint) else base, run),
        checkpointer={"_component_": CHECKPOINTER}
        | {key: trained[key] for key in kept if key in trained}
        | {"checkpoint_dir": str(base), "adapter_checkpoint": str(adapter)},
        **_asked(run),
    )


def _base(adapter: Path, given: Path | str | None, of_run: str | None) -> Path:
    """Find the folder of an adapter's base: the one given, or one that its files name."""
    if given is not None:
        base = Path(given).expanduser()
        if not (base / "config.json").is_file():
            raise CheckpointError(f"--base {given} is not the folder of a model: it has no config.json")
        return base
    named = read_json(adapter / ADAPTER_CONFIG).get("base_model_name_or_path")
    names = [str(name) for name in (named, of_run) if name]
    if found := next((base for base in map(Path, names) if base.expanduser().is_dir()), None):
        return found.expanduser()
    gone = f"its base {names[0]!r} does not exist here" if names else f"its {ADAPTER_CONFIG} names no base"
    raise CheckpointError(f"adapter {adapter}: {gone}; name the base model's folder with --base FOLDER")


def _has_tokenizer(folder: Path) -> bool:
    return any((folder / name).is_file() for name in FILES)


def _tokenizer(folder: Path, run: Mapping[str, Any]) -> Component:
    """Return the tokenizer of the run, read from its copy in `folder`; or that of a folder that no run has left."""
    if not run:
        template = find_chat_template(folder, read_json_if_there(folder / "tokenizer_config.json"))
        if template is None:
            log.info("%s has no chat template: the model is given the bare text", folder)
        return {"_component_": TOKENIZER, "path": str(folder), "prompt_template": CHAT_TEMPLATE if template else None}
    tokenizer = dict(run["tokenizer"])
    for key, value in tokenizer.items():
        if isinstance(value, str) and (key == "path" or key.endswith(("_path", "_file"))):
            tokenizer[key] = _copy(Path(value), folder)
    if "max_seq_len" in tokenizer:  # which cut the samples
        tokenizer["max_seq_len"] = None
    return tokenizer


def _copy(path: Path, folder: Path) -> str:
    """Return the copy in a checkpoint of a file or folder that the run read; the original where there is none."""
    if (folder / path.name).is_file():
        return str(folder / path.name)
    return str(path if path.expanduser().is_file() or not _has_tokenizer(folder) else folder)


def _asked(run: Mapping[str, Any]) -> dict[str, Any]:
    """Return in what dtype, and within which texts, a run's model was asked; 16 bits are those that the device has."""
    datasets = run.get("dataset")
    datasets = [each for each in (datasets if isinstance(datasets, list) else [datasets]) if isinstance(each, Mapping)]
    systems = {each.get("new_system_prompt") for each in datasets}
    templates = {QUESTIONS.get(each["_component_"].rpartition(".")[2]) for each in datasets}
    return {
        "dtype": "fp32" if run.get("dtype") == "fp32" else "auto",
        "system": systems.pop() if len(systems) == 1 else None,
        "question_template": templates.pop() if len(templates) == 1 else None,
    }
