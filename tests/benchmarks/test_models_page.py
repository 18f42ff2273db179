"""docs/models.md equals its script's output, and one layer stands for all layers of its model."""

import importlib.util
import re
from pathlib import Path

import pytest

from tests.models.test_sizes import PUBLISHED
from torchtune_lite.models import FAMILIES, SIZES
from torchtune_lite.modules.loss import LinearCrossEntropyLoss
from torchtune_lite.training.memory.step_memory import count_step

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "models_page.py"
SPEC = importlib.util.spec_from_file_location("models_page", SCRIPT)
page = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(page)


def test_the_page_is_up_to_date(monkeypatch):
    """Its tables for one size of each architecture, and the parameters of every size."""
    text, sizes = page.PAGE.read_text(encoding="utf-8"), page.configs()
    one_of_each = {page.architecture_of(size): size for size in sizes}.values()
    monkeypatch.setattr(page, "configs", lambda: {size: sizes[size] for size in one_of_each})
    *rendered, _ = page.render().splitlines()
    missing = [line for line in rendered if line not in text.splitlines()]
    assert not missing, "the tables have changed: run python benchmarks/models_page.py, and read its diff"
    rows = {size: f"| `{size}` | `{page.architecture_of(size)}` | {number:,} |" for size, number in PUBLISHED.items()}
    assert set(rows) == set(SIZES) and all(row in text for row in rows.values())
    assert re.findall(r"^\| `(\w+)` .*\* \|$", text, re.M) == re.findall(r" of `(\w+)`", text.splitlines()[-1])


@pytest.mark.parametrize("method", page.METHODS)
@pytest.mark.parametrize("size", ["smollm2_135m", "gemma3_270m"])
def test_one_layer_tells_the_memory_of_the_whole_model(size, method):
    config = SIZES[size]
    whole = page.build(config, method)
    counted = page.count(config, page.build(page.replace(config, num_layers=1), method))
    assert counted == count_step(whole, LinearCrossEntropyLoss(), page.batch())


def test_the_memory_grows_with_what_a_method_holds():
    config = SIZES["llama3_2_1b"]
    full, lora, qlora = (page.count(config, page.build(page.replace(config, num_layers=1), m)) for m in page.METHODS)
    num = page.num_parameters(config)
    assert (full.weights, full.gradients) == (2 * num, 2 * num)
    assert lora.gradients == lora.weights - 2 * num  # adapters, in fp32
    in_layers = 2 * (num - config.vocab_size * config.embed_dim)
    assert qlora.weights == pytest.approx(lora.weights - in_layers * (1 - 4.127 / 16), rel=0.001)


def test_every_architecture_is_described_and_every_size_has_its_own():
    assert set(page.ARCHITECTURES) == set(FAMILIES)
    for size, config in page.configs().items():
        shared = FAMILIES[page.architecture_of(size)].fields
        assert {name: getattr(config, name) for name in shared} == shared, size
