"""The right place of a misplaced key: below a component, or at the top."""

import dataclasses
from collections.abc import Iterator, Mapping
from functools import cached_property
from operator import itemgetter
from typing import Any

from torchtune_lite.config.registry.lookup import find
from torchtune_lite.config.schema.components import is_named, parameters
from torchtune_lite.config.text.document import keys
from torchtune_lite.errors import ConfigError, nearest


class Places:
    """The dotted paths at which keys of the settings `cls` and arguments of the components in `values` may stand."""

    def __init__(self, cls: type, values: Mapping[str, Any]) -> None:
        self.cls, self.values = cls, values

    def exactly(self, key: str) -> str:
        """Return `"; did you mean 'model.lora_rank'?"` where `key` is one elsewhere, or nothing."""
        shown = [repr(path) if "." in path else f"'{path}' at the top level" for path in self._by_key.get(key, ())]
        return f"; did you mean {' or '.join(shown)}?" if shown else ""

    def nearly(self, key: str) -> str:
        """Return the same for the nearest key."""
        known = nearest(key, self._by_key)
        return self.exactly(known) if known else ""

    @cached_property
    def _by_key(self) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        for path in dict.fromkeys(self._paths()):
            found.setdefault(path.rpartition(".")[2], []).append(path)
        return found

    def _paths(self) -> Iterator[str]:
        """Yield the keys of the settings, those below them in the config, and the arguments of its components."""
        fields = {field.name: field for field in dataclasses.fields(self.cls)}
        given = {name: field.metadata["component"] for name, field in fields.items() if "component" in field.metadata}
        yield from fields
        yield from keys({name: self.values[name] for name in fields if name in self.values and name not in given})
        takes = [
            (argument not in node, f"{path}.{argument}")
            for name in given
            for path, node in _nodes(name, self.values.get(name))
            for argument in _arguments(node)
            if argument not in given[name]
        ]
        yield from (path for _, path in sorted(takes, key=itemgetter(0)))  # first those that the config sets


def _nodes(path: str, value: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the components of a key: one, or those of a list or of a mapping of names."""
    node = {"_component_": value} if isinstance(value, str) else value
    if isinstance(node, dict) and isinstance(node.get("_component_"), str):
        yield path, node
    elif isinstance(node, list) or is_named(node):
        for name, each in node.items() if isinstance(node, dict) else enumerate(node):
            yield from _nodes(f"{path}.{name}", each)


def _arguments(node: Mapping[str, Any]) -> list[str]:
    try:
        known = parameters(find(node["_component_"]))
    except ConfigError:
        return []
    return [name for name, each in known.items() if each.kind not in (each.VAR_KEYWORD, each.VAR_POSITIONAL)]
