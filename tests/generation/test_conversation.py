"""A conversation: its tokens are those of training, nothing is computed twice, and what is cut short is kept."""

from itertools import islice, takewhile
from types import SimpleNamespace

import pytest

from tests import scripted_model
from tests.demo_run import make_run
from torchtune_lite import training
from torchtune_lite.checkpoint import find_model
from torchtune_lite.data import Message
from torchtune_lite.errors import ConfigError
from torchtune_lite.generation import Conversation, Engine, Sampling, generate

TEMPLATES = {
    "null": ("", ""),
    "torchtune_lite.models.llama2.Llama2ChatTemplate": ("", ""),
    "torchtune_lite.data.ChatMLTemplate": ("<|im_start|>assistant\n", "<|im_end|>\n"),
    "torchtune_lite.data.QuestionAnswerTemplate": ("", ""),
    "{user: ['Q: ', ' '], assistant: ['A: ', ' #']}": ("A: ", " #"),
}


@pytest.fixture(scope="module")
def inference(tmp_path_factory):
    """Gives the model and tokenizer of a run that was trained with a template, as its folder tells."""
    root, made = tmp_path_factory.mktemp("runs"), {}

    def of(template):
        if template not in made:
            folder = root / str(len(made))
            make_run(folder, f"tokenizer.prompt_template={template}")
            values = find_model(folder).values
            loaded = training.Inference(SimpleNamespace(**values, device="cpu", log_level="INFO"))
            made[template] = (*loaded.build(), loaded.load())
        return made[template][:2]

    return of


def conversation(tokenizer, model, max_new_tokens=8, system=None, **options):
    engine = Engine(model, slots=1, stop_tokens=tokenizer.stop_tokens, tokenizer=tokenizer)
    return Conversation(engine, tokenizer, Sampling(max_new_tokens=max_new_tokens, **options), system)


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("system", [None, "Be 市 brief. "])
def test_what_the_model_is_asked_is_the_beginning_of_what_it_was_trained_on(inference, template, system):
    tokenizer, model = inference(template)
    talk = conversation(tokenizer, model, system=system)
    questions, asked = ["金門縣 5段?", " and\n\nthen ", "end"], []
    for question in questions:
        "".join(talk.ask(question))
        asked.append(talk.last.prompt)
    turns = [Message(turn.role, turn.text_content) for turn in talk.messages]
    assert [turn.role for turn in turns] == ["system"] * (system is not None) + ["user", "assistant"] * 3
    trained, _ = tokenizer.tokenize_messages(turns)
    before, after = TEMPLATES[template]
    for number, prompt in enumerate(asked):
        assert trained[: len(prompt)] == prompt
        answer = turns[(system is not None) + 2 * number + 1].text_content
        stop = asked[number + 1] if number < 2 else trained
        follows = tokenizer.decode(stop[len(prompt) :])
        assert without_spaces(follows).startswith(without_spaces(answer + after))
    assert tokenizer.stop_strings == ((after.rstrip(),) if after else ())
    assert all(without_spaces(tokenizer.decode(prompt)).endswith(without_spaces(before)) for prompt in asked)


def without_spaces(text):
    return "".join(text.split())


def test_of_a_conversation_that_goes_on_only_the_new_tokens_are_computed(inference):
    tokenizer, model = inference("torchtune_lite.models.llama2.Llama2ChatTemplate")
    talk, computed, turns = conversation(tokenizer, model, system="市"), [], []
    hook = model.tok_embeddings.register_forward_hook(lambda module, args, out: computed.append(args[0].numel()))
    for question in ("金門縣金沙鎮", "大安區?", "路 5"):
        held = turns[-1][0] + turns[-1][1][:-1] if turns else []  # the last token of an answer is never read
        del computed[:]
        "".join(talk.ask(question))
        prompt, tokens = talk.last.prompt, talk.last.tokens
        alike = len(list(takewhile(lambda pair: pair[0] == pair[1], zip(held, prompt, strict=False))))
        new = len(prompt) - alike
        assert sum(computed) <= new + len(tokens)
        assert not turns or alike >= len(turns[-1][0])  # the whole turn before it, but perhaps not its answer
        turns.append((prompt, tokens))
    hook.remove()
    talk.engine.close()
    for prompt, tokens in turns:
        assert generate(model, [prompt], max_new_tokens=8, stop_tokens=tokenizer.stop_tokens) == [tokens]
    assert max(len(tokens) for _, tokens in turns) > 3


def test_an_answer_that_is_cut_short_is_kept_and_a_question_without_one_is_not(inference):
    tokenizer, model = inference("null")
    talk = conversation(tokenizer, model, max_new_tokens=50)
    pieces = talk.ask("a")
    first = "".join(islice(pieces, 5))
    assert talk.messages == []  # until it has ended
    pieces.close()
    assert (talk.last.finish_reason, len(talk.last.tokens)) == ("cancelled", 5) and talk.seconds > 0
    assert [turn.text_content for turn in talk.messages] == ["a", first] and first
    talk.ask("never begun").close()
    assert len(talk.messages) == 2
    whole = "".join(talk.ask("b"))
    assert [turn.text_content for turn in talk.messages] == ["a", first, "b", whole]
    talk.reset("s")
    assert [turn.role for turn in talk.messages] == ["system"] and talk.system == "s"
    talk.reset(None)
    assert talk.messages == []


def test_an_answer_ends_before_what_the_template_puts_after_it(tmp_path):
    scripted_model.make(tmp_path / "m", {"A": "路市大市"})
    values = find_model(tmp_path / "m").values
    inference = training.Inference(SimpleNamespace(**values, device="cpu", log_level="INFO"))
    tokenizer, model = inference.build()
    inference.load()
    assert "".join(conversation(tokenizer, model, 3, stop_strings=("市大",)).ask("A")) == "路"


def test_a_conversation_that_is_too_long_is_one_line_and_stays_as_it_was(inference):
    tokenizer, model = inference("null")
    talk = conversation(tokenizer, model)
    "".join(talk.ask("a"))
    before = list(talk.messages)
    too_long = "tokens leaves no room for an answer: .*; shorten the prompt"
    with pytest.raises(ConfigError, match=f"{too_long}, or start a new conversation$"):
        "".join(talk.ask("市" * 300))
    assert talk.messages == before
    talk.reset(None)
    with pytest.raises(ConfigError, match=f"{too_long}$"):
        "".join(talk.ask("市" * 300))
