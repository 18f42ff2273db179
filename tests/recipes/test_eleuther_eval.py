"""The recipe of lm-evaluation-harness, as a user of torchtune calls it; its answers are those of tests/evaluation."""

import json
import re
import sys
from pathlib import Path

import pytest
import yaml

from torchtune_lite.cli.main import main

TORCHTUNES = """
output_dir: ./ # Not needed
model: {{_component_: torchtune.models.llama2.llama2}}
checkpointer:
  _component_: torchtune.training.FullModelHFCheckpointer
  checkpoint_dir: {checkpoint}
  checkpoint_files: [model.safetensors]
  output_dir: ${{output_dir}}
  model_type: LLAMA2
tokenizer:
  _component_: torchtune.models.llama2.llama2_tokenizer
  path: {checkpoint}/tokenizer.model
  max_seq_len: null
apply_chat_template: True
device: cpu
dtype: fp32
seed: 1234
tasks: ["words"]
include_path: tasks
limit: null
max_seq_length: 4096
batch_size: 8
enable_kv_cache: True
quantizer: null
"""
TASK = {
    "task": "words",
    "dataset_path": "json",
    "dataset_kwargs": {"data_files": {"test": "words.jsonl"}},
    "test_split": "test",
    "output_type": "multiple_choice",
    "doc_to_text": "{{input}}",
    "doc_to_choice": ["red", "green", "blue tree"],
    "doc_to_target": 1,
    "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
}


@pytest.fixture
def tune_here(tiny, tmp_path, monkeypatch):
    """Runs `tune` in this process, which has the harness loaded, in a folder with a task and torchtune's config."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    monkeypatch.setattr("lm_eval.evaluator.add_env_info", lambda storage: None)  # it asks pip, for a second
    Path("tasks").mkdir()
    Path("tasks/words.jsonl").write_text("".join(tiny.train.read_text().splitlines(keepends=True)[:4]))
    Path("tasks/words.yaml").write_text(yaml.safe_dump(TASK))
    Path("theirs.yaml").write_text(TORCHTUNES.format(checkpoint=tiny.checkpoint))

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["tune", "run", "eleuther_eval", *words])
        try:
            main()
        except SystemExit as end:
            return end.code
        return 0

    return run


def samples(folder):
    lines = map(json.loads, Path(folder, "eleuther_eval_samples.jsonl").read_text().splitlines())
    return sorted(lines, key=lambda sample: sample["doc_id"])


def test_torchtunes_config_runs_and_its_chat_template_is_applied(tune_here, capsys):
    words = ["--config", "theirs.yaml", "log_samples=True"]
    assert not tune_here(*words, "output_dir=chat", "tokenizer.prompt_template={user: ['[', '] ']}")
    score = json.loads(Path("chat/eleuther_eval.json").read_text())["results"]["words"]["acc,none"]
    assert re.search(rf"\|words *\|.*\|acc *\|↑ *\| *{score:g}0*\|", capsys.readouterr().out)
    chat = samples("chat")
    assert len(chat) == 4 and {sample["task"] for sample in chat} == {"words"}
    assert all(context == f"<s> [ {sample['doc']['input']} ]" for sample in chat for context, _ in sample["arguments"])

    assert not tune_here(*words, "output_dir=plain", "apply_chat_template=False", "limit=2")
    plain = samples("plain")
    assert [sample["doc_id"] for sample in plain] == [0, 1]
    assert all(one["resps"] != other["resps"] for one, other in zip(chat, plain, strict=False))


def test_what_is_wrong_is_known_before_any_weight_is_read(tune_here, capsys):
    Path("tasks/words.jsonl").unlink()
    for words, problem in (
        (["tokenizer.prompt_template=null"], "apply_chat_template: the tokenizer has no template; set tokenizer.prom"),
        (["include_path=none"], "include_path: none is not a folder"),
        (["max_seq_length=1"], "'max_seq_length': expected at least 2, got 1"),
    ):
        assert tune_here("--config", "theirs.yaml", *words) == 2
        assert problem in capsys.readouterr().err
