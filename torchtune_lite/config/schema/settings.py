"""The declarations of a recipe's `Settings` dataclass, and the check of a config against them."""

import dataclasses
import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from torchtune_lite.config.schema import components, contracts, hints, paths
from torchtune_lite.config.schema.places import Places
from torchtune_lite.config.text.document import Document, KeyPath, written
from torchtune_lite.config.text.interpolation import Unresolved
from torchtune_lite.errors import ConfigError, did_you_mean, meant
from torchtune_lite.redaction import redact

MISSING = dataclasses.MISSING
S = TypeVar("S")


def key(
    default: Any = MISSING,
    *,
    minimum: float | None = None,
    above: float | None = None,
    choices: tuple[Any, ...] | None = None,
) -> Any:
    """Declare a key, required without a default, that is at least `minimum`, more than `above`, one of `choices`."""
    return _field(default, {"minimum": minimum, "above": above, "choices": choices})


def component(*given: str, default: Any = MISSING, named: bool = False) -> Any:
    """Declare a key that holds a `_component_` or a list of them; with `default=None` it may be left out.

    `given` are the arguments that the recipe passes. With `named` it may be a mapping of names to components, too. The
    key's annotation is the contract of what is built: a class as `contracts` says, or Any.
    """
    return _field(default, {"component": given, "named": named})


def mapping(cls: type) -> Any:
    """Declare a key that holds the keys of the settings `cls`, all of which have a default; it may be left out."""
    return dataclasses.field(default_factory=cls, kw_only=True, metadata={"mapping": cls})


def _field(default: Any, metadata: dict[str, Any]) -> Any:
    if isinstance(default, list | dict):
        return dataclasses.field(default_factory=lambda: default, kw_only=True, metadata=metadata)
    return dataclasses.field(default=default, kw_only=True, metadata=metadata)


def names(cls: type) -> list[str]:
    """Return the keys that the settings `cls` have."""
    return [field.name for field in dataclasses.fields(cls)]


def losses(cls: type) -> list[str]:
    """Return the keys that hold a loss which is called with hidden states, as those of the shipped recipes are."""
    calls = {name: contracts.calls(contract) for name, contract in _contracts(cls).items()}
    return [name for name, methods in calls.items() if methods.get("__call__") == ["output", "hidden", "labels"]]


def _contracts(cls: type) -> dict[str, Any]:
    """Return the annotations of the keys that hold components, without "or None"; None for Any."""
    types = get_type_hints(cls)
    named = {field.name: types[field.name] for field in dataclasses.fields(cls) if "component" in field.metadata}
    return {name: None if hint is Any else hints.without_none(hint) for name, hint in named.items()}


def build(cls: type[S], document: Document) -> tuple[S | None, list[str]]:
    """Make the settings from a document; return None with one line per problem where there is any.

    Its `own` keys, and those that start with `x_`, are the user's, for interpolations.
    """
    values, known = document.values, names(cls)
    defaults = {field.name: _default(field) for field in dataclasses.fields(cls)}
    places = Places(cls, defaults | values)
    document.elsewhere = places.exactly
    problems = [
        f"{document.place((name,))}: unknown key '{name}'"
        f"{places.exactly(name) or did_you_mean(name, [*known, *document.own]) or places.nearly(name)}"
        for name in map(str, values)
        if name not in known and name not in document.own and not name.startswith("x_")
    ]
    types, contracts_of, made = get_type_hints(cls), _contracts(cls), {}
    for field in dataclasses.fields(cls):
        value = values.get(field.name, defaults[field.name])
        if value is MISSING:
            problems.append(f"{document.name}: the key '{field.name}' is missing")
            continue
        if inner := field.metadata.get("mapping"):
            found = [] if isinstance(value, inner) else _check_mapping(value, inner, field.name, document)
            problems += found
            made[field.name] = value if found or isinstance(value, inner) else inner(**value)
            continue
        if (given := field.metadata.get("component")) is not None:
            value = {"_component_": value} if isinstance(value, str) else value
            if value is None and field.default is not None:
                problems.append(f"{document.place((field.name,))}: '{field.name}' needs a _component_, not null")
            named, contract = field.metadata["named"], contracts_of[field.name]
            problems += components.check(value, (field.name,), document, given, named=named, contract=contract)
        else:
            problems += _check_value(value, types[field.name], field, document)
            try:
                value = paths.expanded(value, types[field.name])
            except ConfigError as error:
                problems.append(f"{document.place((field.name,))}: '{field.name}': {error}")
        made[field.name] = _located(value, (field.name,), document, contracts_of.get(field.name))
    return (None if problems else cls(**made)), problems


def _default(field: dataclasses.Field) -> Any:
    return field.default if field.default_factory is MISSING else field.default_factory()


def _check_mapping(value: Any, cls: type, name: str, document: Document) -> list[str]:
    """Return one line for each key below `name` that the settings `cls` do not have, or not with that value."""
    fields, types = {field.name: field for field in dataclasses.fields(cls)}, get_type_hints(cls)
    if not isinstance(value, dict):
        known = ", ".join(fields)
        return [f"{document.place((name,))}: '{name}': expected a mapping with {known}, got {hints.shown(value)}"]
    problems = []
    for key, each in value.items():
        if key in fields:
            problems += _check_value(each, types[key], fields[key], document, above=(name,))
        else:
            nearest = did_you_mean(str(key), fields) or f"; '{name}' has {', '.join(fields)}"
            problems.append(f"{document.place((name, str(key)))}: unknown key '{name}.{key}'{nearest}")
    return problems


def _check_value(value: Any, hint: Any, field: dataclasses.Field, document: Document, above: KeyPath = ()) -> list[str]:
    rules, problem, path = field.metadata, "", (*above, field.name)
    if not hints.fits(value, hint):
        problem = f"expected {hints.describe(hint)}, got {hints.shown(value)}{hints.advice(value, hint)}"
    elif value == "" and field.default is MISSING:  # a path would be the folder that the command is run in
        problem = "expected a text that is not empty"
    elif rules.get("choices") and value not in (*rules["choices"], None) and not isinstance(value, Unresolved):
        choices = [str(choice) for choice in rules["choices"]]
        problem = f"expected {' or '.join(choices)}, got {hints.shown(value)}{meant(value, choices)}"
    elif isinstance(value, int | float) and rules.get("minimum") is not None and not value >= rules["minimum"]:
        problem = f"expected at least {rules['minimum']}, got {value}"
    elif isinstance(value, int | float) and rules.get("above") is not None and not value > rules["above"]:
        problem = f"expected more than {rules['above']}, got {value}"
    nested = components.check_nested(value, path, document)
    return [f"{document.place(path)}: '{'.'.join(path)}': {problem}", *nested] if problem else nested


def _located(value: Any, path: KeyPath, document: Document, contract: type | None = None) -> Any:
    """Copy a value so that each component in it knows the place and key it was written at, and its contract."""
    if isinstance(value, list):
        return [_located(each, (*path, str(index)), document, contract) for index, each in enumerate(value)]
    if not isinstance(value, dict):
        return value
    of_each = None if "_component_" in value else contract
    copy = {name: _located(each, (*path, str(name)), document, of_each) for name, each in value.items()}
    where = f"{document.place(path)}: '{'.'.join(path)}'"
    return components.Component(copy, where, contract) if "_component_" in copy else copy


def to_dict(cfg: Any) -> dict[str, Any]:
    """Return settings as plain dicts, lists and scalars, to be written down: the config in effect, secrets blanked."""

    def plain(value: Any) -> Any:
        if dataclasses.is_dataclass(value):
            return dataclasses.asdict(value)
        if isinstance(value, Mapping):
            return {name: plain(each) for name, each in value.items()}
        return [plain(each) for each in value] if isinstance(value, list | tuple) else value

    return redact({name: plain(getattr(cfg, name)) for name in names(type(cfg))})


def save(cfg: Any, folder: str | Path) -> Path:
    """Write the config in effect to `config.yaml` in `folder`, so that the run can be repeated with it."""
    path = Path(folder) / "config.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    recipe = Path(inspect.getfile(type(cfg))).stem
    path.write_text(written({"recipe": recipe, **to_dict(cfg)}), encoding="utf-8")
    return path
