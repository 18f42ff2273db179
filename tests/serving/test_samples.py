import asyncio
import threading

import pytest

from torchtune_lite.generation import Sampling, TokenLogprobs
from torchtune_lite.serving.parameters import Call, RequestError
from torchtune_lite.serving.samples import Sample, pieces
from torchtune_lite.serving.worker import Progress, Worker


def fed(sample, tokens, reason="stop"):
    """Feeds tokens one at a time; gives the texts."""
    ends = [None] * (len(tokens) - 1) + [reason]
    return [sample.piece(Progress([token], [], end)).text for token, end in zip(tokens, ends, strict=True)]


@pytest.mark.parametrize("text", ["鬱 é 市", "a 🙂🙂b", "naïve"])
def test_text_comes_in_whole_characters(text, tokenizer):
    tokens = tokenizer.encode(text, add_bos=False, add_eos=False)
    texts = fed(Sample(0, tokenizer, {}, (), ()), tokens)
    assert "".join(texts) == text and "\ufffd" not in "".join(texts)
    assert len(tokens) > len(text) and "" in texts  # some characters are several tokens


def test_what_is_left_of_a_character_comes_at_the_end(tokenizer):
    tokens = tokenizer.encode("鬱", add_bos=False, add_eos=False)[:-1]
    texts = fed(Sample(0, tokenizer, {}, (), ()), tokens, "length")
    assert set(texts[:-1]) == {""} and texts[-1] == tokenizer.decode(tokens)


def test_text_that_goes_on_keeps_the_space_it_starts_with(tokenizer):
    prompt = tokenizer.encode("the road", add_bos=True, add_eos=False)
    whole = tokenizer.encode("the road is long", add_bos=True, add_eos=False)
    assert whole[: len(prompt)] == prompt
    assert "".join(fed(Sample(0, tokenizer, {}, (), prompt), whole[len(prompt) :])) == " is long"
    assert "".join(fed(Sample(0, tokenizer, {}, (), ()), whole[len(prompt) :])) == "is long"


def test_text_ends_before_a_stop_string(tokenizer):
    tokens = tokenizer.encode("one two three", add_bos=False, add_eos=False)
    assert "".join(fed(Sample(0, tokenizer, {}, ["two"], ()), tokens)) == "one "


def test_tokens_have_the_text_that_they_add(tokenizer):
    tokens = tokenizer.encode("a road é", add_bos=False, add_eos=False)
    notes = [TokenLogprobs(-1.0, [(tokenizer.eos_id, -0.5), (token, -1.0)]) for token in tokens]
    piece = Sample(0, tokenizer, {tokenizer.eos_id: "<eos>"}, (), ()).piece(Progress(tokens, notes, "stop"))
    texts = [token.text for token in piece.logprobs]
    assert "".join(texts) == "a road \ufffdé" and piece.text == "a road é"
    assert [token.top for token in piece.logprobs] == [[("<eos>", -0.5), (text, -1.0)] for text in texts]


@pytest.fixture
def worker(engine):
    worker = Worker(engine)
    worker.start()
    yield worker
    worker.stop()
    worker.join(60)


def call(max_new_tokens, n=1, prompts=((1, 300),)):
    samplings = [Sampling(max_new_tokens=max_new_tokens, temperature=1.0, seed=3)] * len(prompts)
    return Call(list(map(list, prompts)), samplings, n, True, False, False)


def test_samples_are_numbered_prompt_by_prompt_and_each_ends(worker, tokenizer):
    async def collect():
        return [piece async for piece in pieces(call(5, n=2, prompts=[(1, 300), (1, 301)]), worker, tokenizer)]

    found = asyncio.run(collect())
    assert sorted(piece.index for piece in found if piece.finish_reason) == [0, 1, 2, 3]
    counts = [sum(piece.num_tokens for piece in found if piece.index == index) for index in range(4)]
    assert all(0 <= count <= 5 for count in counts) and max(counts) == 5


def test_closing_cancels(worker, tokenizer, engine):
    async def leave():
        news = pieces(call(200), worker, tokenizer)
        await anext(news)
        await news.aclose()

    asyncio.run(leave())
    worker.stop()
    worker.join(60)
    assert not any(slot.request for slot in engine._slots)


def test_the_end_of_the_server_is_an_error(worker, tokenizer, engine, monkeypatch):
    step, steps, go = engine.step, [], threading.Event()

    def held():
        assert not steps or go.wait(60)
        steps.append(step())
        return steps[-1]

    monkeypatch.setattr(engine, "step", held)

    async def stop():
        async for _ in pieces(call(200), worker, tokenizer):
            worker.stop()
            go.set()

    with pytest.raises(RequestError, match="the server is stopping") as stopped:
        asyncio.run(stop())
    assert stopped.value.status == 503
