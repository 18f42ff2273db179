"""From the words after `tune eval` to those of `tune run`."""

import pytest

from tests.cli.words import settings
from tests.demo_run import BASE, make_run
from torchtune_lite.errors import ConfigError


def test_a_run_is_asked_as_it_was_trained(words, tmp_path):
    run = tmp_path / "x"
    make_run(run, "dataset.new_system_prompt=Answer in JSON: {}", adapter_only=True)
    found = words("eval", run, "--questions", "a b.jsonl", "metrics=[f1]", "extract=json")
    assert found[:3] == ["exact_match_eval", "--config", "exact_match"]
    cfg = settings(found)
    assert cfg.source == "a b.jsonl" and cfg.metrics == ["f1"] and cfg.extract == "json"
    assert cfg.new_system_prompt == "Answer in JSON: {}" and cfg.question_template is None
    assert cfg.output_dir == f"{run}/eval/epoch_0" and cfg.model["lora_rank"] == 16
    assert cfg.checkpointer["adapter_checkpoint"] == f"{run}/epoch_0/adapter"

    cfg = settings(words("eval", "--tasks=arc_easy,mmlu_*", run, "limit=3", "apply_chat_template=true"))
    assert cfg.tasks == ["arc_easy", "mmlu_*"] and cfg.limit == 3 and cfg.apply_chat_template
    cfg = settings(words("eval", run, "--text", "book.txt", "stride=5", "output_dir=elsewhere"))
    assert (cfg.source, cfg.stride, cfg.output_dir) == ("book.txt", 5, "elsewhere")


def test_the_results_of_an_adapter_lie_in_its_run_beside_those_of_the_checkpoint(words, tmp_path):
    make_run(tmp_path / "x")
    cfg = settings(words("eval", tmp_path / "x/epoch_0/adapter", "--text", "book.txt"))
    assert cfg.output_dir == f"{tmp_path}/x/eval/epoch_0/adapter"


def test_the_results_of_another_model_go_elsewhere(words):
    cfg = settings(words("eval", BASE, "--text", "book.txt"))
    assert cfg.output_dir == "runs/eval/base" and cfg.checkpointer["checkpoint_dir"] == str(BASE)


@pytest.mark.parametrize("given", [[], ["--text", "a", "--tasks", "b"]])
def test_one_thing_is_asked_at_a_time(given, words):
    with pytest.raises(ConfigError, match="--text"):
        words("eval", BASE, *given)
