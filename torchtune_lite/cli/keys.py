"""The keys that a recipe's `Settings` declares, read from its source: importing it would import torch.

So are those of the classes that `Settings` derives from, where they are this package's or lie beside the recipe.
"""

import ast
import io
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

PACKAGE = Path(__file__).resolve().parents[1]


class Key(NamedTuple):
    """One key of a recipe. `kind`, `default` (None: required) and `rule` are in a YAML writer's words."""

    name: str
    kind: str
    default: str | None
    rule: str
    meaning: str
    starts_group: bool


def parsed(recipe: Path) -> ast.Module:
    """Return the syntax tree of a recipe; SyntaxError names its file."""
    return ast.parse(recipe.read_bytes(), str(recipe))


def read(recipe: Path) -> list[Key]:
    """Return the keys in order; `meaning` is the comment beside each. There are none without a class `Settings`."""
    found: dict[str, Key] = {}
    for file, nodes in _declared(recipe):
        comments, last = _comments(file.read_bytes()), 0
        for node in nodes:
            key = _key(node, comments, last)
            if key.name in found:  # narrowed: it stays where it was
                key = key._replace(starts_group=found[key.name].starts_group)
            else:
                last = node.end_lineno
            found[key.name] = key
    return list(found.values())


def names(recipe: Path) -> list[str]:
    """Return the names of the keys alone, which takes half the time."""
    return list(dict.fromkeys(ast.unparse(node.target) for _, nodes in _declared(recipe) for node in nodes))


def shown(keys: list[Key]) -> str:
    """Write keys as a table, a line each, with the blank lines that stand between them in the source."""
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


def _declared(recipe: Path) -> Iterator[tuple[Path, list[ast.AnnAssign]]]:
    """Yield the declarations of `Settings` and of each class it derives from, with their file, the base first."""
    for file, node in _lineage(recipe, "Settings", ()):
        yield file, [each for each in node.body if isinstance(each, ast.AnnAssign)]


def _lineage(file: Path, name: str, seen: tuple[tuple[Path, str], ...]) -> Iterator[tuple[Path, ast.ClassDef]]:
    """Yield the class `name` of a file after those that it derives from; what led here, `seen`, not again."""
    if (file, name) in seen:
        return
    seen, body = (*seen, (file, name)), parsed(file).body
    imported = {
        alias.asname or alias.name: f"{node.module}.{alias.name}" if isinstance(node, ast.ImportFrom) else alias.name
        for node in body
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
    }
    found = [node for node in body if isinstance(node, ast.ClassDef) and node.name == name][-1:]
    for written in [ast.unparse(base) for node in found for base in reversed(node.bases)] if found else [name]:
        head, dot, rest = written.partition(".")
        module, _, last = f"{imported.get(head, head)}{dot}{rest}".rpartition(".")
        if source := _source(module, seen[0][0].parent) if module else file:
            yield from _lineage(source, last, seen)
    yield from ((file, node) for node in found)


def _source(module: str, beside: Path) -> Path | None:
    """Find the file of a module of this package, or of one that lies beside the recipe."""
    paths = [root / module.replace(".", "/") for root in (PACKAGE.parent, beside)]
    files = [file for path in paths for file in (path.with_suffix(".py"), path / "__init__.py")]
    return next((file for file in files if file.is_file()), None)


def _key(node: ast.AnnAssign, comments: dict[int, str], last: int) -> Key:
    lines = range(node.lineno, node.end_lineno + 1)
    meaning = " ".join(comments[line] for line in lines if line in comments)
    kind, default, rule = _declaration(node)
    return Key(ast.unparse(node.target), kind, default, rule, meaning, starts_group=node.lineno > last + 1)


def _declaration(node: ast.AnnAssign) -> tuple[str, str | None, str]:
    kind, value = _words(node.annotation), node.value
    if not isinstance(value, ast.Call):
        return kind, None if value is None else _yaml(value), ""
    if ast.unparse(value.func).endswith("mapping"):
        return "mapping", "{}", ""
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
    """Write an annotation as `hints.describe` does."""
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
    """Write a default as YAML has it; one that only the running recipe knows, as Python."""
    try:
        value: Any = ast.literal_eval(node)
    except ValueError:
        return ast.unparse(node)
    if isinstance(value, dict) and set(value) == {"_component_"}:
        value = value["_component_"]
    return "null" if value is None else str(value)
