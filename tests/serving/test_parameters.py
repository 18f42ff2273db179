import json

import pytest

from torchtune_lite.data import Message
from torchtune_lite.serving.parameters import Reader, RequestError

ASKED = [{"role": "user", "content": "a"}]


def chat(reader, **given):
    return reader.chat({"messages": ASKED} | given)


def complete(reader, **given):
    return reader.completion({"prompt": "a"} | given)


def test_a_conversation_is_encoded_by_the_template_as_in_training(reader, tokenizer):
    turns = [("system", "Be brief."), ("user", "a"), ("assistant", "b"), ("user", "c")]
    call = chat(reader, messages=[{"role": role, "content": text} for role, text in turns])
    assert call.prompts == [tokenizer.tokenize_messages([Message(*turn) for turn in turns], add_eos=False)[0]]
    parts = [{"type": "text", "text": "a"}]
    assert chat(reader, messages=[{"role": "user", "content": parts}]).prompts == chat(reader).prompts


def test_the_system_prompt_of_the_training_stands_in_for_none(tokenizer, reader):
    own = Reader(tokenizer, 256, 1152, system="Be brief.")
    system = [{"role": "system", "content": "Be brief."}]
    assert own.chat({"messages": ASKED}).prompts == chat(reader, messages=system + ASKED).prompts
    other = [{"role": "developer", "content": "Be long."}, *ASKED]
    assert own.chat({"messages": other}).prompts == chat(reader, messages=other).prompts


def test_what_the_training_put_around_a_question_is_put_around_each(tokenizer, reader):
    own = Reader(tokenizer, 256, 1152, question="Q: {}".format)
    turns = [("user", "a"), ("assistant", "b"), ("user", "c")]
    asked, put = ([{"role": role, "content": q * (role == "user") + text} for role, text in turns] for q in ("", "Q: "))
    assert own.chat({"messages": asked}).prompts == chat(reader, messages=put).prompts


def test_parameters_become_settings_of_the_sampling(reader):
    given = {"temperature": 0.5, "top_k": 3, "top_p": 0.9, "min_p": 0.1, "repetition_penalty": 1.1, "seed": 7}
    call = chat(reader, **given, max_completion_tokens=9, stop="x", n=2, logprobs=True, top_logprobs=3)
    [sampling] = call.samplings
    assert {name: getattr(sampling, name) for name in given} == given
    assert (sampling.max_new_tokens, sampling.stop_strings, sampling.logprobs, call.n) == (9, ("x",), 3, 2)


def test_what_is_left_out_is_as_openai_has_it(reader):
    call = chat(reader)
    assert (call.samplings[0].temperature, call.samplings[0].logprobs, call.n, call.stream) == (1.0, None, 1, False)
    assert call.samplings[0].max_new_tokens == reader.max_seq_len - len(call.prompts[0])
    assert complete(reader).samplings[0].max_new_tokens == 16 and not chat(reader).continues
    assert chat(reader, logprobs=True).samplings[0].logprobs == 0 and complete(reader).continues
    nulls = dict.fromkeys(["temperature", "stop", "n", "seed", "stream_options", "tools", "logit_bias", "top_p"])
    assert chat(reader, **nulls) == call


def test_an_answer_is_capped_at_the_positions_that_are_left(reader):
    call = complete(reader, max_tokens=1000)
    assert call.samplings[0].max_new_tokens == reader.max_seq_len - len(call.prompts[0])


def test_prompts_are_texts_or_tokens_one_or_several(reader, tokenizer):
    a, b = (tokenizer.encode(text, add_bos=True, add_eos=False) for text in "ab")
    assert complete(reader, prompt="a").prompts == complete(reader, prompt=a).prompts == [a]
    assert complete(reader, prompt=["a", "b"]).prompts == complete(reader, prompt=[a, b]).prompts == [a, b]


@pytest.mark.parametrize(
    "given",
    [
        {"frequency_penalty": 0, "presence_penalty": 0.0, "logit_bias": {}, "tools": [], "tool_choice": "none"},
        {"response_format": {"type": "text"}, "user": "me", "metadata": {"a": "b"}, "store": True},
    ],
)
def test_what_asks_for_nothing_is_taken(given, reader):
    assert chat(reader, **given) == chat(reader)


@pytest.mark.parametrize(
    ("given", "param", "message"),
    [
        ({"messages": None}, "messages", "messages is missing; give the turns of a conversation"),
        ({"messages": []}, "messages", "messages is missing; give the turns of a conversation"),
        ({"messages": "a"}, "messages", "messages must be a list, got str"),
        ({"messages": ["a"]}, "messages", "messages[0] is str; conversation_style=openai "),
        ({"messages": [{"role": "me", "content": "a"}]}, "messages", "messages[0].role='me' is not one of system, "),
        ({"messages": [{"role": "user", "content": 7}]}, "messages", "messages: the content of a turn must be text"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
            "messages",
            "messages[0].content[0] is not a text part",
        ),
        ({"messages": [ASKED[0] | {"name": "me"}]}, "messages", "messages: 'name' of a turn is not read; leave it out"),
        (
            {"messages": [{"role": "user", "content": "a" * 300}]},
            "messages",
            "a prompt of 307 tokens leaves no room fo",
        ),
        (
            {"messages": [{"role": "user", "content": "a" * 5000}, {"role": "user", "content": "a" * 4000}]},
            "messages",
            "messages has 9,000 characters, too many for the model's 256 tokens",
        ),
        ({"temperature": -1}, "temperature", "temperature is -1; it must be 0 or more"),
        ({"temperature": "hot"}, "temperature", "temperature must be a number, got str"),
        ({"temperature": True}, "temperature", "temperature must be a number, got bool"),
        ({"temperature": json.loads("NaN")}, "temperature", "temperature is nan; it must be 0 or more"),
        ({"top_p": 1.5}, "top_p", "top_p is 1.5; it must be above 0 and at most 1"),
        ({"top_k": 0}, "top_k", "top_k is 0; it must be 1 or more"),
        ({"top_k": 2.5}, "top_k", "top_k must be an integer, got float"),
        ({"min_p": 2}, "min_p", "min_p is 2; it must be between 0 and 1"),
        ({"n": 0}, "n", "n is 0; it must be from 1 to 128"),
        ({"n": 129}, "n", "n is 129; it must be from 1 to 128"),
        ({"max_tokens": 0}, "max_tokens", "max_tokens is 0; it must be 1 or more"),
        ({"max_tokens": 1, "max_completion_tokens": 1}, "max_tokens", "max_tokens is the older name of max_completion"),
        ({"stop": ["a", ""]}, "stop", "stop must be a text or up to 4 of them, none empty"),
        ({"stop": list("abcde")}, "stop", "stop must be a text or up to 4 of them, none empty"),
        ({"stop": {"a": 1}}, "stop", "stop must be a text or a list, got dict"),
        ({"top_logprobs": 2}, "top_logprobs", "top_logprobs needs logprobs: true"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "top_logprobs is 21; it must be from 0 to 20"),
        ({"stream_options": {"include_usage": True}}, "stream_options", "stream_options needs stream: true"),
        ({"stream": True, "stream_options": {"x": 1}}, "stream_options", "stream_options.x is not served"),
        ({"frequency_penalty": 0.5}, "frequency_penalty", "frequency_penalty is not served; leave it out"),
        ({"tools": [{"type": "function"}]}, "tools", "tools is not served; leave it out"),
        ({"response_format": {"type": "json_object"}}, "response_format", "response_format is not served; leave it o"),
        ({"temprature": 1}, "temprature", "'temprature' is not a parameter that is served; did you mean 'temperature"),
        ({"prompt": "a"}, "prompt", "'prompt' is not a parameter that is served"),
    ],
)
def test_a_conversation_that_is_refused_is_told_why(given, param, message, reader):
    with pytest.raises(RequestError) as refused:
        chat(reader, **given)
    assert str(refused.value).startswith(message) and "\n" not in str(refused.value)
    assert (refused.value.param, refused.value.status) == (param, 400)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"prompt": None}, "prompt is missing; give a text, tokens, or a list of these"),
        ({"prompt": []}, "prompt is missing; give a text, tokens, or a list of these"),
        ({"prompt": [1, 1152]}, "prompt: tokens must be integers from 0 to 1151"),
        ({"prompt": [True]}, "prompt: tokens must be integers from 0 to 1151"),
        ({"prompt": [[]]}, "prompt is empty, and the tokenizer has no BOS to start from"),
        ({"prompt": ["a", None]}, "prompt must be text, got null"),
        ({"prompt": ["a", "a" * 9000]}, "prompt has 9,000 characters, too many for the model's 256 tokens"),
        ({"prompt": "\ud800"}, "prompt has half a surrogate pair at character 1"),
        ({"prompt": ["a"] * 129}, "prompt has 129 texts; at most 128"),
        ({"prompt": ["a"] * 128, "n": 9}, "n=9 for 128 prompts: at most 1,024 answers in all"),
        ({"logprobs": 6}, "logprobs is 6; it must be from 0 to 5"),
        ({"logprobs": True}, "logprobs must be an integer, got bool"),
        ({"echo": True}, "echo is not served; leave it out"),
        ({"suffix": "b"}, "suffix is not served; leave it out"),
        ({"messages": ASKED}, "'messages' is not a parameter that is served"),
    ],
)
def test_a_text_to_continue_that_is_refused_is_told_why(given, message, reader):
    with pytest.raises(RequestError, match="^" + message.replace("[", r"\[").replace("(", r"\(")):
        complete(reader, **given)


@pytest.mark.parametrize("body", [None, [], "a", 1])
def test_the_body_is_an_object(body, reader):
    with pytest.raises(RequestError, match="the body must be a JSON object"):
        reader.chat(body)
