"""`key=value` and `~key` words of the command line, applied to a config."""

import re
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from torchtune_lite.config.text.document import Document, KeyPath, keys
from torchtune_lite.errors import ConfigError, did_you_mean
from torchtune_lite.redaction import BLANK, is_secret

DEEPEST = 100  # lists and mappings in each other; thousands crash the YAML library
DOTTED = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+")


def apply(document: Document, words: Sequence[str]) -> list[str]:
    """Change the document as the words say, in their order; return one line for each that it cannot apply.

    Whether the recipe or component has such a key is found out later, together with the keys of the file.
    """
    problems = []
    for word in words:
        key, equals, text = word.partition("=")
        origin = f"override '{key}={BLANK}'" if equals and is_secret(key.rpartition(".")[2]) else f"override '{word}'"
        try:
            if word.startswith("~"):
                _remove(document, _key_path(word[1:]))
            elif not equals or word.startswith("-"):
                raise ConfigError("expected key=value or ~key, without dashes")
            else:
                _set(document, _key_path(key), value(text), origin)
        except ConfigError as error:
            problems.append(f"{origin}: {error}")
    return problems


def value(text: str) -> Any:
    """Read the text after the first `=`: numbers, booleans, null, [lists], {mappings} as YAML, all else as it stands.

    Raise `ConfigError` for a list or mapping that does not parse, and for `None`, which YAML takes for a text.
    """
    if text == "None":
        raise ConfigError("YAML writes null, not None")
    quoted, nested = text[:1] in ("'", '"'), text[:1] in ("[", "{")
    if nested and max(accumulate((each in "[{") - (each in "]}") for each in text)) > DEEPEST:
        raise ConfigError("lists and mappings are nested too deeply to be read")
    try:
        parsed = OmegaConf.to_container(OmegaConf.from_dotlist([f"_={text}"]), resolve=False)["_"]
    except (yaml.YAMLError, OmegaConfBaseException) as error:
        if nested or quoted or "${" in text:
            raise ConfigError(f"cannot read {text} as YAML; quote a text twice: key='\"{text}\"'") from error
        return text
    looks_otherwise = re.fullmatch(r"0\d+|[\d.]+(:[\d.]+)+", text)  # 010 is 8 in YAML, 1:30 is 90
    prose = isinstance(parsed, str | list | dict) and not quoted and not nested
    comment = parsed is None and text not in ("null", "Null", "NULL", "~")
    return text if looks_otherwise or prose or comment else parsed


def _key_path(key: str) -> KeyPath:
    path = tuple(re.sub(r"\[(\d+)\]", r".\1", key).split("."))
    if not all(path):
        raise ConfigError("expected a key such as model.lora_rank")
    return path


def _set(document: Document, path: KeyPath, new: Any, origin: str) -> None:
    node: Any = document.values
    for depth, part in enumerate(path[:-1], start=1):
        if isinstance(node, dict) and node.get(part) is None:
            node[part] = {}
            document.origins[path[:depth]] = origin
        elif isinstance(node, dict) and isinstance(node[part], str) and DOTTED.fullmatch(node[part]):
            node[part] = {"_component_": node[part]}  # without arguments so far
        node = node[_position(node, path[:depth])]
    last = _position(node, path)
    old = node.get(last) if isinstance(node, dict) else node[last]
    if isinstance(old, dict) and "_component_" in old and isinstance(new, str):  # another builder, the same arguments
        node, last, path = old, "_component_", (*path, "_component_")
    node[last] = new
    for below in [known for known in document.origins if known[: len(path)] == path]:
        del document.origins[below]
    document.origins[path] = origin


def _remove(document: Document, path: KeyPath) -> None:
    node: Any = document.values
    for depth in range(1, len(path) + 1):
        key = _position(node, path[:depth])
        if isinstance(node, dict) and key not in node:
            deeper = [each for each in keys(document.values) if each.endswith(f".{key}")]
            instead = f"; did you mean {' or '.join(map(repr, deeper))}?" if deeper else did_you_mean(key, node)
            raise ConfigError(f"there is no key '{'.'.join(path[:depth])}' to remove{instead}")
        parent, node = node, node[key]
    del parent[key]


def _position(node: Any, path: KeyPath) -> str | int:
    """Return the last part of `path` as `node` counts: a key of a mapping, an index into a list."""
    above, part = ".".join(path[:-1]), path[-1]
    if isinstance(node, dict):
        return part
    if not isinstance(node, list):
        raise ConfigError(f"'{above}' is {node!r}, so it has no '{part}'")
    if not part.isdecimal() or int(part) >= len(node):
        raise ConfigError(f"'{above}' is a list of {len(node)}; choose an index below that, not '{part}'")
    return int(part)
