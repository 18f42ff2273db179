"""Fitting a tokenizer to a run: to its model's embeddings and positions, and to the day it began."""

import logging
from datetime import date
from pathlib import Path
from typing import Any

from torchtune_lite.data.tokenizers.chat_template import ChatTemplate
from torchtune_lite.data.tokenizers.files import ids, read_json
from torchtune_lite.errors import ConfigError, DataError
from torchtune_lite.utils import counted

log = logging.getLogger("torchtune_lite")


def check_vocabulary(tokenizer: Any, vocab_size: int, checkpoint_dir: Path | str | None = None) -> None:
    """Raise DataError where the tokenizer can give an id that the model has no embedding for.

    Added tokens that the model does not embed, and the chat template does not write, become ordinary text. With
    `checkpoint_dir` a warning tells of a BOS or EOS that is not the one of its config.json.
    """
    name = getattr(tokenizer, "path", "")
    if tokenizer.vocab_size > vocab_size and not _leave_out(tokenizer, vocab_size):
        raise DataError(
            f"tokenizer {name} has {counted(tokenizer.vocab_size, 'token')} but the model embeds "
            f"{vocab_size:,}; use the tokenizer that came with the checkpoint"
        )
    pad_id, eos_id = getattr(tokenizer, "pad_id", 0), getattr(tokenizer, "eos_id", None)
    if not 0 <= pad_id < vocab_size:
        raise DataError(
            f"tokenizer {name} pads with id {pad_id}, which the model does not embed; set another pad_token"
        )
    if pad_id == eos_id:
        log.info("tokenizer %s has no padding token of its own: EOS pads; an EOS in the data keeps its label", name)
    if checkpoint_dir is None:
        return
    configs = [read_json(Path(checkpoint_dir) / file) for file in ("config.json", "generation_config.json")]
    for special in ("bos", "eos"):
        ours = getattr(tokenizer, f"{special}_id", None)
        theirs = sorted({each for config in configs for each in ids(config.get(f"{special}_token_id"))})
        if ours is not None and theirs and ours not in theirs:
            log.warning(
                "tokenizer %s has %s %d, but the checkpoint's config.json has %s; is it another model's?",
                *(name, special.upper(), ours, " or ".join(map(str, theirs))),
            )


def _leave_out(tokenizer: Any, vocab_size: int) -> bool:
    if not hasattr(tokenizer, "leave_out"):
        return False
    template = getattr(tokenizer, "prompt_template", None)
    names = [name for name, i in tokenizer.special_tokens.items() if i >= vocab_size]
    if isinstance(template, ChatTemplate) and any(name in template.source for name in names):
        return False
    names = tokenizer.leave_out(vocab_size)
    if names:
        log.info("the model does not embed %s, which are read as text", ", ".join(names))
    return bool(names)


def new_tokens(tokenizer: Any, vocab_size: int, train_embeddings: str | None) -> list[int]:
    """Return the ids that a model of `vocab_size` rows is to learn: of `tokenizer.add_tokens`, and beyond its rows.

    These last with the others, or where `train_embeddings` is set; else a tokenizer that has some is another model's.
    """
    added = getattr(tokenizer, "added_ids", [])
    if not added and train_embeddings is None:
        return []
    return sorted({*added, *range(vocab_size, tokenizer.vocab_size)})


def limit_length(tokenizer: Any, max_seq_len: int) -> None:
    """Make the tokenizer cut samples to the positions a model has, where it is not told to cut them shorter.

    Raise ConfigError where it is told to leave them longer.
    """
    if tokenizer.max_seq_len is None:
        tokenizer.max_seq_len = max_seq_len
    elif tokenizer.max_seq_len > max_seq_len:
        raise ConfigError(
            f"tokenizer.max_seq_len={tokenizer.max_seq_len} is more than the model's {max_seq_len} positions; "
            f"set it to {max_seq_len} or less"
        )


def fix_date(tokenizer: Any, today: str) -> None:
    """Make a chat template write this date as today's, where it is not told another: the same one in the whole run."""
    template = getattr(tokenizer, "prompt_template", None)
    if isinstance(template, ChatTemplate):
        template.set_options(template.options, template.today or date.fromisoformat(today))
