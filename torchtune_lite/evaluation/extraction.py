"""What of a text is the answer: the whole, a number, JSON, or what a regular expression finds."""

import json
import re
from collections.abc import Callable
from decimal import Decimal
from typing import Any

from torchtune_lite.errors import ConfigError

EXTRACTIONS = ("whole", "number", "json", "regex")
FINAL = "####"
"""What stands before the final answer in GSM8K (arXiv 2110.14168)."""

NUMBER = re.compile(r"[-+]?(?:\d[\d,]*(?:\.\d+)?|\.\d+)")
DECODER = json.JSONDecoder()

Extract = Callable[[str], Any]
"""Return the answer in a text: text, or what JSON holds; None where there is none."""


def extraction(extract: str, regex: str | None = None) -> Extract:
    """Return the extraction of that name; `regex` is for the one that has its name.

    `whole` takes the text without the spaces around it. `number` takes the number after the last `####`, or the last
    number of all, without the commas that separate thousands: 1,000.50 is 1000.5. `json` takes the first object or
    list. `regex` takes the first group of the last match, or the match itself if it has no group. Raise ConfigError
    for an expression that is missing, of no use or broken.
    """
    if (extract == "regex") != (regex is not None):
        raise ConfigError("extract: regex goes with extract_regex, the expression; give both or neither")
    if regex is None:
        return {"whole": str.strip, "number": last_number, "json": first_json}[extract]
    try:
        pattern = re.compile(regex)
    except re.error as error:
        raise ConfigError(f"extract_regex: {regex!r} is not a regular expression: {error}") from None
    return lambda text: _last_match(pattern, text)


def last_number(text: str) -> str | None:
    """Return the number after the last `####`, or where none is, the last one of the text; None where there is none."""
    _, mark, after = text.rpartition(FINAL)
    numbers = NUMBER.findall(after if mark else text)
    if not numbers:
        return None
    number = Decimal((numbers[0] if mark else numbers[-1]).replace(",", ""))
    written = f"{number or Decimal():f}"  # no -0
    return written.rstrip("0").rstrip(".") if "." in written else written


def first_json(text: str) -> Any:
    """Return the first object or list that JSON can read in a text; None where there is none."""
    for start in re.finditer(r"[{\[]", text):
        try:
            return DECODER.raw_decode(text, start.start())[0]
        except (ValueError, RecursionError):
            continue
    return None


def _last_match(pattern: re.Pattern, text: str) -> str | None:
    matches = list(pattern.finditer(text))
    if not matches or (answer := matches[-1][1 if pattern.groups else 0]) is None:
        return None
    return answer.strip()
