"""The rules of the tree: allowed imports, lengths of files, a test for each file, equal loops."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "torchtune_lite"
LIBRARY = sorted(path for path in PACKAGE.rglob("*.py") if "__pycache__" not in path.parts)
RECIPES = sorted((ROOT / "recipes").glob("*.py"))

BASE = {"errors", "redaction", "tracebacks", "worker", "utils", "config", "catalog"}
BUILDING = {"modules", "kernels", "optim", "peft", "data"}
RUNNING = BASE | BUILDING | {"datasets", "models"}
MAY_IMPORT = {
    "__init__": set(),
    "__main__": {"cli"},
    "errors": {"redaction", "tracebacks", "worker"},
    "tracebacks": {"catalog"},
    "redaction": set(),
    "worker": set(),
    "launcher": BASE,
    "utils": BASE,
    "config": BASE,
    "catalog": BASE,
    "modules": BASE,
    "optim": BASE,
    "kernels": BASE | {"modules"},
    "peft": BASE | {"modules", "kernels", "optim"},
    "data": BASE,
    "datasets": BASE | {"data"},
    "models": BASE | BUILDING,
    "checkpoint": RUNNING,
    "rlhf": RUNNING,
    "generation": RUNNING,
    "evaluation": RUNNING | {"generation"},
    "training": RUNNING | {"checkpoint", "generation", "evaluation"},
    "hub": RUNNING | {"checkpoint", "training"},
    "serving": RUNNING | {"generation"},
    "export": RUNNING | {"checkpoint", "hub"},
    "cli": BASE,
    "assets": RUNNING,  # the scripts that make what it holds
}
NO_TORCH = {"__init__", "__main__", "errors", "redaction", "tracebacks", "worker", "config", "catalog", "cli"}
OWNED = {
    "torchao": {"peft", "export"},
    "sentencepiece": {"data", "assets"},
    "omegaconf": {"config", "cli"},
    "yaml": {"config"},
}
OPTIONAL = {
    *("wandb", "matplotlib", "tensorboard", "tokenizers", "tiktoken", "jinja2", "huggingface_hub"),
    *("pyarrow", "transformers", "starlette", "uvicorn", "openai", "lm_eval", "datasets", "gguf"),
}

BUDGETS = {PACKAGE / "modules/transformer.py": 400}
BUDGETS |= dict.fromkeys(RECIPES, 200)
FINETUNING = ("lora_finetune_single_device", "full_finetune_single_device")
ALIKE = ("train", "loss_sum")
SHARED = 0.4
MOST_FILES = 15  # side by side in a folder; the verbs of tune, a file each, are as many as there are


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def part_of(path: Path) -> str:
    """The package of the library, or the file at its top, that a file belongs to."""
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imports(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Each dotted name that is imported, with its line; `from a import b` as `a.b`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from ((f"{node.module}.{alias.name}", node.lineno) for alias in node.names)


@pytest.mark.parametrize("path", LIBRARY, ids=name)
def test_a_file_imports_only_what_its_rank_may(path):
    part, tree = part_of(path), ast.parse(path.read_text())
    assert part in MAY_IMPORT, f"{part} has no rank; add it to MAY_IMPORT"
    for imported, line in imports(tree):
        top, _, rest = imported.partition(".")
        where = f"{name(path)}:{line}: imports {imported}"
        assert top not in OWNED or part in OWNED[top], f"{where}, which is for {OWNED.get(top)}"
        assert top != "torch" or part not in NO_TORCH, f"{where}: a command that runs no model must not"
        if top == "torchtune_lite" and rest.partition(".")[0] != part and rest != "__version__":
            assert rest.partition(".")[0] in MAY_IMPORT[part], where
            assert part != "checkpoint" or not rest.startswith("models.llama"), f"{where}: families through FAMILIES"


@pytest.mark.parametrize("path", LIBRARY + RECIPES, ids=name)
def test_an_optional_library_is_imported_where_it_is_used(path):
    for node in ast.parse(path.read_text()).body:
        for imported, line in imports(node) if isinstance(node, ast.Import | ast.ImportFrom) else ():
            assert imported.partition(".")[0] not in OPTIONAL, f"{name(path)}:{line}: import {imported} in the function"


@pytest.mark.parametrize("path", RECIPES, ids=name)
def test_a_recipe_imports_public_names_only(path):
    for imported, line in imports(ast.parse(path.read_text())):
        parts = imported.split(".")
        where = f"{name(path)}:{line}: imports {imported}"
        assert parts[0] != "recipes" and not (parts[0] == "torchtune_lite" and "recipes" in parts), where
        assert parts[0] != "torchtune_lite" or (len(parts) <= 3 and not parts[-1].startswith("_")), where


@pytest.mark.parametrize("path", LIBRARY + RECIPES, ids=name)
def test_a_file_keeps_its_line_budget(path):
    assert len(path.read_text().splitlines()) <= BUDGETS.get(path, 300)


@pytest.mark.parametrize("path", LIBRARY + RECIPES, ids=name)
def test_a_file_with_code_has_its_test(path):
    defines = any(isinstance(node, ast.FunctionDef | ast.ClassDef) for node in ast.parse(path.read_text()).body)
    family = path.parent == PACKAGE / "models" and "SIZES = {" in path.read_text()  # tests/models has them in a table
    if path.stem in ("__init__", "__main__") or not defines or family:
        return
    folder = path.parent.relative_to(PACKAGE if path in LIBRARY else ROOT)
    test = ROOT / "tests" / folder / f"test_{path.stem}.py"
    assert test.is_file(), f"{name(path)} needs {name(test)}"


def test_a_folder_keeps_its_number_of_files():
    crowded = {folder: len(list(folder.glob("*.py"))) for folder in {path.parent for path in LIBRARY}}
    del crowded[PACKAGE / "cli/verbs"]
    assert {name(folder): number for folder, number in crowded.items() if number > MOST_FILES} == {}


@pytest.mark.parametrize("path", [path for path in LIBRARY if path.name == "__init__.py"], ids=name)
def test_no_public_name_hides_a_module(path):
    modules, package = {each.stem for each in path.parent.iterdir()}, ".".join(path.parent.relative_to(ROOT).parts)
    for imported, line in imports(ast.parse(path.read_text())):
        where, _, last = imported.rpartition(".")
        assert where == package or last not in modules, f"{name(path)}:{line}: {imported} hides the module"


@pytest.mark.parametrize("function", ALIKE)
def test_the_finetuning_recipes_share_their_loop(function):
    """The loop is copied on purpose; a change in one recipe belongs in the other, or off this list with a reason."""
    found = []
    for recipe in FINETUNING:
        tree = ast.parse((ROOT / "recipes" / f"{recipe}.py").read_text())
        [method] = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name == function]
        found.append([ast.unparse(each) for each in (method.body[1:] if ast.get_docstring(method) else method.body)])
    assert found[0] == found[1]


def test_recipes_share_their_loop_and_little_else():
    """Code that two recipes must share belongs in `training/run/run.py`."""
    texts = [(ROOT / "recipes" / f"{recipe}.py").read_text() for recipe in FINETUNING]
    lines = [[line.strip() for line in text.splitlines() if line.strip()] for text in texts]
    for ours, theirs in (lines, lines[::-1]):
        assert sum(line in theirs for line in ours) / len(ours) <= SHARED


def test_an_extra_installs_what_is_used():
    extras = (ROOT / "pyproject.toml").read_text().partition("[project.optional-dependencies]")[2].partition("\n[")[0]
    used = {imported.partition(".")[0] for path in LIBRARY for imported, _ in imports(ast.parse(path.read_text()))}
    installed = {
        extra: set(re.findall(r'"([\w-]+)>=', packages))
        for extra, packages in re.findall(r"^(\w+) = \[(.*?)\]", extras, re.M | re.S)
    }
    assert len(installed) > 3
    assert {extra: packages - used for extra, packages in installed.items() if extra != "dev" and packages - used} == {}


def test_every_package_is_in_the_wheel():
    folders = {path.parent.relative_to(ROOT) for path in LIBRARY}
    packages = {".".join(folder.parts) for folder in folders} | {"torchtune_lite.recipes", "torchtune_lite.configs"}
    listed = (ROOT / "pyproject.toml").read_text().partition("packages = [")[2].partition("]")[0]
    assert packages == {line.strip(' ",') for line in listed.splitlines() if line.strip()}
