"""docs/coming_from_torchtune.md lists torchtune's text configs; each row is the answer to a config in its vocabulary.

`torchtune_configs.tsv` has the deciding facts: recipe, builders, optimizer, and the keys that no recipe here has.
`TORCHTUNE_LITE_WRITE_CONFIGS=1 pytest tests/test_torchtune_table.py` rewrites the section.
"""

import csv
import inspect
import json
import os
import re
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml

from torchtune_lite import catalog, config
from torchtune_lite.errors import ConfigError

PAGE = Path(__file__).resolve().parent.parent / "docs" / "coming_from_torchtune.md"
TABLE = Path(__file__).with_name("torchtune_configs.tsv")
ROWS = list(csv.DictReader(TABLE.open(encoding="utf-8"), delimiter="\t", quoting=csv.QUOTE_NONE))
SERVED = [row for row in ROWS if row["recipe"] in catalog.recipes_by_name()]
START, END = "<!-- by tests/test_torchtune_table.py -->\n", "<!-- end -->\n"
LORA = {"lora_attn_modules": ["q_proj", "v_proj", "output_proj"], "apply_lora_to_mlp": True, "lora_rank": 8}

found: dict[str, str] = {}


def theirs(row):
    """A torchtune config with the row's values."""
    keys = json.loads(row["keys"])
    parameters = inspect.signature(config.find(row["tokenizer"])).parameters.values()
    needed = {each.name: "x" for each in parameters if each.default is each.empty}
    checkpointer = {"_component_": "torchtune.training.FullModelHFCheckpointer", "checkpoint_dir": "x"}
    values = {
        "model": {"_component_": row["model"], **(LORA if "lora" in row["recipe"] else {})},
        "tokenizer": {"_component_": row["tokenizer"], **needed},
        **keys,
        "checkpointer": checkpointer | keys.get("checkpointer", {}),
    }
    if row["recipe"] == "eleuther_eval":
        return values | {"tasks": ["truthfulqa_mc2"], "max_seq_length": 4096, "batch_size": 8}
    if "finetune" not in row["recipe"]:
        return values | {"prompt": {"user": "x"}, "max_new_tokens": 8}
    optimizer = row["optimizer"]
    if optimizer.startswith("bitsandbytes.") and not find_spec("bitsandbytes"):
        optimizer = "torch.optim.AdamW"
    return values | {
        "output_dir": "x",
        "dataset": {"_component_": "torchtune.datasets.alpaca_cleaned_dataset", "packed": False},
        "optimizer": {"_component_": optimizer, "lr": 1e-4},
        "loss": {"_component_": "torchtune.modules.loss.LinearCrossEntropyLoss"},
    }


def verdict(row, said):
    """The page's cell for a config; `said` returns the output so far."""
    if row not in SERVED:
        return f"not served yet: {catalog.NOT_SERVED[row['recipe']]} (`{row['recipe']}`)"
    Path("theirs.yaml").write_text(yaml.safe_dump(theirs(row)))
    try:
        config.load("theirs.yaml", [], config.settings_of(catalog.find_recipe(row["recipe"]).path))
    except ConfigError as error:
        problems = re.findall(r"theirs\.yaml:\d+: (.*)", str(error))
        return f"not served: {'; '.join(problems)}"
    effect = re.search(r"warning: theirs\.yaml: (without effect here: .*)", said().err)
    parts = ["runs, the processes share the weights" if row["recipe"].endswith("_distributed") else "runs"]
    parts += ["where bitsandbytes is installed"] if row["optimizer"].startswith("bitsandbytes.") else []
    parts += [f"with a warning: {effect[1]}"] if effect else []
    return ", ".join(parts)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["name"])
def test_a_config_is_answered_as_the_page_says(row, folder, capfd):
    here = " **=**" if row["name"] in catalog.configs() else ""
    found[row["name"]] = f"| `{row['name']}`{here} | {verdict(row, capfd.readouterr)} |\n"
    if "TORCHTUNE_LITE_WRITE_CONFIGS" not in os.environ:
        assert found[row["name"]] in PAGE.read_text(encoding="utf-8")


def test_the_page_lists_these_configs_and_no_others():
    text = PAGE.read_text(encoding="utf-8")
    if "TORCHTUNE_LITE_WRITE_CONFIGS" in os.environ:
        table = "| config | here |\n|---|---|\n" + "".join(found[row["name"]] for row in ROWS)
        before, after = text.partition(START)[0], text.partition(END)[2]
        PAGE.write_text(f"{before}{START}{table}{END}{after}", encoding="utf-8")
        pytest.fail("docs/coming_from_torchtune.md is written anew: read its diff")
    listed = re.findall(r"^\| `(\S+)`", text.partition(START)[2].partition(END)[0], re.M)
    assert listed == [row["name"] for row in ROWS]
    assert f"{len(listed)} text configs" in text and len(listed) == 173


@pytest.mark.parametrize("row", [row for row in SERVED if not row["recipe"].endswith("_distributed")])
def test_each_that_runs_on_one_device_has_its_twin(row):
    assert row["name"] in catalog.configs()
    assert catalog.recipe_key(row["name"]) == catalog.find_recipe(row["recipe"]).name
