"""lm-evaluation-harness with a model of ours and with its own `hf` model: the same answers, request by request."""

import inspect
from importlib.metadata import PackageNotFoundError

import pytest
import torch
import transformers
import yaml
from lm_eval import simple_evaluate
from lm_eval.api.model import TemplateLM
from lm_eval.api.task import ConfigurableTask
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from tests.evaluation.conftest import BASE, COMMON, TASKS
from torchtune_lite.data import Message, load_tokenizer
from torchtune_lite.data.tokenizers.template_export import as_chat_template
from torchtune_lite.errors import ConfigError, DataError
from torchtune_lite.evaluation import harness
from torchtune_lite.evaluation.harness import check_version, data_files_beside, find_tasks, run_harness, score_tables
from torchtune_lite.evaluation.harness_model import HarnessModel, as_harness_model, sampling
from torchtune_lite.generation import Sampling

LENGTH = 40  # tokens; some contexts are longer, and so are some texts
LLAMA2 = "torchtune_lite.models.llama2.Llama2ChatTemplate"


@pytest.fixture(scope="module", autouse=True)
def no_environment():
    """The harness asks pip for all packages, for the record: more than a second of each of its runs."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr("lm_eval.evaluator.add_env_info", lambda storage: None)
        yield


@pytest.fixture(scope="module")
def manager(task_folder):
    return find_tasks(list(TASKS), task_folder)


@pytest.fixture(scope="module")
def chatting():
    return load_tokenizer(BASE, prompt_template=LLAMA2)


def ask(model, manager, **options):
    """What the harness returns with the answers to each task's requests, and their contexts."""
    found = run_harness(model, manager, list(TASKS), bootstrap_iters=0, log_samples=True, **options)
    samples = {task: sorted(rows, key=lambda row: row["doc_id"]) for task, rows in found["samples"].items()}
    answers = {task: [each for row in rows for each in row["resps"]] for task, rows in samples.items()}
    contexts = {task: [row["arguments"] for row in rows] for task, rows in samples.items()}
    return found["results"], answers, contexts


@pytest.fixture(scope="module")
def theirs(their_base, chatting):
    tokenizer = transformers.AutoTokenizer.from_pretrained(BASE)
    tokenizer.chat_template = as_chat_template(chatting)
    return HFLM(pretrained=their_base, tokenizer=tokenizer, batch_size=2, max_length=LENGTH)


@pytest.fixture(scope="module")
def ours(base_model, chatting):
    return as_harness_model(base_model, chatting, max_seq_len=LENGTH, batch_size=2, seed=0)


PLAIN = {}
CHAT = {"apply_chat_template": True, "system_instruction": "市"}
ONE_TURN = CHAT | {"fewshot_as_multiturn": False}


@pytest.mark.parametrize("options", [PLAIN, CHAT, ONE_TURN], ids=["plain", "chat", "chat in one turn"])
def test_three_tasks_are_answered_as_by_transformers(options, ours, theirs, manager):
    found, answers, contexts = ask(ours, manager, **options)
    expected, their_answers, their_contexts = ask(theirs, manager, **options)
    assert contexts == their_contexts
    for task, each in their_answers.items():
        for (answer,), (their_answer,) in zip(answers[task], each, strict=True):
            if isinstance(their_answer, tuple):
                assert answer[0] == pytest.approx(their_answer[0], abs=1e-4) and answer[1] == their_answer[1]
            else:
                assert answer == (their_answer if isinstance(answer, str) else pytest.approx(their_answer, abs=1e-4))
        scores = {name: value for name, value in expected[task].items() if isinstance(value, float)}
        assert len(scores) == len(TASKS[task]["metric_list"])
        assert {name: found[task][name] for name in scores} == pytest.approx(scores, rel=1e-5)
    assert any(answer for (answer,) in answers["local_answer"])


def test_the_chat_template_is_really_applied_and_gives_the_tokens_of_training(ours, chatting, manager):
    contexts = ask(ours, manager, **CHAT)[2]
    assert all(each[0][0].count("[INST]") == 2 for each in contexts["local_choice"])  # with an example
    turns = [{"role": "system", "content": "市"}, {"role": "user", "content": "台北市 信義區"}]
    text = ours.apply_chat_template(turns)
    assert text == contexts["local_answer"][0][0][0]
    for history in (turns, [*turns, {"role": "assistant", "content": "信"}]):
        text = ours.apply_chat_template(history, add_generation_prompt=history is turns)
        messages = [Message(**turn) for turn in history]
        assert ours.tok_encode(text) == chatting({"messages": messages}, inference=True)["tokens"]
    assert ours.chat_template(True) == as_chat_template(chatting) and ours.chat_template(False) is None


def test_another_model_is_answered_otherwise(ours, theirs, base_model, manager):
    """What the comparison would say of a fault: one weight of a layer is off by a hundredth."""
    with torch.no_grad():
        base_model.layers[0].attn.q_proj.weight.mul_(1.01)
    try:
        found = ask(ours, manager)[1]["local_choice"]
    finally:
        with torch.no_grad():
            base_model.layers[0].attn.q_proj.weight.div_(1.01)
    expected = ask(theirs, manager)[1]["local_choice"]
    differences = [abs(a[0] - b[0]) for (a,), (b,) in zip(found, expected, strict=True)]
    assert max(differences) > 1e-3


def test_a_system_prompt_without_a_place_is_left_out_with_a_warning(base_model, caplog):
    mistral = load_tokenizer(BASE, prompt_template="torchtune_lite.data.MistralChatTemplate")
    model = as_harness_model(base_model, mistral, max_seq_len=LENGTH, batch_size=2)
    turns = [{"role": "system", "content": "a"}, {"role": "user", "content": "b"}]
    assert model.apply_chat_template(turns) == model.apply_chat_template(turns[1:])
    assert "no place for a system prompt; the system prompt is left out" in caplog.text


@pytest.mark.parametrize("template", [None, lambda messages: messages])
def test_without_a_template_that_can_be_written_there_is_no_chat(template, base_model):
    tokenizer = load_tokenizer(BASE, prompt_template=None)
    tokenizer.prompt_template = template
    model = as_harness_model(base_model, tokenizer, max_seq_len=LENGTH, batch_size=2)
    with pytest.raises(ConfigError, match="^apply_chat_template: the tokenizer has .*; set tokenizer.prompt_template"):
        model.chat_template(True)


def test_a_tokenizer_of_another_kind_is_refused(base_model):
    with pytest.raises(ConfigError, match="^tokenizer: object has no place here"):
        as_harness_model(base_model, object(), max_seq_len=LENGTH, batch_size=2)


def test_generation_leaves_room_for_a_prompt(ours, task_folder, manager):
    long = [type("Request", (), {"args": ("a", {"max_gen_toks": LENGTH})})]
    with pytest.raises(ConfigError, match="^max_seq_length: 40 leaves no room for a prompt beside the 40 new"):
        ours.generate_until(long)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, {"max_new_tokens": 256}),
        ({"until": "x", "max_tokens": 3}, {"max_new_tokens": 3, "stop_strings": ("x",)}),
        ({"until": ["", "y"], "max_gen_toks": 2}, {"max_new_tokens": 2, "stop_strings": ("y",)}),
        (
            {"do_sample": True, "temperature": 0.7, "top_k": 5, "top_p": 0.9, "max_gen_toks": 4},
            {"max_new_tokens": 4, "temperature": 0.7, "top_k": 5, "top_p": 0.9},
        ),
        ({"do_sample": False, "temperature": 0.7, "max_new_tokens": 4}, {"max_new_tokens": 4}),
    ],
)
def test_the_options_of_a_task_are_those_of_our_generation(given, expected, caplog):
    assert sampling(given, 7) == Sampling(seed=7, **expected)
    assert "without effect" not in caplog.text
    sampling({**given, "num_beams": 2}, None)
    assert "generation_kwargs without effect here: num_beams" in caplog.text


def test_tasks_are_found_in_the_folder_alone_and_data_beside_them_first(task_folder, manager, tmp_path, monkeypatch):
    assert not [task for task in manager.all_tasks if not task.startswith("local_")]  # the harness's own are not read
    monkeypatch.chdir(tmp_path)
    (tmp_path / "other.jsonl").write_text("{}")
    seen = []
    monkeypatch.setattr(ConfigurableTask, "download", lambda task, kwargs=None, **more: seen.append(kwargs))
    with data_files_beside(task_folder):
        for files in ("rows.jsonl", ["*.jsonl", "other.jsonl"], {"test": "rows.jsonl"}):
            ConfigurableTask.download(None, {"data_files": files, "field": "a"})
        ConfigurableTask.download(None, None)
    here = str(task_folder / "rows.jsonl")
    files = [each["data_files"] for each in seen[:-1]]
    assert files == [here, [str(task_folder / "*.jsonl"), "other.jsonl"], {"test": here}]
    assert seen[-1] is None and seen[0]["field"] == "a"


def test_what_cannot_be_asked_is_one_line(ours, task_folder, manager, tmp_path, monkeypatch):
    for tasks, folder, problem in (
        ([], task_folder, "^tasks: the list is empty"),
        (["local_choice"], task_folder / "none", "^include_path: .*none is not a folder"),
    ):
        with pytest.raises(ConfigError, match=problem):
            find_tasks(tasks, folder)
    few = TaskManager(include_path=str(task_folder), include_defaults=False)  # not the thousands of the harness
    monkeypatch.setattr("lm_eval.tasks.TaskManager", lambda **_: few)
    with pytest.raises(ConfigError, match="^tasks: there is no task 'local_choise'; did you mean 'local_choice'"):
        find_tasks(["local_text", "local_choise"], task_folder)
    text = yaml.safe_dump({"task": "gone", **COMMON, **TASKS["local_text"]})
    (tmp_path / "gone.yaml").write_text(text)
    with pytest.raises(DataError, match="^tasks: the data of a task cannot be read: .*rows.jsonl"):
        run_harness(ours, TaskManager(include_path=str(tmp_path), include_defaults=False), ["gone"])


@pytest.mark.parametrize(
    ("found", "problem"),
    [("0.4.9.2", "lm-eval 0.4.9.2 is not served"), ("0.5.0", "0.5.0 is not served"), ("0.4.10", ""), ("0.4.13", "")],
)
def test_only_versions_that_serve_are_taken(found, problem, monkeypatch):
    monkeypatch.setattr(harness, "version", lambda name: found)
    if not problem:
        check_version()
        return
    with pytest.raises(ConfigError, match=f"{problem}.*pip install 'torchtune_lite\\[eval\\]'"):
        check_version()


def test_without_the_harness_the_extra_is_named(monkeypatch):
    def missing(name):
        raise PackageNotFoundError

    monkeypatch.setattr(harness, "version", missing)
    with pytest.raises(ConfigError, match="needs lm-evaluation-harness; pip install 'torchtune_lite"):
        check_version()


def test_the_installed_version_takes_what_it_is_given():
    """Each version has to: its signature is all that is known of one that is not installed."""
    passed = inspect.signature(simple_evaluate).parameters
    ours = ("model", "tasks", "task_manager", "limit", "num_fewshot", "apply_chat_template", "fewshot_as_multiturn")
    ours += ("system_instruction", "bootstrap_iters", "log_samples")
    ours += ("numpy_random_seed", "torch_random_seed", "fewshot_random_seed")
    assert set(ours) <= set(passed)
    assert set(TemplateLM.__abstractmethods__) <= set(dir(HarnessModel))
    assert {"include_path", "include_defaults"} <= set(inspect.signature(TaskManager.__init__).parameters)


def test_the_tables_have_the_scores(ours, manager):
    found = run_harness(ours, manager, ["local_ch*"], limit=2)
    assert "|local_choice|" in score_tables(found) and "acc_norm" in score_tables(found)
    assert found["n-samples"]["local_choice"]["effective"] == 2
