"""The answers of a model to the harness: request by request those of the harness's own `hf` model."""

import pytest
import torch
import transformers
from lm_eval.api.model import TemplateLM
from lm_eval.models.huggingface import HFLM

from tests.evaluation.conftest import BASE, LENGTH, TASKS
from torchtune_lite.data import Message, load_tokenizer
from torchtune_lite.data.tokenizers.template_export import as_chat_template
from torchtune_lite.errors import ConfigError
from torchtune_lite.evaluation.harness import run_harness
from torchtune_lite.evaluation.harness_model import HarnessModel, as_harness_model, sampling
from torchtune_lite.generation import Sampling


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


def test_a_context_without_a_token_starts_from_the_first_one(ours, monkeypatch):
    request = type("Request", (), {"args": ("", {"max_gen_toks": 4})})
    [expected] = ours.generate_until([request])
    monkeypatch.setattr(ours._tokenizer, "adds_bos", False)
    assert ours.generate_until([request]) == [expected]


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


def test_nothing_of_what_the_harness_asks_for_is_left_out():
    assert set(TemplateLM.__abstractmethods__) <= set(dir(HarnessModel))
