import json

import pytest

from torchtune_lite.hub.facts import RunFacts

CONFIG = """\
recipe: lora_finetune_single_device
output_dir: /home/me/runs/x
log_dir: ~/logs
checkpointer: {_component_: torchtune_lite.training.FullModelHFCheckpointer, checkpoint_dir: BASE}
metric_logger: {_component_: torchtune_lite.training.WandBLogger, api_key: abc}
dataset:
"""
INSTRUCT, CHAT, ALPACA = (
    f"_component_: torchtune_lite.datasets.{name}_dataset" for name in ("instruct", "chat", "alpaca")
)


@pytest.fixture
def of(folder):
    """Gives the facts on runs/x/epoch_0, of a run on the data and the base."""

    def make(data="[]", base="/models/base", given=None):
        (folder / "runs/x/epoch_0").mkdir(parents=True, exist_ok=True)
        (folder / "runs/x/config.yaml").write_text(CONFIG.replace("BASE", str(base)) + f"  {data}\n")
        return RunFacts.of(folder / "runs/x/epoch_0", given)

    return make


def test_nothing_of_the_machine_and_no_secret_is_told(of):
    config = of().config
    assert (config["output_dir"], config["log_dir"]) == ("x", "logs")
    assert config["checkpointer"]["checkpoint_dir"] == "base" and config["metric_logger"]["api_key"] == "***"
    assert config["checkpointer"]["_component_"] == "torchtune_lite.training.FullModelHFCheckpointer"


@pytest.mark.parametrize(
    ("data", "names", "on_hub"),
    [
        (f"{INSTRUCT}\n  source: /home/me/rows.jsonl", ["rows.jsonl"], []),
        (f"{INSTRUCT}\n  source: data/rows.jsonl.gz", ["rows.jsonl.gz"], []),
        (f"{CHAT}\n  source: org/rows", ["org/rows"], ["org/rows"]),
        (f"{CHAT}\n  source: local/rows", ["rows"], []),
        (
            f"{CHAT}\n  source: json\n  data_files: [a/b.json, c.json]",
            ["b.json", "c.json"],
            [],
        ),
        (f"{CHAT}\n  source: json\n  data_files: {{train: a/b.json}}", ["b.json"], []),
        (ALPACA, ["tatsu-lab/alpaca"], ["tatsu-lab/alpaca"]),
        ("_component_: torchtune.datasets.alpaca_cleaned_dataset", ["yahma/alpaca-cleaned"], ["yahma/alpaca-cleaned"]),
        (
            f"- {{{CHAT}, source: a.json}}\n  - source: org/b",
            ["a.json", "org/b"],
            ["org/b"],
        ),
        ("_component_: my_rows.Rows\n  path: a.json", [], []),
    ],
)
def test_data_sets_have_the_names_that_others_know(data, names, on_hub, of, folder):
    (folder / "local/rows").mkdir(parents=True)
    facts = of(data)
    assert (facts.data, facts.hub_data) == (names, on_hub)


def test_the_base_is_a_repository_where_its_folder_tells(of, folder):
    cached = folder / "hub/models--org--the-base/snapshots/1"
    cached.mkdir(parents=True)
    named = folder / "named"
    named.mkdir()
    (named / "config.json").write_text('{"_name_or_path": "org/named"}')
    assert (of().base, of().base_repo) == ("base", None)
    assert of(base=cached).base == of(base=cached).base_repo == "org/the-base"
    assert of(base=named).base_repo == "org/named"
    assert of(base=named, given="org/given").base_repo == "org/given"
    (named / "config.json").write_text(json.dumps({"_name_or_path": str(named)}))
    assert of(base=named).base_repo is None


def test_losses_totals_and_scores_are_read_where_they_are(of, folder):
    assert (of().losses, of().totals, of().scores) == ([], {}, [])
    run = folder / "runs/x"
    (run / "metrics.jsonl").write_text('{"step": 1, "loss": 2.5, "lr": 0.1}\n{"step": 1, "val_loss": 2.0}\n{"torn')
    (run / "run.json").write_text('{"steps": 1, "tokens": 9}')
    (run / "best.json").write_text('{"val_loss": 2.0}')
    (run / "exact_match.json").write_text(
        '{"exact_match": 0.5, "rows": 4, "seconds": 9.1, "done": true, "results": []}'
    )
    (run / "broken.json").write_text("{")
    tasks = {"arc": {"acc,none": 0.25, "alias": "arc"}}
    (run / "eleuther_eval.json").write_text(json.dumps({"results": tasks, "date": 1.5, "versions": {"arc": 1.0}}))
    for name, value in (("epoch_0", 9.5), ("epoch_1", 1.5)):  # where `tune eval` puts them
        (run / "eval" / name).mkdir(parents=True)
        (run / "eval" / name / "perplexity.json").write_text(json.dumps({"perplexity": value, "stride": 128}))
    facts = of()
    assert facts.losses == [{"step": 1, "loss": 2.5}, {"step": 1, "val_loss": 2.0}]
    assert facts.totals == {"steps": 1, "tokens": 9}
    assert facts.scores == [
        ("eleuther_eval", "arc: acc", 0.25),
        ("perplexity", "perplexity", 9.5),
        ("exact_match", "exact_match", 0.5),
        ("exact_match", "rows", 4),
    ]


def test_a_folder_that_is_no_checkpoint_of_a_run_has_a_base_alone(of, folder):
    of()
    (folder / "runs/x/exported").mkdir()
    assert RunFacts.of(folder / "runs/x/exported", "org/base") == RunFacts(base="org/base", base_repo="org/base")
