"""Save the tokenizer with a checkpoint, and check that the saved one encodes a chat as in training."""

import filecmp
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
from torchtune_lite.data.tokenizers.chat_template import CHAT_TEMPLATE, FILE, find_chat_template
from torchtune_lite.data.tokenizers.files import leads_out, read_json
from torchtune_lite.data.tokenizers.hf_tokenizer import AS_WRITTEN, TOKENIZER_JSON
from torchtune_lite.data.tokenizers.loader import FILES
from torchtune_lite.data.tokenizers.sentencepiece_export import TOKENIZER_CLASS, as_tokenizer_json
from torchtune_lite.data.tokenizers.template_export import as_chat_template
from torchtune_lite.errors import ConfigError, TuneError

TOKENIZER_FILES = (
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "chat_template*",
)
"""The files from which transformers reads a tokenizer."""
COPIED = (*TOKENIZER_FILES, "generation_config.json", "LICENSE*", "USE_POLICY*")
"""Small files of the base that a checkpoint made from it needs as well."""
CODE = (".bin", ".dll", ".pickle", ".pkl", ".pt", ".pth", ".py", ".pyc", ".sh", ".so")  # or pickles, which run it
LARGEST = 100_000_000  # bytes; the largest tokenizer.json of 2025 has 35 million

_CHAT = (
    ("system", "Be brief."),
    *(("user", "6 × 7?"), ("assistant", "It's 42!")),
    *(("user", " And\n\n市? "), ("assistant", "A city.")),
)
CHATS = (
    _CHAT,
    _CHAT[1:],
    (("user", "  two  spaces"), ("assistant", " it  has")),
    (("user", "\n\tA tab "), ("assistant", "and\n\nlines\n")),
)
"""Chats to compare two tokenizers by, as far as the template accepts them."""
TEXTS = ("", " ", " And", "  two  spaces ", "\n\n and lines", "\ta tab", "a\n b", "é市𝄞", " é市𝄞")
"""Texts to compare two tokenizers by, if a run trains on texts as they are."""

log = logging.getLogger("torchtune_lite")


class SmallFiles:
    """The small files of a checkpoint: those in `COPIED` of its base, and a tokenizer's in the place of the base's."""

    def __init__(self, base: Path, tokenizer: Any = None) -> None:
        self._base, self._tokenizer = base, tokenizer
        self._made: dict[str, bytes] | None = None

    def write(self, folder: Path) -> None:
        """Write them to an empty folder; they are made and compared at the first time."""
        if self._made is None:
            copy_files(self._base, folder, COPIED)
            if self._tokenizer is not None:
                save_tokenizer(folder, self._tokenizer, self._base)
            self._made = {file.name: file.read_bytes() for file in folder.iterdir()}
            return
        for name, content in self._made.items():
            (folder / name).write_bytes(content)


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
        log.warning("not copied into the checkpoint: %s; copy those that belong there yourself", ", ".join(left_out))


def _why_not_copied(file: Path) -> str | None:
    if target := leads_out(file):
        return f"(a link to {target}, outside of its folder)"
    if not file.is_file():
        return "(not a regular file)"
    if file.suffix.lower() in CODE:
        return "(code, or a file that can run code)"
    if (size := file.stat().st_size) > LARGEST:
        return f"(too large for a tokenizer: {size:,} bytes)"
    return None


def save_tokenizer(folder: Path, tokenizer: Any, checkpoint_dir: Path) -> None:
    """Put the files of the tokenizer that was trained with into `folder`, which has those of `checkpoint_dir`.

    The base's files stay where they are the run's, or their tokenizer.json gives the same tokens. A text template is
    written as chat_template.jinja, in the place of the base's. Then chats, and texts where there is no template, are
    encoded by `tokenizer` and by what was saved. A tokenizer.json of the base that differs from the SentencePiece model
    that was trained with is written anew; a warning tells of other differences, or of a template that cannot be
    written. A tokenizer of the user's own is left alone.
    """
    if not isinstance(tokenizer, ModelTokenizer):
        return
    path = Path(tokenizer.path).expanduser()
    if not path.is_file():
        log.warning("%s is gone, so the checkpoint has the base's tokenizer files", path)
        return
    elsewhere = path.parent.resolve() != checkpoint_dir.resolve()
    if elsewhere and not _is_a_copy(path, checkpoint_dir) and not _encodes_alike(folder, tokenizer):
        for file in [file for pattern in TOKENIZER_FILES for file in folder.glob(pattern)]:
            file.unlink()
        copy_files(path.parent, folder, TOKENIZER_FILES)
    if not any((folder / name).exists() for name in FILES):
        shutil.copyfile(path, folder / FILES[not isinstance(tokenizer, HuggingFaceModelTokenizer)])
    if getattr(tokenizer, "added_ids", None):
        _write_added_tokens(folder, tokenizer)
    if isinstance(tokenizer, Llama3Tokenizer):  # it has one form, that of the base's chat template
        return
    convertible = isinstance(tokenizer, SentencePieceTokenizer)
    if convertible and not (folder / "tokenizer.json").exists():
        _convert(folder, tokenizer)
        convertible = False
    if not _write_template(folder, tokenizer):
        return
    try:
        problem = _problem(folder, tokenizer)
        if problem and convertible and _convert(folder, tokenizer):
            problem = _problem(folder, tokenizer)
    except TuneError as error:
        level = logging.INFO if isinstance(error, ConfigError) else logging.WARNING  # an extra that is not installed
        log.log(level, "the tokenizer in the checkpoint was not compared with the one of the run: %s", error)
        return
    if problem:
        log.warning("the tokenizer in the checkpoint encodes differently from the run's: %s", problem)


def _write_added_tokens(folder: Path, tokenizer: HuggingFaceModelTokenizer) -> None:
    """Add the tokens that the run has added to tokenizer.json, and to tokenizer_config.json if it lists such."""
    path, config_path = folder / TOKENIZER_JSON, folder / "tokenizer_config.json"
    content, config = read_json(path), read_json(config_path)
    known = {token["id"] for token in content.get("added_tokens", [])}
    names = {i: tokenizer.tokenizer.id_to_token(i) for i in tokenizer.added_ids if i not in known}
    new = [{"id": i, "content": name, **AS_WRITTEN} for i, name in sorted(names.items())]
    content["added_tokens"] = [*content.get("added_tokens", []), *new]
    path.write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    if "added_tokens_decoder" in config:
        config["added_tokens_decoder"] |= {str(i): {"content": name, **AS_WRITTEN} for i, name in names.items()}
        config_path.write_text(json.dumps(config, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def _is_a_copy(path: Path, checkpoint_dir: Path) -> bool:
    """Return whether a tokenizer's file is, byte for byte, one of the base's, and alone there."""
    beside = {file for pattern in TOKENIZER_FILES for file in path.parent.glob(pattern)} - {path}
    copies = [checkpoint_dir / name for name in {path.name, *FILES} if (checkpoint_dir / name).is_file()]
    return not beside and any(filecmp.cmp(path, file, shallow=False) for file in copies)


def _encodes_alike(folder: Path, tokenizer: ModelTokenizer) -> bool:
    """Return whether the base's tokenizer.json gives the tokens of the run's own file: Llama 3's ranks."""
    if not (folder / "tokenizer.json").exists():
        return False
    try:
        saved = load_tokenizer(folder)
    except TuneError:
        return False
    texts = [text.strip() for _, text in _CHAT]
    return all(saved.encode(text, False, False) == tokenizer.encode(text, False, False) for text in texts)


def _convert(folder: Path, tokenizer: SentencePieceTokenizer) -> bool:
    """Write a SentencePiece model as tokenizer.json, too, which transformers would convert with other tokens.

    A warning, and False, where it cannot.
    """
    converted, config = as_tokenizer_json(tokenizer), folder / "tokenizer_config.json"
    if converted is None:
        log.warning("%s is not a plain BPE model: transformers may encode some texts differently", tokenizer.path)
        return False
    values = {"add_bos_token": True, "add_eos_token": False, **tokenizer.template_variables, **read_json(config)}
    for path, content in (
        (folder / "tokenizer.json", converted),
        (config, values | {"tokenizer_class": TOKENIZER_CLASS}),
    ):
        path.write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    return True


def _write_template(folder: Path, tokenizer: ModelTokenizer) -> bool:
    """Write the template of the run, if it has one; a warning, and False, where it cannot be written."""
    template = tokenizer.prompt_template
    if template is None:
        return True
    source = template.source if isinstance(template, ChatTemplate) else as_chat_template(tokenizer)
    if source is None:
        log.warning(
            "%s cannot be written as a chat template: prompt the checkpoint with tune run generate, or in your own "
            "code as the template does",
            type(template).__name__,
        )
        return False
    before = find_chat_template(folder, read_json(folder / "tokenizer_config.json"))
    if before is None or before[0] != source:
        (folder / FILE).write_text(source, encoding="utf-8")
    return True


def _problem(folder: Path, tokenizer: ModelTokenizer) -> str | None:
    """Return the place where the saved tokenizer, read as by transformers, encodes differently from `tokenizer`."""
    template = tokenizer.prompt_template
    saved = load_tokenizer(folder, tokenizer.max_seq_len, None if template is None else CHAT_TEMPLATE)
    if isinstance(template, ChatTemplate):
        saved.prompt_template.set_options(template.options, template.today)
    return compare(tokenizer, saved)


def compare(live: ModelTokenizer, saved: ModelTokenizer) -> str | None:
    """Encode chats both ways, and texts where there is no template; None if nowhere there is a difference.

    Else it says where the tokens part, or, with a chat template, that the masks do.
    """
    accepted = False
    for chat in CHATS:
        conversation = [Message(role, text, role != "assistant") for role, text in chat]
        try:
            parts = [part["messages"] for part in live.expanded({"messages": conversation})]
            ours = [live.tokenize_messages(part) for part in parts]
        except TuneError:  # without a place for a system prompt, say
            continue
        accepted, theirs = True, [saved.tokenize_messages(part) for part in parts]
        for (tokens, mask), (saved_tokens, saved_mask) in zip(ours, theirs, strict=True):
            if tokens != saved_tokens:
                return _difference(live, tokens, saved_tokens)
            if isinstance(live.prompt_template, ChatTemplate) and mask != saved_mask:
                return "other labels"
    for text in TEXTS if live.prompt_template is None else ():
        if (ours := live.encode(text)) != (theirs := saved.encode(text)):
            return _difference(live, ours, theirs)
    return None if accepted else "no chat was accepted"


def _difference(live: ModelTokenizer, ours: list[int], theirs: list[int]) -> str:
    at = next(i for i, (a, b) in enumerate(zip([*ours, None], [*theirs, None], strict=False)) if a != b)
    return f"after {live.decode(ours[:at])!r} it gives {theirs[at : at + 3]}, not {ours[at : at + 3]}"
