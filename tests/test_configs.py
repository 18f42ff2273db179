"""Every config that is shipped: readable, accepted by its recipe, and of the model it names."""

import functools
import inspect
import math
import re
from dataclasses import fields

import pytest
import torch

from torchtune_lite import catalog, config
from torchtune_lite.config.schema import components, settings
from torchtune_lite.config.text import includes
from torchtune_lite.config.text.document import Document
from torchtune_lite.peft import is_quantized

CONFIGS = catalog.configs()

# Parameters as published, and (embed_dim, key and value width, intermediate_dim, layers).
PUBLISHED = {
    "llama2_7b": (6_738_415_616, (4096, 4096, 11_008, 32)),
    "llama2_13b": (13_015_864_320, (5120, 5120, 13_824, 40)),
    "llama2_70b": (68_976_648_192, (8192, 1024, 28_672, 80)),
}
VOCABULARY = 32_000


VALUES = {name: includes.read(path, name).values for name, path in CONFIGS.items()}
NEEDED = {name: [f"{key}=x" for key, value in values.items() if value == "???"] for name, values in VALUES.items()}


@functools.cache
def settings_class(recipe):
    return config.settings_of(catalog.find_recipe(recipe).path)


def load(name):
    return config.load(name, NEEDED[name], settings_class(VALUES[name]["recipe"]))


def adapter_size(model, sizes):
    """Parameters of the adapters, r · (in + out) for each projection, from the published widths alone."""
    d, kv, m, layers = sizes
    widths = {"q_proj": d + d, "k_proj": d + kv, "v_proj": d + kv, "output_proj": d + d}
    each = sum(widths[name] for name in model["lora_attn_modules"])
    each += 3 * (d + m) if model.get("apply_lora_to_mlp") else 0
    output = d + VOCABULARY if model.get("apply_lora_to_output") else 0
    return model.get("lora_rank", 8) * (each * layers + output)


@pytest.mark.parametrize("name", CONFIGS)
def test_it_is_accepted_by_the_recipe_it_names(name, folder):
    load(name)


@pytest.mark.parametrize("name", CONFIGS)
def test_it_says_what_it_is_what_it_needs_and_how_to_run_it(name):
    what, memory, run, key = CONFIGS[name].read_text().splitlines()[:4]
    assert what.startswith("# ")
    assert memory.startswith("# Memory: ")
    assert "MEASURED" not in memory, "a placeholder: measure it"
    recipe = catalog.recipe_key(CONFIGS[name])
    assert re.match(rf"# Run: tune run {recipe} --config {name}\b", run)
    assert key == f"recipe: {recipe}"


def published_size(name):
    """The builder's name without its method: a key of PUBLISHED, a builder of sizes from a checkpoint, or ""."""
    builder = VALUES[name].get("model", {}).get("_component_", "")
    return re.sub("^q?lora_", "", builder.rpartition(".")[2])


@pytest.mark.parametrize("name", [name for name in CONFIGS if published_size(name) in PUBLISHED])
def test_its_model_has_the_published_number_of_parameters(name, folder):
    model = load(name).model
    published, sizes = PUBLISHED[published_size(name)]
    with torch.device("meta"):
        parameters = dict(config.instantiate(model).named_parameters())
    adapters = adapter_size(model, sizes) if "lora_attn_modules" in model else 0
    assert sum(math.prod(p.shape) for p in parameters.values()) == published + adapters
    if adapters:
        assert sum(p.numel() for p in parameters.values() if p.requires_grad) == adapters


ARITHMETIC = {name: re.search(r"Memory: ([\d.]+) GB .*\(arithmetic\)", CONFIGS[name].read_text()) for name in CONFIGS}


@pytest.mark.parametrize("name", [name for name, found in ARITHMETIC.items() if found])
def test_the_memory_that_it_names_is_that_of_its_model(name, folder):
    """Bytes a weight: 2 in bf16, 0.52 in NF4; 16 of an adapter in fp32 (itself, its gradient, AdamW's state)."""
    cfg = load(name)
    with torch.device("meta"):
        parameters = list(config.instantiate(cfg.model).parameters())
    paged, in_bwd = "Paged" in cfg.optimizer["_component_"], cfg.optimizer_in_bwd
    trained = 16 if "lora" in VALUES[name]["recipe"] else 2 + 2 * (not in_bwd) + 4 * (not paged)
    frozen = sum(p.numel() * (0.52 if is_quantized(p) else 2) for p in parameters if not p.requires_grad)
    total = frozen + trained * sum(p.numel() for p in parameters if p.requires_grad)
    assert float(ARITHMETIC[name][1]) == round(total / 1e9, 1)


def repeated(node, below):
    """Keys that repeat the value from the nearest included config."""
    for key, value in node.items():
        included = next((each[key] for each in below if key in each), ...)
        if includes.merges(value, included):
            yield from repeated(value, [each[key] for each in below if isinstance(each.get(key), dict)])
        elif value == included and key not in ("recipe", "_component_"):
            yield key


@pytest.mark.parametrize("name", CONFIGS)
def test_a_config_does_not_repeat_what_it_includes(name):
    own, *below = (file.document.values for file in includes.chain(CONFIGS[name], name))
    assert list(repeated(own, below)) == []


@pytest.mark.parametrize("name", CONFIGS)
def test_it_does_not_train_on_the_prompt(name, folder):
    cfg = load(name)
    for node in (getattr(cfg, key, None) for key in ("dataset", "dataset_val")):
        for each in node if isinstance(node, list) else [node] if node else []:
            parameter = inspect.signature(config.find(each["_component_"])).parameters.get("train_on_input")
            assert parameter is None or each.get("train_on_input", parameter.default) is False


def slips(key):
    """The key with a letter left out, doubled, or swapped with the next."""
    found = {key[:i] + key[i + 1 :] for i in range(len(key))} | {key[: i + 1] + key[i:] for i in range(len(key))}
    return sorted(found | {key[:i] + key[i + 1] + key[i] + key[i + 2 :] for i in range(len(key) - 1)})


def components_of(recipe):
    """The components in the recipe's configs, one for each list of arguments: their key, their path, the keys given."""
    found = {}
    for name in recipe.configs:
        for slot, value in vars(load(name)).items():
            for node in value if isinstance(value, list) else [value]:
                if isinstance(node, dict) and "_component_" in node:
                    keys = tuple(key for key in node if key != "_component_")
                    has = tuple(inspect.signature(config.find(node["_component_"])).parameters)
                    found[slot, has, keys] = slot, node["_component_"], keys
    return found.values()


@pytest.mark.parametrize("recipe", catalog.recipes(), ids=lambda recipe: recipe.name)
def test_a_slip_in_any_key_is_refused_and_answered_with_the_key(recipe, folder):
    cls = config.settings_of(recipe.path)
    given = {field.name: field.metadata.get("component", ()) for field in fields(cls)}
    right = []

    def judge(key, slip, problems):
        named = [line for line in problems if f"unknown key '{slip}'" in line or f"has no argument '{slip}'" in line]
        assert named, f"{slip} for {key} passes"
        right.append(f"did you mean '{key}'?" in named[0])

    for key in given:
        for slip in set(slips(key)) - set(given):
            judge(key, slip, settings.build(cls, Document("my.yaml", {slip: None}, {}))[1])
    for slot, path, keys in components_of(recipe):
        has = inspect.signature(config.find(path)).parameters
        for key in keys:
            for slip in set(slips(key)) - set(has):
                node = {"_component_": path, slip: None}
                judge(key, slip, components.check(node, (slot,), Document("my.yaml", {}, {}), given[slot]))
    assert len(right) > 50 and sum(right) >= 0.95 * len(right)
