"""Words of messages."""

import re

REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")
"""The name of a repository of the Hugging Face hub."""


def counted(number: int, one: str, many: str | None = None) -> str:
    """Write a number with its noun: `1 row`, `1,234 rows`; `many` (None: `one` and an s) is said of any but one."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"
