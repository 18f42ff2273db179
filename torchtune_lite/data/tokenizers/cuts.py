"""Places where a long text can be cut so that its start is still encoded as in the whole.

It is cut before a space that follows another character, which is safe where no token holds the two together and no part
of the text before the space is split otherwise for what comes after it. That is known for the formats named here; a
text that another one encodes is not cut.
"""

import json
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

T = TypeVar("T")

CHARACTERS = 8
"""The characters tried per token: more than it has in most texts, so that one try is enough."""

ANY = r"\S"
"""A character that stands before a cut: any but a space."""

ASCII = r"[!-~]"
"""The same where a normalizer may turn others into spaces."""

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
"""The pattern by which Llama 3 splits text into words before the merges (Meta's tokenizer.py)."""

QWEN = LLAMA3_PATTERN.replace(r"\p{N}{1,3}", r"\p{N}")
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_ENDING = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
O200K = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{_ENDING}[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{_ENDING}"
    r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
WORDS = (GPT2, LLAMA3_PATTERN, QWEN, O200K)
"""Patterns that split texts into words: no alternative takes a space after another character, or looks beyond it."""


def first_tokens(
    encode: Callable[[str], T],
    text: str,
    most: float,
    cuts: Callable[[], re.Pattern | None],
    count: Callable[[T], int] = len,
) -> T:
    """Encode a text, or of a long one as much as gives more than `most` tokens: the first `most` are the whole's.

    That costs what so many tokens cost, however long the text is. `cuts` gives the pattern that finds where to cut,
    None for nowhere; it is asked for a long text only. `count` tells the tokens of what `encode` returns.
    """
    size = CHARACTERS * (most + 1)
    pattern = cuts() if len(text) > size else None
    while pattern is not None and (cut := pattern.search(text, int(size))):
        encoded = encode(text[: cut.start()])
        if count(encoded) > most:
            return encoded
        size = 2 * cut.start()
    return encode(text)


def before_spaces(pieces: Iterable[str], before: str = ANY) -> re.Pattern:
    """Make the pattern that finds where to cut: at a space after a character `before` that no piece joins to a space.

    In a piece a space may be written ▁, or Ġ as the byte-level formats do.
    """
    joined = {character for piece in pieces for character in re.findall("([^ ▁Ġ])(?=[ ▁Ġ])", piece)}
    unless = f"(?![{re.escape(''.join(sorted(joined)))}])" if joined else ""
    return re.compile(f" (?<={unless}{before} )")  # a plain character first: found fast


def cuts_of(tokenizer: Any) -> re.Pattern | None:
    """Find where to cut what a tokenizer of the library `tokenizers` encodes; None where that is not known.

    A text is split into words first, by one of `WORDS`; or else its pieces are merged from characters, and the
    vocabulary tells which of them a space can join.
    """
    model, added = tokenizer.model, [token.content for token in tokenizer.get_added_tokens_decoder().values()]
    normalizers, steps = _steps(tokenizer.normalizer), _steps(tokenizer.pre_tokenizer)
    if getattr(model, "dropout", None) or not all(map(_is_local, normalizers)) or not all(map(_keeps_its_start, steps)):
        return None
    if any(_splits_words(step) for step in steps):
        return before_spaces(added)
    whole_words = ("ignore_merges", "end_of_word_suffix", "continuing_subword_prefix")
    if type(model).__name__ not in ("BPE", "Unigram") or any(getattr(model, name, None) for name in whole_words):
        return None
    return before_spaces([*tokenizer.get_vocab(), *added])


def flat_steps(component: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """List what a normalizer or pre-tokenizer of a tokenizer.json does in turn."""
    if component is None:
        return []
    parts = component.get("normalizers") or component.get("pretokenizers") if component["type"] == "Sequence" else None
    return [dict(component)] if parts is None else [each for part in parts for each in flat_steps(part)]


def _steps(component: Any) -> list[dict[str, Any]]:
    return flat_steps(None if component is None else json.loads(component.__getstate__()))


def _is_local(normalizer: Mapping[str, Any]) -> bool:
    """Tell that a normalizer does the same to what stands before a space, whatever comes after it."""
    space = normalizer.get("pattern") == {"String": " "}
    return normalizer["type"] in ("NFC", "NFD", "NFKC", "NFKD", "Lowercase", "Prepend") or (
        normalizer["type"] == "Replace" and space
    )


def _keeps_its_start(step: Mapping[str, Any]) -> bool:
    """Tell that a text is split in the same way up to a space, whatever comes after it."""
    if step["type"] == "Split":
        return step["pattern"] == {"String": " "} or _splits_words(step)
    return step["type"] in ("ByteLevel", "Metaspace", "Digits", "Punctuation")


def _splits_words(step: Mapping[str, Any]) -> bool:
    if step["type"] == "ByteLevel":
        return step.get("use_regex", True)
    return step["type"] == "Split" and not step["invert"] and step["pattern"].get("Regex") in WORDS
