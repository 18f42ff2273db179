"""Saves the tokenizer with a checkpoint, and checks that what was saved encodes a chat as in training."""

import json
import logging
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from torchtune_lite.data import (
    ChatTemplate,
    HuggingFaceModelTokenizer,
    Llama3Tokenizer,
    Message,
    ModelTokenizer,
    SentencePieceTokenizer,
    load_tokenizer,
)
from torchtune_lite.data.chat_template import CHAT_TEMPLATE, FILE, find_chat_template
from torchtune_lite.data.sentencepiece_export import TOKENIZER_CLASS, as_tokenizer_json
from torchtune_lite.data.template_export import as_chat_template
from torchtune_lite.data.tokenizer_files import leads_out, read_json
from torchtune_lite.data.tokenizer_loader import FILES
from torchtune_lite.errors import ConfigError, TuneError

TOKENIZER_FILES = (
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "chat_template*",
)
"""What transformers reads a tokenizer from."""
CODE = (".bin", ".dll", ".pickle", ".pkl", ".pt", ".pth", ".py", ".pyc", ".sh", ".so")  # or pickles, which run it
LARGEST = 100_000_000  # bytes; the largest tokenizer.json of 2025 has 35 million

_CHAT = (
    ("system", "Be brief."),
    *(("user", "6 × 7?"), ("assistant", "It's 42!")),
    *(("user", " And\n\n市? "), ("assistant", "A city.")),
)
CHATS = (_CHAT, _CHAT[1:], _CHAT[1:3])
"""What is encoded to compare two tokenizers: the first that the template takes."""

log = logging.getLogger("torchtune_lite")


def copy_files(source: Path, folder: Path, patterns: Iterable[str]) -> None:
    """Copy the files in `source` whose names match; a warning names those that a checkpoint should not take along.

    These are links that lead out of `source`, unless it is a snapshot in the cache of the Hugging Face hub, whose files
    are links to its blobs; code; and files larger than `LARGEST`.
    """
    left_out = []
    for file in sorted({file for pattern in patterns for file in source.glob(pattern) if not file.is_dir()}):
        if problem := _why_not_copied(file):
            left_out.append(f"{file.name} {problem}")
        else:
            shutil.copyfile(file, folder / file.name)
    if left_out:
        log.warning("not copied into the checkpoint: %s; copy what belongs there yourself", ", ".join(left_out))


def _why_not_copied(file: Path) -> str | None:
    if target := leads_out(file):
        return f"(a link to {target}, outside of its folder)"
    if not file.is_file():
        return "(not a regular file)"
    if file.suffix.lower() in CODE:
        return "(code, or a file that can run some)"
    if (size := file.stat().st_size) > LARGEST:
        return f"(too large for a tokenizer: {size:,} bytes)"
    return None


def save_tokenizer(folder: Path, tokenizer: Any, checkpoint_dir: Path) -> None:
    """Puts the files of the tokenizer that was trained with into `folder`, which has those of `checkpoint_dir`.

    The base's files stay where its tokenizer.json gives the same tokens. A text template is written as
    chat_template.jinja, in the place of the base's. Then a chat is encoded by `tokenizer` and by what was saved; a
    warning tells where they differ, or where the template cannot be written. A tokenizer of the user's own is left
    alone.
    """
    if not isinstance(tokenizer, ModelTokenizer):
        return
    path = Path(tokenizer.path).expanduser()
    if not path.is_file():
        log.warning("%s is gone, so the checkpoint has the base's tokenizer files", path)
        return
    elsewhere = path.parent.resolve() != checkpoint_dir.resolve()
    if elsewhere and not _encodes_alike(folder, tokenizer):
        for file in [file for pattern in TOKENIZER_FILES for file in folder.glob(pattern)]:
            file.unlink()
        copy_files(path.parent, folder, TOKENIZER_FILES)
    if not any((folder / name).exists() for name in FILES):
        shutil.copyfile(path, folder / FILES[not isinstance(tokenizer, HuggingFaceModelTokenizer)])
    if isinstance(tokenizer, Llama3Tokenizer):  # it has one form, that of the base's chat template
        return
    if isinstance(tokenizer, SentencePieceTokenizer) and not (folder / "tokenizer.json").exists():
        _convert(folder, tokenizer)
    try:
        _save_template(folder, tokenizer)
    except TuneError as error:
        level = logging.INFO if isinstance(error, ConfigError) else logging.WARNING  # an extra that is not installed
        log.log(level, "the tokenizer in the checkpoint was not compared with the one of the run: %s", error)


def _encodes_alike(folder: Path, tokenizer: ModelTokenizer) -> bool:
    """Tells whether the base's tokenizer.json gives the tokens of the run's, which stand elsewhere: Llama 3's ranks."""
    if not (folder / "tokenizer.json").exists():
        return False
    try:
        saved = load_tokenizer(folder)
    except TuneError:
        return False
    texts = [text.strip() for _, text in _CHAT]
    return all(saved.encode(text, False, False) == tokenizer.encode(text, False, False) for text in texts)


def _convert(folder: Path, tokenizer: SentencePieceTokenizer) -> None:
    """Writes a lone SentencePiece model as tokenizer.json, too, which transformers would convert with other tokens."""
    converted, config = as_tokenizer_json(tokenizer), folder / "tokenizer_config.json"
    if converted is None:
        log.warning("%s is no BPE model of plain text: transformers may encode some texts otherwise", tokenizer.path)
        return
    values = {"add_bos_token": True, "add_eos_token": False, **tokenizer.template_variables, **read_json(config)}
    for path, content in (
        (folder / "tokenizer.json", converted),
        (config, values | {"tokenizer_class": TOKENIZER_CLASS}),
    ):
        path.write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def _save_template(folder: Path, tokenizer: ModelTokenizer) -> None:
    template = tokenizer.prompt_template
    if template is None:
        problem = compare(tokenizer, load_tokenizer(folder, tokenizer.max_seq_len))
    else:
        source = template.source if isinstance(template, ChatTemplate) else as_chat_template(tokenizer)
        if source is None:
            log.warning(
                "%s cannot be written as a chat template: prompt the checkpoint with tune run generate, or in your own "
                "code as the template does",
                type(template).__name__,
            )
            return
        before = find_chat_template(folder, read_json(folder / "tokenizer_config.json"))
        if before is None or before[0] != source:
            (folder / FILE).write_text(source, encoding="utf-8")
        saved = load_tokenizer(folder, tokenizer.max_seq_len, CHAT_TEMPLATE)
        if isinstance(template, ChatTemplate):
            saved.prompt_template.set_options(template.options, template.today)
        problem = compare(tokenizer, saved)
    if problem:
        log.warning("the tokenizer in the checkpoint encodes a chat otherwise than the run did: %s", problem)


def compare(live: ModelTokenizer, saved: ModelTokenizer) -> str | None:
    """Encodes a chat both ways; says where the tokens or, with a chat template, the masks part, None if nowhere."""
    for chat in CHATS:
        conversation = [Message(role, text, role != "assistant") for role, text in chat]
        try:
            ours = live.tokenize_messages(conversation)
        except TuneError:  # without a place for a system prompt, say
            continue
        theirs = saved.tokenize_messages(conversation)
        if ours[0] == theirs[0]:
            return None if not isinstance(live.prompt_template, ChatTemplate) or ours == theirs else "other labels"
        at = next(i for i, (a, b) in enumerate(zip([*ours[0], None], [*theirs[0], None], strict=False)) if a != b)
        return f"after {live.decode(ours[0][:at])!r} it gives {theirs[0][at : at + 3]}, not {ours[0][at : at + 3]}"
    return "no chat was accepted"
