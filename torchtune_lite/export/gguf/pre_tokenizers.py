"""How byte-level tokenizers split a text into words: what llama.cpp calls it.

A wrong name splits numbers and spaces otherwise, and nothing complains; so a tokenizer is either known here or refused.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torchtune_lite.data.tokenizers.cuts import GPT2, LLAMA3_PATTERN, O200K, QWEN, flat_steps
from torchtune_lite.errors import ConfigError

_ENDING = "(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
TEKKEN = O200K.replace(_ENDING, "").replace(r"\p{N}{1,3}", r"\p{N}")
SEED = QWEN.replace(r"\p{N}|", r"\p{N}{1}|").replace(r" ?[^\s\p{L}\p{N}]+[\r\n]*|", r" ?[^\s\p{L}\p{N}\r\n]+|")
DIGITS = "digits"
"""Each digit by itself, before the pattern splits what is left."""


@dataclass(frozen=True)
class PreTokenizer:
    """The patterns by which a text is split, in turn; `GPT2` is the one that the step ByteLevel has built in.

    `ignore_merges`: a word that is a token is one, whatever its merges say. `hashes` are those of `fingerprint` for the
    tokenizers that llama.cpp's converter knows by this name.
    """

    patterns: tuple[str, ...]
    ignore_merges: bool = False
    hashes: tuple[str, ...] = ()


NAMES = {
    "llama-bpe": PreTokenizer(
        (LLAMA3_PATTERN,), True, ("0ef9807a4087ebef797fc749390439009c3b9eda9ad1a097abbe738f486c01e5",)
    ),
    "dbrx": PreTokenizer(
        (LLAMA3_PATTERN,), False, ("a8594e3edff7c29c003940395316294b2c623e09894deebbc65f33f1515df79e",)
    ),
    "smaug-bpe": PreTokenizer(
        (LLAMA3_PATTERN,), False, ("c136ed14d01c2745d4f60a9596ae66800e2b61fa45643e72436041855ad4089d",)
    ),
    "qwen2": PreTokenizer(
        (QWEN,),
        False,
        (
            "e636dc30a262dcc0d8c323492e32ae2b70728f4df7dfe9737d9f920a282b8aea",
            "d4540891389ea895b53b399da6ac824becc30f2fba0e9ddbb98f92e55ca0e97c",
        ),
    ),
    "deepseek-r1-qwen": PreTokenizer(
        (QWEN,), False, ("b3f499bb4255f8ca19fccd664443283318f2fd2414d5e0b040fbdd0cc195d6c5",)
    ),
    "gpt-4o": PreTokenizer((O200K,), False, ("ccc2ef013c104be7bae2965776d611e1d7a8a2a9c547dd93a682c9a9fc80352e",)),
    "tekken": PreTokenizer((TEKKEN,), True, ("63b97e4253352e6f357cc59ea5b583e3a680eaeaf2632188c2b952de2588485e",)),
    "seed-coder": PreTokenizer((SEED,), False, ("d5f1dd6f980fec569fb218a81a7658ac45fc56b38c5a0adeb1c232fbe04ef5ec",)),
    "smollm": PreTokenizer(
        (DIGITS, GPT2), False, ("855059429035d75a914d1eda9f10a876752e281a054a7a3d421ef0533e5b6249",)
    ),
    "refact": PreTokenizer(
        (DIGITS, GPT2), False, ("6221ad2852e85ce96f791f476e0b390cf9b474c9e3d1362f53a24a06dc8220ff",)
    ),
    "gpt-2": PreTokenizer((GPT2,), False, ("3ce83efda5659b07b1ad37ca97ca5797ea4285d9b9ab0dc679e4a720c9da7454",)),
}
"""By the name in `tokenizer.ggml.pre`; of several with the same patterns the first is written."""

PROBE = (
    "\n \n\n \n\n\n \t \t\t \t\n  \n   \n    \n     \n🚀 (normal) "
    "😶\u200d🌫️ (multiple emojis concatenated) ✅ 🦙🦙 3 33 333 3333 33333 "
    "333333 3333333 33333333 3.3 3..3 3...3 កាន់តែពិសេសអាច😁 "
    "?我想在apple工作1314151天～ ------======= "
    "нещо на Български ''''''```````\"\"\"\"......!!!!!!?????? "
    "I've been 'told he's there, 'RE you "
    "sure? 'M not sure I'll make it, 'D you like some tea? We'Ve a'lL"
)
"""The text by whose tokens llama.cpp's converter knows a tokenizer (conversion/base.py, MIT license)."""


def fingerprint(encode: Callable[[str], Sequence[int]]) -> str:
    """Hash the tokens of `PROBE`, as llama.cpp's converter does; `encode` puts special tokens around them."""
    return hashlib.sha256(str(list(encode(PROBE))).encode()).hexdigest()


def name_of(tokenizer: Mapping[str, Any], encode: Callable[[str], Sequence[int]]) -> str:
    """Return the name of how a tokenizer.json splits texts, by its steps and by the tokens of a text.

    ConfigError where neither is known, or where they contradict each other.
    """
    patterns, ignore = _patterns(tokenizer["pre_tokenizer"]), bool(tokenizer["model"].get("ignore_merges"))
    by_steps = [name for name, each in NAMES.items() if each.patterns == patterns]
    by_steps.sort(key=lambda name: NAMES[name].ignore_merges != ignore)  # stable
    found = fingerprint(encode)
    by_tokens = [name for name, each in NAMES.items() if found in each.hashes]
    if by_steps and by_tokens and not set(by_tokens) & set(by_steps):
        raise ConfigError(
            f"the tokenizer splits texts as {by_steps[0]!r} by its steps and as {by_tokens[0]!r} by its tokens; "
            "is tokenizer.json that of another model?"
        )
    if names := by_tokens or by_steps:
        return names[0]
    raise ConfigError(
        "the tokenizer splits texts into words in a way that has no name here, and a guess would change its tokens: "
        f"llama.cpp's names that are known are {', '.join(NAMES)}"
    )


def _patterns(pre_tokenizer: Mapping[str, Any] | None) -> tuple[str, ...]:
    found = []
    for step in flat_steps(pre_tokenizer):
        if step["type"] == "Split" and not step.get("invert"):
            found.append(step["pattern"].get("Regex", ""))
        elif step["type"] == "Digits" and step.get("individual_digits"):
            found.append(DIGITS)
        elif step["type"] == "ByteLevel":
            found += [GPT2] if step.get("use_regex", True) else []
        else:
            found.append(step["type"])
    return tuple(found)


def steps_of(name: str) -> dict[str, Any]:
    """Write the pre-tokenizer of that name as a tokenizer.json has it; ConfigError for one that is not known."""
    if name not in NAMES:
        raise ConfigError(
            f"its tokenizer splits texts as {name!r}, which is not known here; known are {', '.join(NAMES)}"
        )
    patterns = NAMES[name].patterns
    steps: list[dict[str, Any]] = []
    for pattern in patterns:
        if pattern == DIGITS:
            steps.append({"type": "Digits", "individual_digits": True})
        elif pattern != GPT2:
            steps.append({"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False})
    steps.append({"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": GPT2 in patterns})
    return {"type": "Sequence", "pretokenizers": steps}
