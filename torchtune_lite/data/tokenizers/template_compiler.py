"""Chat templates compiled with the filters, functions and tags that transformers gives them."""

import json
from collections.abc import Callable
from typing import Any

from torchtune_lite.errors import ConfigError, DataError

MARKS = "_marks"  # a variable of a template, no state of it: a save in the background renders, too


def compile_template(source: str, name: str, strftime_now: Callable[[str], str]) -> Any:
    """Compile a template; raise DataError where it is not Jinja, ConfigError where jinja2 is missing.

    `strftime_now` writes the date; rendering needs a variable `MARKS`, the start and the end of an answer.
    """
    try:
        import jinja2
        import jinja2.ext
        from jinja2.sandbox import ImmutableSandboxedEnvironment
    except ModuleNotFoundError:
        raise ConfigError("chat templates need jinja2; pip install 'torchtune_lite[hf]'") from None

    class Generation(jinja2.ext.Extension):
        """`{% generation %}…{% endgeneration %}`, put between the two marks that the rendering is given."""

        tags = {"generation"}

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            call = self.call_method("_between_marks", [jinja2.nodes.ContextReference()])
            return jinja2.nodes.CallBlock(call, [], [], body).set_lineno(line)

        def _between_marks(self, context: Any, caller: Any) -> str:
            start, end = context[MARKS]
            return f"{start}{caller()}{end}"

    def raise_exception(message: str) -> None:
        raise jinja2.TemplateError(message)

    def tojson(value: Any, ensure_ascii: bool = False, **options: Any) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, **options)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = strftime_now
    try:
        return environment.from_string(source)
    except jinja2.TemplateError as error:
        raise DataError(f"{name} is not a Jinja template: line {getattr(error, 'lineno', '?')}: {error}") from None
