"""Tokenizers for a YAML: that of the checkpoint, whatever it is, and torchtune's builders by their names.

A builder of torchtune's takes the chat template that lies beside the file it is given, which is what the model was
trained with; torchtune wrote a form of its own. Where there is no template, as beside a base model, the family's form
stands in, and one line says so.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torchtune_lite.data import (
    ChatTemplate,
    Llama3Tokenizer,
    ModelTokenizer,
    PromptTemplateName,
    TrainOn,
    load_tokenizer,
)
from torchtune_lite.data.templates import Template
from torchtune_lite.data.tokenizers.chat_template import CHAT_TEMPLATE, find_chat_template
from torchtune_lite.data.tokenizers.files import read_json, sniff
from torchtune_lite.errors import ConfigError
from torchtune_lite.utils import get_logger

Form = str | Callable[[], Template]
"""The source of a chat template in Jinja, or a class of text templates."""

log = get_logger()


def tokenizer_of_checkpoint(
    path: str | Path | None = None,
    max_seq_len: int | None = None,
    prompt_template: PromptTemplateName = CHAT_TEMPLATE,
    chat_template_kwargs: Mapping[str, Any] | None = None,
    add_eos_when_cut: bool = False,
    train_on: TrainOn = "all",
    add_tokens: Sequence[str] | None = None,
) -> ModelTokenizer:
    """Read the tokenizer of the checkpoint that the recipe reads, with its chat template.

    `path`: another folder, or a file. `prompt_template`: another template, null for the bare messages of a checkpoint
    that has none. `add_tokens`: texts that become tokens, for which the model gets rows. The other arguments are those
    of `ModelTokenizer`.
    """
    if path is None:
        raise ConfigError("tokenizer.path is null; name a folder, or leave it out where a checkpointer has one")
    return load_tokenizer(
        path, max_seq_len, prompt_template, chat_template_kwargs, add_eos_when_cut, train_on, add_tokens
    )


COMMON = [
    *(each for each in inspect.signature(tokenizer_of_checkpoint).parameters.values() if each.name != "path"),
    inspect.Parameter("truncation_type", inspect.Parameter.POSITIONAL_OR_KEYWORD, default="right", annotation=str),
]


def tokenizer_builder(
    form: Form, *files: str, prompt_template: PromptTemplateName = CHAT_TEMPLATE
) -> Callable[..., ModelTokenizer]:
    """Make a builder with torchtune's arguments, of which `files` are the names of those that are paths.

    The first one is the tokenizer's file, or its folder. Of Qwen's and Phi 4's pair of vocabulary and merges,
    tokenizer.json is read in their place where it lies beside them. `special_tokens_path` numbers the special tokens of
    Llama 3's ranks. `prompt_template` is the default: the checkpoint's chat template, and `form` where it has none.
    """
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    first = inspect.Parameter(files[0], kind, annotation=str | Path)
    others = [inspect.Parameter(name, kind, default=None, annotation=str | Path | None) for name in files[1:]]
    common = [each.replace(default=prompt_template) if each.name == "prompt_template" else each for each in COMMON]
    signature = inspect.Signature([first, *others, *common], return_annotation=ModelTokenizer)

    def builder(*args: Any, **kwargs: Any) -> ModelTokenizer:
        given = signature.bind(*args, **kwargs)
        may_stand_in = "prompt_template" not in given.arguments
        given.apply_defaults()
        options = dict(given.arguments)
        path, *more = (options.pop(name) for name in files)
        return _read(form, path, dict(zip(files[1:], more, strict=True)), options, may_stand_in)

    builder.__signature__ = signature
    builder.__doc__ = (
        "Read a tokenizer with the chat template beside it or, where there is none, the family's own form.\n\n"
        "torchtune wrote that form always. `prompt_template`: another one, null for the bare messages."
    )
    return builder


def _read(
    form: Form, path: str | Path, others: Mapping[str, Any], options: dict[str, Any], may_stand_in: bool
) -> ModelTokenizer:
    """Read a tokenizer; `may_stand_in`: the family's form may, for a chat template that nobody asked for by name."""
    if (cut := options.pop("truncation_type")) != "right":
        raise ConfigError(f"tokenizer.truncation_type={cut!r} is not served; only 'right' is")
    file = Path(path).expanduser()
    for name, other in others.items():
        if other is not None and name.startswith("merges"):
            file = _of_pair(file, Path(other).expanduser(), name)
    ranks = file.is_file() and _format(file) == "ranks"
    if special := others.get("special_tokens_path"):
        if not ranks:
            raise ConfigError(
                "tokenizer.special_tokens_path is for Llama 3's tokenizer.model; leave it out: others have their "
                "special tokens in tokenizer_config.json, beside the file"
            )
        listed = read_json(Path(special).expanduser()).get("added_tokens", [])
        options["special_tokens"] = {token["content"]: token["id"] for token in listed} or None
    if options["prompt_template"] == CHAT_TEMPLATE and (may_stand_in or ranks):
        options["prompt_template"] = None if ranks else _template(form, file if file.is_dir() else file.parent)
    if not ranks or options["add_tokens"] is not None:
        return load_tokenizer(file, **options)
    del options["add_tokens"]
    if options.pop("chat_template_kwargs"):
        raise ConfigError("tokenizer.chat_template_kwargs: Llama3Tokenizer has no chat template; leave it out")
    return Llama3Tokenizer(file, **options)


def _of_pair(vocabulary: Path, merges: Path, name: str) -> Path:
    """Return the tokenizer.json beside a vocabulary and its merges; else the vocabulary, beside which they must lie."""
    beside = vocabulary.parent / "tokenizer.json"
    if beside.is_file():
        return beside
    if merges != vocabulary.parent / "merges.txt":
        raise ConfigError(f"tokenizer.{name} {merges} must be merges.txt in the folder of {vocabulary}")
    return vocabulary


def _format(file: Path) -> str:
    with file.open("rb") as opened:
        return sniff(opened.read(4096), file)


def _template(form: Form, folder: Path) -> PromptTemplateName | Template | ChatTemplate:
    """Return the chat template of a folder, by its name; the family's form where there is none."""
    if find_chat_template(folder, read_json(folder / "tokenizer_config.json")):
        return CHAT_TEMPLATE
    log.info("%s has no chat template: conversations are written in the form of the model's family", folder)
    return form() if callable(form) else ChatTemplate(form, {}, "the family's chat template")
