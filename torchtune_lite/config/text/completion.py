"""A config with what it includes as one text, comments kept: what `tune cat` shows and `tune cp` writes."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml
from omegaconf import OmegaConf

from torchtune_lite.config.text.document import read_text
from torchtune_lite.config.text.includes import KEY, chain, merges, read


@dataclass
class Entry:
    """One key of a mapping as text: the lines `above` it, its own without their indentation, and the `comment` beside.

    `children` are the keys of a value that is a mapping.
    """

    key: str
    above: list[str]
    lines: list[str]
    comment: str = ""
    component: str | None = None
    children: "list[Entry] | None" = None
    is_short: bool = False  # on one line
    is_merged: bool = False  # of both texts: `lines` has the key alone


def complete(path: Path, name: str) -> str:
    """Return the text of a config in which `include` is resolved; a text without one as it is.

    A layout that this cannot merge is rewritten from its values, without comments.
    """
    texts = [read_text(file.path, file.name) for file in chain(path, name)]
    if len(texts) == 1:
        return texts[0]
    *others, text = texts
    for each in reversed(others):
        text = laid_over(each, text)
    values = read(path, name).values
    try:
        same = OmegaConf.to_container(OmegaConf.create(text), resolve=False) == values
    except yaml.YAMLError:
        same = False
    return text if same else OmegaConf.to_yaml(OmegaConf.create(values))


def laid_over(text: str, included: str) -> str:
    """Return an included text with the keys of another one laid over it, in the order and with the comments of both."""
    header, entries = _parsed(text)
    their_header, theirs = _parsed(included)
    merged = _merged([each for each in entries if each.key != KEY], [each for each in theirs if each.key != KEY])
    return "\n".join([*(header or their_header), *_written(merged, "")]) + "\n"


def _parsed(text: str) -> tuple[list[str], list[Entry]]:
    """Return the comments above the first key, and the keys."""
    lines, root = text.splitlines(), yaml.compose(text, Loader=yaml.SafeLoader)
    first = root.value[0][0].start_mark.line if root.value else len(lines)
    entries = list(_entries(root, lines, first, len(lines)))
    return [line for line in lines[:first] if line.startswith("#")], entries


def _entries(node: yaml.MappingNode, lines: list[str], start: int, stop: int) -> Iterator[Entry]:
    """Yield the keys of a mapping that stands in the lines from `start` to `stop`."""
    if node.flow_style:
        for key, value in node.value:
            source = f"{_source(key, lines)}: {_source(value, lines)}"
            yield Entry(key.value, [], [source], "", _component(value), _children(value, lines, 0, 0), is_short=True)
        return
    begins = [key.start_mark.line for key, _ in node.value]
    for (key, value), begin, limit in zip(node.value, begins, [*begins[1:], stop], strict=True):
        end = limit
        while end > begin + 1 and _is_comment(lines[end - 1]):
            end -= 1
        above = [line.strip() for line in lines[start:begin]]
        own = [line[key.start_mark.column :] for line in lines[begin:end]]
        short = end == begin + 1
        comment = re.match(r"\s*(#.*)", lines[begin][value.end_mark.column :]) if short else None
        entry = Entry(key.value, above, own, comment[1] if comment else "", _component(value), is_short=short)
        entry.children = _children(value, lines, begin + 1, end)
        yield entry
        start = end


def _children(node: yaml.Node, lines: list[str], start: int, stop: int) -> list[Entry] | None:
    return list(_entries(node, lines, start, stop)) if isinstance(node, yaml.MappingNode) else None


def _component(node: yaml.Node) -> str | None:
    if not isinstance(node, yaml.MappingNode):
        return None
    return next((value.value for key, value in node.value if key.value == "_component_"), None)


def _is_comment(line: str) -> bool:
    return not line.strip() or line.lstrip().startswith("#")


def _source(node: yaml.Node, lines: list[str]) -> str:
    """Return the text of a node within braces, on one line."""
    (first, left), (last, right) = ((mark.line, mark.column) for mark in (node.start_mark, node.end_mark))
    if first == last:
        return lines[first][left:right]
    return " ".join([lines[first][left:], *map(str.strip, lines[first + 1 : last]), lines[last][:right].strip()])


def _merged(entries: list[Entry], included: list[Entry]) -> list[Entry]:
    by_key = {each.key: each for each in entries}
    known = {each.key for each in included}
    merged = [_laid_over(by_key[each.key], each) if each.key in by_key else each for each in included]
    return merged + [each for each in entries if each.key not in known]


def _laid_over(entry: Entry, included: Entry) -> Entry:
    comments = [line for line in entry.above if line]
    blank = [line for line in included.above if not line]
    entry.above = blank + comments if comments else included.above
    if merges(_outline(entry), _outline(included)):
        line = included.lines[0] if not included.is_short else f"{included.key}:"
        return Entry(
            entry.key, entry.above, [line], children=_merged(entry.children, included.children), is_merged=True
        )
    if entry.is_short and included.is_short and included.comment and not entry.comment:
        entry.lines = [f"{entry.lines[0]}  {included.comment}"]
    return entry


def _outline(entry: Entry) -> dict[str, str] | None:
    """Return what decides whether a value is merged: whether it is a mapping, and which component."""
    if entry.children is None:
        return None
    return {} if entry.component is None else {"_component_": entry.component}


def _written(entries: list[Entry], indent: str) -> Iterator[str]:
    for each in entries:
        yield from (f"{indent}{line}".rstrip() for line in each.above)
        yield from (f"{indent}{line}".rstrip() for line in each.lines)
        if each.is_merged:
            yield from _written(each.children, f"{indent}  ")
