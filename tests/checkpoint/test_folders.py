"""What a folder is asked with: each kind of folder gives the logits of what was trained, and its tokens."""

import json
import logging
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml

from tests.demo_run import BASE, make_run, settings
from torchtune_lite import config, training
from torchtune_lite.checkpoint import find_model
from torchtune_lite.data import AlpacaToMessages, Message, SentencePieceTokenizer
from torchtune_lite.errors import CheckpointError, ConfigError
from torchtune_lite.peft import is_quantized

TOKENS = torch.arange(5, 45).reshape(2, 20)
CHAT = [Message("system", "a"), Message("user", "市 in two"), Message("assistant", "é"), Message("user", " b ")]


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> SimpleNamespace:
    """A run with a merged checkpoint, the same with the adapter alone, and the live model's logits."""
    folder = tmp_path_factory.mktemp("runs") / "x"
    model = make_run(folder)
    make_run(folder.with_name("y"), adapter_only=True)
    with torch.no_grad():
        return SimpleNamespace(dir=folder, adapters=folder.with_name("y"), logits=model(TOKENS))


def build(found):
    inference = training.Inference(SimpleNamespace(**found.values, device="cpu", log_level="INFO"))
    tokenizer, model = inference.build()
    inference.load()
    return tokenizer, model.eval()


def ids(tokenizer):
    return tokenizer({"messages": CHAT}, inference=True)["tokens"]


@pytest.mark.parametrize(
    ("path", "chosen"),
    [
        ("x", "x/epoch_0"),
        ("x/epoch_0", "x/epoch_0"),
        ("x/epoch_0/adapter", "x/epoch_0/adapter"),
        ("y", "y/epoch_0"),
        ("y/epoch_0", "y/epoch_0"),
        ("y/epoch_0/adapter", "y/epoch_0/adapter"),
    ],
)
def test_each_folder_of_a_run_is_asked_as_it_was_trained(run, path, chosen):
    found = find_model(run.dir.parent / path)
    assert found.path == run.dir.parent / chosen
    tokenizer, model = build(found)
    with torch.no_grad():
        torch.testing.assert_close(model(TOKENS), run.logits, rtol=0, atol=2e-3)
    if found.adapter:  # on the base that it was trained on, which was quantised
        assert found.base == BASE and any(map(is_quantized, model.parameters()))
    trained = config.instantiate(settings().tokenizer)
    assert ids(tokenizer) == ids(trained) and tokenizer.max_seq_len is None
    assert tokenizer.stop_tokens == trained.stop_tokens and found.dtype == "fp32"


@pytest.mark.parametrize(
    "template",
    [
        "null",
        "torchtune_lite.data.ChatMLTemplate",
        "{user: ['Q: ', ' A:']}",
        "torchtune_lite.models.llama2.Llama2ChatTemplate",
    ],
)
def test_the_template_is_the_run_s_where_the_tokenizer_is_its_copy(tmp_path, template):
    base = tmp_path / "base"
    shutil.copytree(BASE, base)
    words = [f"checkpointer.checkpoint_dir={base}", f"tokenizer.prompt_template={template}"]
    words.append("tokenizer.max_seq_len=256")
    make_run(tmp_path / "x", *words, adapter_only=True)
    trained = ids(config.instantiate(settings(*words).tokenizer))
    (base / "tokenizer.model").unlink()
    found = find_model(tmp_path / "x")
    assert found.tokenizer["path"] == str(tmp_path / "x/epoch_0/tokenizer.model")
    assert ids(config.instantiate(found.tokenizer)) == trained


def test_a_run_s_tokenizer_named_by_its_folder_is_read_from_the_checkpoint(tmp_path):
    component = "tokenizer={_component_: torchtune_lite.models.tokenizer_of_checkpoint, prompt_template: null}"
    make_run(tmp_path / "x", component)
    assert "path" not in find_model(tmp_path / "x").tokenizer  # it is that of the checkpointer's folder
    make_run(tmp_path / "y", component, f"tokenizer.path={BASE}")
    assert find_model(tmp_path / "y").tokenizer["path"] == str(tmp_path / "y/epoch_0")


def test_the_system_prompt_is_that_of_all_data_sets(run, tmp_path):
    assert find_model(run.dir).system is None
    shutil.copytree(run.dir, tmp_path / "x")
    values = yaml.safe_load((run.dir / "config.yaml").read_text())
    values["dataset"]["new_system_prompt"] = "Be brief."
    (tmp_path / "x/config.yaml").write_text(yaml.safe_dump(values))
    assert find_model(tmp_path / "x/epoch_0").system == "Be brief."
    values["dataset"] = [values["dataset"], {**values["dataset"], "new_system_prompt": None}]
    (tmp_path / "x/config.yaml").write_text(yaml.safe_dump(values))
    assert find_model(tmp_path / "x/epoch_0").system is None


def test_what_a_data_set_puts_around_a_question_belongs_to_it(run, tmp_path):
    assert find_model(run.dir).question_template is None
    shutil.copytree(run.dir, tmp_path / "x")
    values = yaml.safe_load((run.dir / "config.yaml").read_text())
    values["dataset"] = {"_component_": "torchtune_lite.datasets.alpaca_cleaned_dataset", "source": "rows.jsonl"}
    (tmp_path / "x/config.yaml").write_text(yaml.safe_dump(values))
    values = SimpleNamespace(**find_model(tmp_path / "x").answering_values)
    [trained, _] = AlpacaToMessages()({"instruction": "Why {x}?", "output": ""})["messages"]
    assert training.AskingSettings.question(values, "Why {x}?") == trained.text_content


def test_a_checkpoint_that_was_moved_out_of_its_run_is_a_model_with_a_template(run, tmp_path):
    shutil.copytree(run.dir / "epoch_0", tmp_path / "mine")
    found = find_model(tmp_path / "mine")
    assert found.tokenizer["prompt_template"] == "chat_template" and found.dtype == "auto"
    tokenizer, model = build(found)
    trained = config.instantiate(settings().tokenizer)
    assert ids(tokenizer) == ids(trained) and tokenizer.stop_tokens == trained.stop_tokens
    shutil.copytree(run.adapters / "epoch_0", tmp_path / "adapter_alone")
    found = find_model(tmp_path / "adapter_alone")
    assert found.base == BASE and ids(config.instantiate(found.tokenizer)) == ids(trained)


def test_a_base_model_is_given_the_bare_text_and_says_so(log_lines):
    found = find_model(BASE)
    assert log_lines == [f"{BASE} has no chat template: the model is given the bare text"]
    tokenizer, _ = build(found)
    assert ids(tokenizer) == ids(SentencePieceTokenizer(BASE / "tokenizer.model"))


def test_the_working_directory_may_be_the_folder(run, monkeypatch):
    monkeypatch.chdir(run.dir / "epoch_0")
    assert find_model(".").tokenizer == find_model(run.dir).tokenizer
    monkeypatch.chdir(run.dir / "epoch_0/adapter")
    assert find_model(".").tokenizer == find_model("..").tokenizer == find_model(run.dir).tokenizer


def test_the_best_checkpoint_is_taken_or_else_the_newest(tmp_path, log_lines):
    out = tmp_path / "x"
    make_run(out, names=("step_2", "step_10", "step_9"))
    del log_lines[:]
    assert find_model(out).path == out / "step_10"
    (out / "best.json").write_text(json.dumps({"checkpoint": "step_2", "step": 2, "val_loss": 1.0}))
    assert find_model(out).path == out / "step_2"
    assert log_lines == [
        f"{out}: the newest of 3 checkpoints: step_10",
        f"{out}: the best by validation loss (the newest is step_10) of 3 checkpoints: step_2",
    ]
    assert find_model(out / "step_9").path == out / "step_9"
    (out / "best.json").unlink()
    (out / "step_10/model.safetensors").unlink()
    assert find_model(out).path == out / "step_9"
    assert "step_10 is damaged: model.safetensors is missing; taking step_9 instead" in log_lines[-2]


def test_another_base_may_be_given(run, tmp_path):
    shutil.copytree(BASE, tmp_path / "moved")
    found = find_model(run.adapters, base=tmp_path / "moved")
    assert found.base == tmp_path / "moved" and found.checkpointer["checkpoint_dir"] == str(tmp_path / "moved")
    with torch.no_grad():
        torch.testing.assert_close(build(found)[1](TOKENS), run.logits, rtol=0, atol=2e-3)
    with pytest.raises(CheckpointError, match="epoch_0 is a whole model and has no base; leave --base out$"):
        find_model(run.dir, base=tmp_path / "moved")
    with pytest.raises(CheckpointError, match="--base .* is not the folder of a model: it has no config.json$"):
        find_model(run.adapters, base=tmp_path)


@pytest.mark.parametrize(
    ("named", "problem"),
    [
        ("meta-llama/Llama-2-7b-hf", "its base 'meta-llama/Llama-2-7b-hf' does not exist here"),
        ("/models/gone", "its base '/models/gone' does not exist here"),
        (None, "its adapter_config.json names no base"),
    ],
)
def test_a_base_that_is_not_there_is_named_with_the_way_to_give_another(run, tmp_path, named, problem):
    shutil.copytree(run.dir / "epoch_0/adapter", tmp_path / "a")
    path = tmp_path / "a/adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"base_model_name_or_path": named}))
    with pytest.raises(CheckpointError) as error:
        find_model(tmp_path / "a")
    assert str(error.value) == f"adapter {tmp_path}/a: {problem}; name the base model's folder with --base FOLDER"


def test_a_folder_that_is_none_of_these_is_one_line(run, tmp_path):
    kinds = (
        "expected a run's output_dir, a checkpoint epoch_N or step_N, an adapter of PEFT's, or the folder of a model"
    )
    none = "neither config.json nor adapter_config.json nor a checkpoint"
    cases = {
        tmp_path / "gone": f"{tmp_path}/gone is not a folder; {kinds}",
        run.dir / "config.yaml": f"{run.dir}/config.yaml is not a folder; {kinds}",
        tmp_path: f"{tmp_path} holds no model: {none}; {kinds}",
    }
    (tmp_path / "x/.tmp-epoch_0-7").mkdir(parents=True)
    shutil.copy(run.dir / "config.yaml", tmp_path / "x")
    cases[tmp_path / "x"] = f"{tmp_path}/x is the output_dir of a run that has saved no checkpoint yet"
    draft = tmp_path / "x/.tmp-epoch_0-7"
    left = "is not a whole checkpoint: it is being written, or a run that was killed has left it there"
    cases[draft] = f"{draft} {left}"
    for path, problem in cases.items():
        with pytest.raises(CheckpointError) as error:
            find_model(path)
        assert str(error.value) == problem


@pytest.mark.parametrize("path", ["epoch_0", "epoch_0/adapter", ""])
@pytest.mark.parametrize("file", ["tokenizer.model", "adapter/adapter_model.safetensors"])
def test_a_checkpoint_that_is_cut_off_is_refused(run, tmp_path, path, file):
    shutil.copytree(run.adapters, tmp_path / "x")
    target = tmp_path / "x/epoch_0" / file
    target.write_bytes(target.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match=f"epoch_0 is damaged: {Path(file).name} is truncated"):
        find_model(tmp_path / "x" / path)


def test_a_config_of_the_run_that_cannot_be_read_is_named(run, tmp_path):
    shutil.copytree(run.dir, tmp_path / "x")
    (tmp_path / "x/config.yaml").write_text("a: [")
    with pytest.raises(ConfigError, match="config.yaml"):
        find_model(tmp_path / "x")


def test_nothing_is_built_and_no_weight_is_read(run, tmp_path, caplog):
    caplog.set_level(logging.WARNING)
    shutil.copytree(run.dir, tmp_path / "x")
    (tmp_path / "x/epoch_0/MANIFEST.json").unlink()
    (tmp_path / "x/epoch_0/model.safetensors").write_bytes(b"")
    assert find_model(tmp_path / "x").values["checkpointer"]["checkpoint_dir"] == str(tmp_path / "x/epoch_0")
