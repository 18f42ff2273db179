"""Numbers with their nouns."""

import ast
import re
from pathlib import Path

import torchtune_lite
from torchtune_lite.utils import counted

PACKAGE = Path(torchtune_lite.__file__).parent
NOUNS = (
    "answers|bytes|characters|columns|devices|epochs|files|GPUs|keys|layers|messages|modules|numbers|parameters|rows"
    "|samples|sets|steps|tensors|threads|tokens|validations|values|weights"
)
BY_HAND = re.compile(rf"^ (more |optimizer |trained |label |CUDA |data )?({NOUNS})\b(?!/)")
ALWAYS_SEVERAL = {
    "mixing.py": "sets",
    "errors.py": "characters",
    "fingerprints.py": "samples",  # a line, which checkpoints of earlier versions have
    "meta.py": "files",
    "checks.py": "steps",
    "tokenizer.py": "bytes",
    "transformer.py": "tokens",
}


def counts_by_hand(path: Path) -> list[str]:
    """The plural nouns that follow a number in the f-strings of a file, whatever the number is."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.JoinedStr):
            for before, after in zip(node.values[:-1], node.values[1:], strict=True):
                if isinstance(before, ast.FormattedValue) and isinstance(after, ast.Constant):
                    found += [match[2] for match in [BY_HAND.match(after.value)] if match]
    return found


def test_one_is_one_and_all_others_are_several():
    assert [counted(number, "row") for number in (0, 1, 2, 1234)] == ["0 rows", "1 row", "2 rows", "1,234 rows"]
    assert [counted(number, "weight is", "weights are") for number in (1, 2)] == ["1 weight is", "2 weights are"]


def test_no_message_counts_by_hand():
    recipes = PACKAGE.parent / "recipes"
    for path in [*PACKAGE.rglob("*.py"), *recipes.glob("*.py")]:
        for noun in counts_by_hand(path):
            assert ALWAYS_SEVERAL.get(path.name) == noun, f"{path}: '… {noun}', where there may be one: use counted()"


def test_a_count_by_hand_is_seen(tmp_path: Path):
    (tmp_path / "x.py").write_text('f"{n} weights are missing"; f"{n} of {m} random states, {k:,} optimizer steps"')
    assert counts_by_hand(tmp_path / "x.py") == ["weights", "steps"]
