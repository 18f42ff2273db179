"""The keys that a recipe's `Settings` declares, read from its source: importing it would import torch."""

import ast
import io
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple


class Key(NamedTuple):
    """One key of a recipe. `kind`, `default` (None: required) and `rule` are in a YAML writer's words."""

    name: str
    kind: str
    default: str | None
    rule: str
    meaning: str
    starts_group: bool


def parsed(recipe: Path) -> ast.Module:
    """Returns the syntax tree of a recipe; SyntaxError names its file."""
    return ast.parse(recipe.read_bytes(), str(recipe))


def read(recipe: Path) -> list[Key]:
    """Returns the keys in order; `meaning` is the comment beside each. There are none without a class `Settings`."""
    declared = list(_declared(recipe))
    comments = _comments(recipe.read_bytes()) if declared else {}
    ends = [node.end_lineno for node in declared]
    return [_key(node, comments, last) for node, last in zip(declared, [0, *ends], strict=False)]


def names(recipe: Path) -> list[str]:
    """Returns the names of the keys alone, which takes half the time."""
    return [ast.unparse(node.target) for node in _declared(recipe)]


def shown(keys: list[Key]) -> str:
    """Writes keys as a table, a line each, with the blank lines that stand between them in the source."""
    width = max((len(key.name) for key in keys), default=0)
    lines = []
    for key in keys:
        default = ", required" if key.default is None else f" = {key.default}"
        rest = "".join([key.kind, default, key.rule and f", {key.rule}", key.meaning and f"  # {key.meaning}"])
        lines += [""] * (key.starts_group and bool(lines)) + [f"  {key.name:<{width}}  {rest}"]
    return "\n".join(lines)


def _comments(source: bytes) -> dict[int, str]:
    tokens = tokenize.tokenize(io.BytesIO(source).readline)
    return {token.start[0]: token.string.lstrip("# ") for token in tokens if token.type == tokenize.COMMENT}


def _declared(recipe: Path) -> Iterator[ast.AnnAssign]:
    for node in parsed(recipe).body:
        if isinstance(node, ast.ClassDef) and node.name == "Settings":
            yield from (each for each in node.body if isinstance(each, ast.AnnAssign))


def _key(node: ast.AnnAssign, comments: dict[int, str], last: int) -> Key:
    lines = range(node.lineno, node.end_lineno + 1)
    meaning = " ".join(comments[line] for line in lines if line in comments)
    kind, default, rule = _declaration(node)
    return Key(ast.unparse(node.target), kind, default, rule, meaning, starts_group=node.lineno > last + 1)


def _declaration(node: ast.AnnAssign) -> tuple[str, str | None, str]:
    kind, value = _words(node.annotation), node.value
    if not isinstance(value, ast.Call):
        return kind, None if value is None else _yaml(value), ""
    named = {each.arg: each.value for each in value.keywords}
    if ast.unparse(value.func).endswith("component"):
        passed = [_yaml(each) for each in value.args]
        rule = f"the recipe passes {', '.join(passed)}" if passed else ""
        return "component", _yaml(named["default"]) if "default" in named else None, rule
    default = [*value.args, *([named["default"]] if "default" in named else [])]
    bounds = {"minimum": "at least", "above": "more than"}
    rules = [f"{words} {_yaml(named[name])}" for name, words in bounds.items() if name in named]
    if isinstance(named.get("choices"), ast.Tuple):
        kind = kind.replace("str", " or ".join(_yaml(each) for each in named["choices"].elts))
    return kind, _yaml(default[0]) if default else None, ", ".join(rules)


def _words(annotation: ast.expr) -> str:
    """Writes an annotation as `hints.describe` does."""
    if isinstance(annotation, ast.BinOp):
        words = dict.fromkeys(f"{_words(annotation.left)} or {_words(annotation.right)}".split(" or "))
        return " or ".join(word for word in words if word != "str" or "path" not in words)
    if isinstance(annotation, ast.Subscript):
        kind = _words(annotation.value)
        return f"{kind} of {_words(annotation.slice)}" if kind == "list" else "mapping" if kind == "dict" else kind
    if isinstance(annotation, ast.Constant):
        return "null" if annotation.value is None else str(annotation.value)
    word = ast.unparse(annotation).rpartition(".")[2]
    return {"Path": "path", "Any": "any", "dict": "mapping"}.get(word, word)


def _yaml(node: ast.expr) -> str:
    """Writes a default as YAML has it; one that only the running recipe knows, as Python."""
    try:
        value: Any = ast.literal_eval(node)
    except ValueError:
        return ast.unparse(node)
    if isinstance(value, dict) and set(value) == {"_component_"}:
        value = value["_component_"]
    return "null" if value is None else str(value)
