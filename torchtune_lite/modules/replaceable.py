"""Plain functions of the model beside which `torchtune_lite.kernels` may put a faster one.

A function marked `@replaceable` computes what its body says. A fast path computes the same in another way, and returns
NotImplemented for arguments that it is not made for.
"""

import functools
import hashlib
import inspect
import io
import textwrap
import tokenize
from collections.abc import Callable
from typing import Any, TypeVar

F = TypeVar("F", bound=Callable[..., Any])


def replaceable(plain: F) -> F:
    """Let the first of the function's `paths` that takes the arguments compute `plain`; without one, run its body."""
    paths: list[Callable[..., Any]] = []

    @functools.wraps(plain)
    def call(*args: Any, **kwargs: Any) -> Any:
        for path in paths:
            if (result := path(*args, **kwargs)) is not NotImplemented:
                return result
        return plain(*args, **kwargs)

    call.paths, call.plain = paths, plain
    return call


@functools.cache
def digest(function: Callable[..., Any]) -> str | None:
    """Return a hash of the code of `function`, without comments, docstring and layout; None where it has no source."""
    try:
        source = inspect.getsource(function)
    except (OSError, TypeError):
        return None
    layout = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER)
    tokens = [
        token.string
        for token in tokenize.generate_tokens(io.StringIO(textwrap.dedent(source)).readline)
        if token.type not in layout and not token.string.startswith('"""')
    ]
    return hashlib.sha256(" ".join(tokens).encode()).hexdigest()[:12]
