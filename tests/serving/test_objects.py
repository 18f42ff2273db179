from dataclasses import replace

import pytest
from openai.types import Completion, Model
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from torchtune_lite.serving.objects import ChatAnswer, CompletionAnswer, error_object, model_object
from torchtune_lite.serving.parameters import RequestError
from torchtune_lite.serving.samples import Piece, Token

PIECES = [
    Piece(0, "", 1, [Token("\ufffd", -2.0, [])], None),
    Piece(0, "é", 1, [Token("é", -0.5, [("é", -0.5), ("<eos>", -1.0)])], None),
    Piece(0, "b", 1, [Token("b", -0.1, [])], "length"),
]
KINDS = [ChatAnswer, CompletionAnswer]


def filled(kind, with_logprobs=True, include_usage=True):
    """Gives an answer to which all pieces were added, and its chunks."""
    answer, chunks = kind("m", 1, 5, with_logprobs), []
    for piece in PIECES if with_logprobs else [replace(each, logprobs=[]) for each in PIECES]:
        answer.add(piece)
        chunks += answer.chunks(piece, include_usage)
    return answer, chunks


def test_objects_are_those_of_the_client_library():
    """Its types take any field, so what they do not declare is looked for; it reads parts of a completion unchecked."""
    (chat, chunks), (completion, _) = filled(ChatAnswer), filled(CompletionAnswer)
    made = [ChatCompletion.model_validate(chat.whole()), Completion.model_validate(completion.whole())]
    made += map(ChatCompletionChunk.model_validate, chunks)
    assert not any(each.model_extra or each.choices and each.choices[0].model_extra for each in made)
    assert not Model.model_validate(model_object("m", 1, 9)).model_extra.keys() - {"max_model_len"}


def test_a_chat_is_whole_or_in_chunks():
    answer, chunks = filled(ChatAnswer)
    [choice] = answer.whole()["choices"]
    assert choice["message"] == {"role": "assistant", "content": "éb", "refusal": None}
    assert choice["finish_reason"] == "length"
    assert [each["choices"][0]["delta"] for each in chunks[:-1]] == [
        {"role": "assistant", "content": ""},
        {"content": "é"},
        {"content": "b"},
    ]
    assert [each["choices"][0]["finish_reason"] for each in chunks[:-1]] == [None, None, "length"]
    tokens = choice["logprobs"]["content"]
    assert tokens == [token for each in chunks[:-1] for token in each["choices"][0]["logprobs"]["content"]]
    assert [token["bytes"] for token in tokens] == [None, [195, 169], [98]]
    assert tokens[1]["top_logprobs"][1] == {"token": "<eos>", "logprob": -1.0, "bytes": list(b"<eos>")}


def test_a_completion_is_whole_or_in_chunks():
    answer, chunks = filled(CompletionAnswer)
    [choice] = answer.whole()["choices"]
    assert (choice["text"], choice["finish_reason"]) == ("éb", "length")
    assert [each["choices"][0]["text"] for each in chunks[:-1]] == ["", "é", "b"]
    assert choice["logprobs"] == {
        "tokens": ["\ufffd", "é", "b"],
        "token_logprobs": [-2.0, -0.5, -0.1],
        "top_logprobs": [{}, {"é": -0.5, "<eos>": -1.0}, {}],
        "text_offset": [0, 1, 2],
    }
    offsets = [each["choices"][0]["logprobs"]["text_offset"] for each in chunks[:-1]]
    assert offsets == [[0], [1], [2]]


@pytest.mark.parametrize("kind", KINDS)
def test_the_usage_comes_last_where_it_is_asked_for(kind):
    answer, chunks = filled(kind)
    usage = {"prompt_tokens": 5, "completion_tokens": 3, "total_tokens": 8}
    assert answer.whole()["usage"] == chunks[-1]["usage"] == usage and chunks[-1]["choices"] == []
    assert all(each["usage"] is None for each in chunks[:-1])
    assert not any("usage" in each for each in filled(kind, include_usage=False)[1])


def test_nothing_is_sent_until_there_is_something():
    answer, chunks = filled(ChatAnswer, with_logprobs=False, include_usage=False)
    [first, _] = [each["choices"][0] for each in chunks]  # not the beginning of a character
    assert first["delta"] == {"role": "assistant", "content": "é"} and first["logprobs"] is None


def test_errors_say_whose_they_are():
    assert error_object(RequestError("no", "n", code="c")) == {
        "error": {"message": "no", "type": "invalid_request_error", "param": "n", "code": "c"}
    }
    assert error_object(RequestError("no", status=503))["error"]["type"] == "server_error"
