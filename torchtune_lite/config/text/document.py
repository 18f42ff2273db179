"""A YAML file as plain values, with the line each key came from."""

import codecs
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from torchtune_lite.errors import ConfigError

KeyPath = tuple[str, ...]

MARKS = (
    (codecs.BOM_UTF32_LE, "UTF-32"),
    (codecs.BOM_UTF32_BE, "UTF-32"),
    (codecs.BOM_UTF16_LE, "UTF-16"),
    (codecs.BOM_UTF16_BE, "UTF-16"),
)
"""First bytes of files in other encodings; the marks of UTF-16 are prefixes of those of UTF-32."""

UNSET = re.compile(r":\s+\?\?\?\s+#\s*(.+)")
"""A key that is still to be given a value, and the comment beside it."""


@dataclass
class Document:
    """A config on its way to the settings, with the places of its keys for messages.

    `origins` has where a key path was written, `notes` the comment beside a key without a value so far (`???`), `own`
    the top-level keys that are the user's, for interpolations; `elsewhere` returns
    `"; did you mean 'model.lora_rank'?"` for a key that is one in another place, or nothing.
    """

    name: str
    values: dict[str, Any]
    origins: dict[KeyPath, str]
    elsewhere: Callable[[str], str] = lambda key: ""
    notes: dict[KeyPath, str] = field(default_factory=dict)
    own: set[str] = field(default_factory=set)

    def place(self, path: KeyPath) -> str:
        """Return `my.yaml:41` or `override 'lr=1'`, of the key itself or of the nearest key above it."""
        while path and path not in self.origins:
            path = path[:-1]
        return self.origins.get(path, self.name)


def read(path: Path, name: str | None = None) -> Document:
    """Read a YAML file; interpolations such as `${output_dir}` stay unresolved. `name` is what messages call the file.

    Raise `ConfigError` with the line for whatever makes the file unreadable: syntax, tabs, duplicate keys, no mapping.
    """
    name = name or str(path)
    name = name if name.endswith((".yaml", ".yml")) else f"{name}.yaml"
    text = read_text(path, name)
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        if not isinstance(root, yaml.MappingNode):
            found = "the file is empty" if root is None else f"found a {root.id}"
            raise ConfigError(f"{name}: {found}; a config is a mapping of key: value")
        lines, origins, notes, problems = text.splitlines(), {}, {}, []
        for key_path, line, problem in _walk(root, (), set()):
            if problem:
                problems.append(f"{name}:{line}: {problem}")
            origins[key_path] = f"{name}:{line}"
            if key_path and (note := UNSET.search(lines[line - 1])):
                notes[key_path] = note[1]
        if problems:
            raise ConfigError(*problems)
        values = OmegaConf.to_container(OmegaConf.create(text), resolve=False)
    except yaml.YAMLError as error:
        raise ConfigError(_explain(name, error)) from error
    except OmegaConfBaseException as error:
        raise ConfigError(f"{name}: {str(error).splitlines()[0]}") from error
    except RecursionError as error:
        raise ConfigError(f"{name}: nested too deeply to be a config") from error
    return Document(name, values, origins, notes=notes)


def read_text(path: Path, name: str) -> str:
    """Read a config as text, without the mark that some editors put before it; ConfigError unless it is UTF-8."""
    try:
        content = path.read_bytes()
        return content.decode("utf-8-sig")
    except OSError as error:
        raise ConfigError(f"cannot read {name}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        other = next((f"its encoding is {kind}" for mark, kind in MARKS if content.startswith(mark)), "")
        problem = other or f"byte {error.start} is not UTF-8"
        raise ConfigError(f"{name}: {problem}; save the file as UTF-8") from error


def _explain(name: str, error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    place = f"{name}:{mark.line + 1}:{mark.column + 1}" if mark else name
    problem = getattr(error, "problem", None) or str(error).splitlines()[0]
    if repr(chr(9)) in problem:
        problem = "found a tab; YAML needs spaces"
    elif tag := re.search(r"constructor for the tag 'tag:yaml.org,2002:(.*)'", problem):
        problem = f"the tag !!{tag[1]} does not make a plain value; remove it"
    elif "expansion exceeds" in problem:
        problem = "its aliases (*name) stand for too many values to be a config"
    return f"{place}: {problem}"


def _walk(node: yaml.Node, path: KeyPath, seen: set[int]) -> Iterator[tuple[KeyPath, int, str]]:
    """Yield each key path with its line and what is wrong there, if anything. An anchor's content is visited once."""
    if id(node) in seen:
        return
    seen.add(id(node))
    if isinstance(node, yaml.MappingNode):
        first: dict[str, int] = {}
        for key, value in node.value:
            line, text = key.start_mark.line + 1, str(key.value)
            duplicate = f"duplicate key '{text}' (first in line {first[text]})" if text in first else ""
            first.setdefault(text, line)
            yield (*path, text), line, duplicate or _surprise(value)
            yield from _walk(value, (*path, text), seen)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            yield (*path, str(index)), value.start_mark.line + 1, _surprise(value)
            yield from _walk(value, (*path, str(index)), seen)


def written(values: dict[str, Any], sort_keys: bool = False) -> str:
    """Return plain values as YAML."""
    return OmegaConf.to_yaml(values, sort_keys=sort_keys)


def keys(node: Any, above: str = "") -> Iterator[str]:
    """Yield the dotted keys below a node of a config; items of a list by their number."""
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, value in items:
        yield f"{above}{key}"
        yield from keys(value, f"{above}{key}.")


def _surprise(node: yaml.Node) -> str:
    """Name a number that YAML 1.1 reads otherwise than it looks: `1:30` as 90, `010` as 8."""
    number = node.tag in ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")
    if number and (":" in node.value or (node.value.isdecimal() and len(node.value) > 1 and node.value[0] == "0")):
        return f"YAML reads {node.value} as another number; quote it: '{node.value}'"
    return ""
