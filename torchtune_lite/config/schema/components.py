"""`_component_`: from a dotted path to an object, its arguments checked before and named when it fails."""

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, get_args, get_origin

from torchtune_lite.config.registry.lookup import DottedPath, find
from torchtune_lite.config.schema import contracts, hints, paths
from torchtune_lite.config.text.document import Document, KeyPath
from torchtune_lite.errors import ConfigError, TuneError, did_you_mean
from torchtune_lite.redaction import redact
from torchtune_lite.tracebacks import users_place

EMPTY = inspect.Parameter.empty


class Component(dict):
    """A `_component_` mapping of a config; `where` is its place and key for messages, `contract` that of its key."""

    def __init__(self, values: Mapping[str, Any], where: str, contract: type | None = None) -> None:
        super().__init__(values)
        self.where, self.contract = where, contract


def instantiate(node: Any, *args: Any, defaults: Mapping[str, Any] | None = None, **kwargs: Any) -> Any:
    """Build the `_component_` that `node` names, of a list or a mapping of names each; None stays None.

    `args` and `kwargs` come from the recipe; `defaults` fill what the config leaves out and the component has. Nested
    components are built first, but all are looked up before any is built. Whatever the component rejects becomes a
    `ConfigError` that names its key.
    """
    _look_up(node)
    return _build(node, args, kwargs, defaults or {})


def _look_up(node: Any) -> None:
    """Raise ConfigError for a component, at any depth, that a config may not name or that is not there."""
    if isinstance(node, dict) and "_component_" in node:
        try:
            find(node["_component_"])
        except ConfigError as error:
            raise ConfigError(f"{getattr(node, 'where', 'component')}: {error}") from error
    for each in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        _look_up(each)


def _build(node: Any, args: Sequence[Any], kwargs: Mapping[str, Any], defaults: Mapping[str, Any]) -> Any:
    if node is None:
        return None
    if isinstance(node, list):
        return [_build(each, args, kwargs, defaults) for each in node]
    if is_named(node):
        return {name: _build(each, args, kwargs, defaults) for name, each in node.items()}
    if not isinstance(node, dict) or "_component_" not in node:
        raise ConfigError(f"expected a mapping with a _component_, got {hints.shown(node)}")
    path = node["_component_"]
    where = f"{getattr(node, 'where', 'component')} ({path})"
    target = find(path)
    known = parameters(target)
    arguments = {name: value for name, value in defaults.items() if name in known}
    arguments |= {name: _built(value) for name, value in node.items() if name != "_component_"} | kwargs
    for name in {*arguments} & {*known}:
        arguments[name] = paths.expanded(arguments[name], known[name].annotation)
    try:
        built = target(*args, **arguments)
    except TuneError:
        raise
    except (TypeError, ValueError, OSError) as error:
        if isinstance(error, TypeError) and users_place(error):  # a bug in it, not a wrong argument
            raise
        raise ConfigError(f"{where}: {' '.join(str(error).split())}") from error
    contract = getattr(node, "contract", None)
    if contract is not None and (problem := contracts.built_misfit(built, contract)):
        raise ConfigError(f"{where} {problem}")
    return built


def _built(value: Any) -> Any:
    if isinstance(value, list):
        return [_built(each) for each in value]
    if not isinstance(value, dict):
        return value
    if "_component_" in value:
        return _build(value, (), {}, {})
    return {name: _built(each) for name, each in value.items()}


def is_named(node: Any) -> bool:
    """Tell a mapping of names to components from a component."""
    if not isinstance(node, dict) or "_component_" in node:
        return False
    return bool(node) and all(isinstance(each, dict) for each in node.values())


def check(
    value: Any, path: KeyPath, document: Document, given: Sequence[str], *, named: bool = False, contract: Any = None
) -> list[str]:
    """Return one line per problem of a component, or of each in a list, which is not built: path, arguments, types.

    `given` are the arguments that the recipe passes; with `named` there may be a mapping of names to components;
    `contract` says how the recipe uses what is built.
    """
    if value is None or isinstance(value, hints.Unresolved):
        return []
    if isinstance(value, list) or (named and is_named(value)):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        return [
            line for name, each in items for line in check(each, (*path, str(name)), document, given, contract=contract)
        ]
    key, place = ".".join(path), document.place(path)
    if not isinstance(value, dict) or "_component_" not in value:
        return [f"{place}: '{key}' needs a _component_, got {hints.shown(value)}"]
    try:
        target = find(value["_component_"])
        known = parameters(target)
    except ConfigError as error:
        return [f"{document.place((*path, '_component_'))}: '{key}': {error}"]
    arguments = {name: each for name, each in value.items() if name != "_component_"}
    found = [(place, problem) for problem in _missing(known, arguments, given, contract)]
    if not found and contract is not None:
        found = [(document.place((*path, "_component_")), contracts.misfit(target, contract))]
    for name, each in arguments.items():
        problem = _misfit(name, each, known, given, document.elsewhere)
        found.append((document.place((*path, name)), problem))
    problems = [f"{place}: '{key}' ({value['_component_']}) {problem}" for place, problem in found if problem]
    for name, each in arguments.items():
        hint = known[name].annotation if name in known else None
        problems += check_nested(each, (*path, name), document, _callable(hint))
    return problems


def check_nested(value: Any, path: KeyPath, document: Document, contract: Any = None) -> list[str]:
    """Check the components inside a value that need not be one itself."""
    if isinstance(value, dict) and "_component_" in value:
        return check(value, path, document, (), contract=contract)
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [line for name, each in items for line in check_nested(each, (*path, str(name)), document)]


def parameters(target: Any) -> Mapping[str, inspect.Parameter]:
    """Return the parameters of a callable; a builtin that does not tell them accepts anything."""
    try:
        return inspect.signature(target, eval_str=True).parameters
    except NameError:  # an annotation that only a type checker can read
        return inspect.signature(target).parameters
    except ValueError:
        return {"kwargs": inspect.Parameter("kwargs", inspect.Parameter.VAR_KEYWORD)}


def _open(known: Mapping[str, inspect.Parameter]) -> bool:
    return any(each.kind is each.VAR_KEYWORD for each in known.values())


def _callable(hint: Any) -> Any:
    """Return the `Callable[[…], …]` that an annotation has, or None."""
    return next((each for each in (hint, *get_args(hint)) if get_origin(each) is Callable), None)


def _missing(
    known: Mapping[str, inspect.Parameter], named: Mapping[str, Any], given: Sequence[str], contract: Any
) -> Iterator[str]:
    for name in given:
        if name not in known and not _open(known):
            yield f"has no argument '{name}', which the recipe passes; wrap it in a function of your own"
    needed = [
        name
        for name, each in known.items()
        if each.default is EMPTY and each.kind not in (each.VAR_KEYWORD, each.VAR_POSITIONAL)
    ]
    missing = [name for name in needed if name not in named and name not in given]
    if missing and missing == contracts.calls(contract).get("__call__"):
        yield (
            f"is called when it is built, and the recipe passes {', '.join(missing)} to what it returns; name a class "
            f"with forward({', '.join(missing)}), or a function that returns this one"
        )
    elif missing:
        yield f"needs {', '.join(missing)}"


def _misfit(
    name: str,
    value: Any,
    known: Mapping[str, inspect.Parameter],
    given: Sequence[str],
    elsewhere: Callable[[str], str],
) -> str:
    if name in given:
        return f"gets '{name}' from the recipe; remove it here"
    if name not in known:
        own = [each for each in known if each not in given]
        instead = elsewhere(name) or did_you_mean(name, own) or f" (it has: {', '.join(own)})"
        return "" if _open(known) else f"has no argument '{name}'{instead}"
    hint, default = known[name].annotation, known[name].default
    options = get_args(hint)
    words = [word for each in options if get_origin(each) is Literal for word in get_args(each)]
    if isinstance(value, str) and DottedPath in (hint, *options) and value not in (default, *words):
        return _unusable_object(name, value, _callable(hint))
    if hint is EMPTY or isinstance(hint, str) or value == default or hints.fits(value, hint):
        try:
            paths.expanded(value, hint)
        except ConfigError as error:
            return f"cannot take '{name}': {error}"
        return ""
    given_value = f"{hints.shown(redact({name: value})[name])}{hints.advice(value, hint)}"
    return f"expects {hints.describe(hint)} for '{name}', got {given_value}"


def _unusable_object(name: str, path: str, contract: Any) -> str:
    try:
        found = find(path)
    except ConfigError as error:
        return f"cannot take '{name}': {error}"
    problem = contracts.function_misfit(found, contract) if contract is not None else ""
    return f"cannot take '{name}': {path} {problem}" if problem else ""
