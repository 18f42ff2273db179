"""Answers of the engine against transformers' and against itself: alone and in company, whole and from a prefix."""

from contextlib import closing

import pytest
import torch

from tests.generation.conftest import PROMPTS
from tests.models import tiny
from torchtune_lite.checkpoint import FullModelHFCheckpointer
from torchtune_lite.errors import ConfigError
from torchtune_lite.generation import Engine, Sampling, generate
from torchtune_lite.generation import engine as engine_module
from torchtune_lite.kernels import plain
from torchtune_lite.models import from_checkpoint


def test_the_likeliest_tokens_are_those_of_transformers(theirs, greedy):
    for prompt, found in zip(PROMPTS, greedy, strict=True):
        out = theirs.generate(torch.tensor([prompt]), max_new_tokens=20, do_sample=False, pad_token_id=0)
        assert found == out[0, len(prompt) :].tolist()
        assert len(set(found)) > 3  # not one token over and over


def test_a_batch_of_unlike_lengths_gives_what_each_prompt_gives_alone(model, greedy):
    assert generate(model, PROMPTS, max_new_tokens=20) == greedy


def test_generation_ends_when_every_row_has_stopped(model, greedy):
    calls = []
    hook = model.norm.register_forward_hook(lambda *_: calls.append(1))
    generate(model, PROMPTS[:1], max_new_tokens=20, stop_tokens=[greedy[0][2]])
    hook.remove()
    assert len(calls) == greedy[0].index(greedy[0][2]) + 1


# --- families, batches, slots ---

GREEDY = {"max_new_tokens": 16}


@pytest.fixture(scope="module", params=["llama3", "gemma3", "phi3_128k"])
def family(request, tmp_path_factory):
    """Our tiny model of a family and what transformers answers to prompts of many lengths, past window and caches."""
    name = request.param
    folder = tmp_path_factory.mktemp(name)
    theirs = tiny.make(name)
    theirs.get_input_embeddings().weight.data *= 0.05  # or a tied output repeats the token that came in
    theirs.save_pretrained(folder)
    checkpointer = FullModelHFCheckpointer(folder)
    with torch.device("meta"):
        ours = from_checkpoint(**checkpointer.decoder_args | {"max_seq_len": 320})
    checkpointer.load(ours, device="cpu", dtype=torch.float32)
    draw = torch.Generator().manual_seed(1)
    prompts = [torch.randint(3, 512, (n,), generator=draw).tolist() for n in (3, 40, 1, 17, 24, 9, 2, 33)]
    theirs.generation_config.eos_token_id = None
    expected = [
        theirs.generate(torch.tensor([p]), **GREEDY, do_sample=False, pad_token_id=0)[0, len(p) :].tolist()
        for p in prompts
    ]
    return ours.eval(), prompts, expected


@pytest.mark.parametrize("slots", [1, 3, 64])
def test_greedy_answers_are_those_of_transformers_with_any_number_of_slots(family, slots):
    model, prompts, expected = family
    with closing(Engine(model, slots=slots)) as engine:
        requests = [engine.submit(prompt, Sampling(**GREEDY))[0] for prompt in prompts]
        engine.run()
    assert [request.tokens for request in requests] == expected
    assert len({token for row in expected for token in row}) > 10


def test_a_batch_of_64_answers_as_each_prompt_alone(family):
    model, prompts, expected = family
    assert generate(model, prompts * 8, **GREEDY) == expected * 8


def test_without_its_fast_paths_it_answers_the_same(family):
    model, prompts, expected = family
    with plain():
        assert generate(model, prompts, **GREEDY) == expected


@pytest.mark.parametrize("path", ["native_cache", "native_norm", "int8"])
def test_without_one_of_them_it_answers_the_same(family, path):
    model, prompts, expected = family
    with plain(path):
        assert generate(model, prompts, **GREEDY) == expected


def test_tokens_that_are_computed_ahead_change_no_answer(model, greedy):
    stops = [greedy[0][6], greedy[1][3]]
    sampled = {"max_new_tokens": 20, "temperature": 1.2, "repetition_penalty": 1.1, "seed": 3, "logprobs": 2}
    found = []
    for ahead in (1, 8):
        with closing(Engine(model, slots=2, stop_tokens=stops)) as engine:
            engine.ahead = ahead
            requests = [engine.submit(prompt, Sampling(max_new_tokens=n))[0] for n in (3, 20) for prompt in PROMPTS]
            requests += engine.submit(PROMPTS[0] * 11, Sampling(**sampled), n=2)  # which ends where the model does
            engine.run()
            going_on = [engine.submit([*PROMPTS[2], *requests[5].tokens, 9], Sampling(max_new_tokens=5))[0]]
            engine.run()
            found.append([(r.tokens, r.finish_reason, r.logprobs) for r in requests + going_on])
    assert found[0] == found[1] and len({len(tokens) for tokens, _, _ in found[0]}) > 3


def test_a_slot_takes_the_next_prompt_as_soon_as_its_answer_ends(model, greedy):
    with closing(Engine(model, slots=2)) as engine:
        lengths = [2, 9, 3, 4]
        requests = [engine.submit(PROMPTS[i % 3], Sampling(max_new_tokens=n))[0] for i, n in enumerate(lengths)]
        steps = 0
        while any(request.finish_reason is None for request in requests):
            engine.step()
            steps += 1
    assert [request.tokens for request in requests] == [greedy[i % 3][:n] for i, n in enumerate(lengths)]
    assert steps == 9  # those of 2, 3 and 4 tokens share one slot


def test_long_prompts_are_read_in_parts_beside_answers(model, monkeypatch, greedy):
    monkeypatch.setattr(engine_module, "MOST_TOKENS", 3)
    calls = computed(model)
    with closing(Engine(model, slots=3)) as engine:
        requests = [engine.submit(prompt, Sampling(max_new_tokens=20))[0] for prompt in PROMPTS]
        engine.run()
    assert [request.tokens for request in requests] == greedy
    assert max(calls()) == 3


def computed(model):
    """Count the tokens of each forward pass from here on."""
    calls = []
    hook = model.layers[0].register_forward_hook(lambda module, args, output: calls.append(args[0].shape[1]))

    def found():
        hook.remove()
        return calls

    return found


def test_caches_grow_with_what_is_there_up_to_the_bound(family):
    model, prompts, _ = family
    with closing(Engine(model, slots=2, max_seq_len=300)) as engine:
        cache = model.layers[0].attn.kv_cache
        assert cache.capacity == 256
        [long] = engine.submit(prompts[0], Sampling(max_new_tokens=290))
        [short] = engine.submit(prompts[1], Sampling(max_new_tokens=5))
        engine.run()
        assert cache.capacity == 300 and len(long.tokens) == 290
    tokens = torch.tensor([prompts[0] + long.tokens])
    with torch.no_grad():
        best = model(tokens[:, :-1])[0, len(prompts[0]) - 1 :].topk(2)
    chosen = best.indices == tokens[0, len(prompts[0]) :, None]
    close = best.values[:, 0] - best.values[:, 1] < 1e-3
    assert (chosen[:, 0] | (chosen[:, 1] & close)).all()


# --- prefixes ---


def test_a_conversation_that_goes_on_computes_only_what_is_new_and_answers_as_a_fresh_one(family):
    model, prompts, _ = family
    sampling = Sampling(max_new_tokens=8, logprobs=5)
    with closing(Engine(model, slots=2)) as engine:
        [first] = engine.submit(prompts[1], sampling)
        engine.run()
        conversation = prompts[1] + first.tokens + prompts[3]
        calls = computed(model)
        [second] = engine.submit(conversation, sampling)
        engine.run()
    longer = not model.rope.scaling or not model.rope.scaling.depends_on_length  # its keys would be rotated otherwise
    assert calls()[0] == (len(prompts[3]) + 1 if longer else len(conversation))  # and the last token of the answer
    with closing(Engine(model, slots=2)) as engine:
        [fresh] = engine.submit(conversation, sampling)
        engine.run()
    assert second.tokens == fresh.tokens
    for ours, theirs in zip(second.logprobs, fresh.logprobs, strict=True):
        assert ours.logprob == pytest.approx(theirs.logprob, abs=1e-4)
        assert [token for token, _ in ours.top] == [token for token, _ in theirs.top]


def test_samples_of_a_prompt_read_it_once_and_each_has_its_dice(model):
    sampling, prompt = Sampling(max_new_tokens=6, temperature=1.5, seed=5), PROMPTS[2]
    calls = computed(model)
    with closing(Engine(model, slots=4)) as engine:
        samples = engine.submit(prompt, sampling, n=4)
        engine.run()
        again = engine.submit(prompt, sampling, n=4)
        engine.run()
    assert calls()[:2] == [len(prompt), 1 + 3]
    assert [each.tokens for each in samples] == [each.tokens for each in again]
    assert len({tuple(each.tokens) for each in samples}) == 4


def test_a_seed_draws_the_same_whatever_is_drawn_beside_it(model):
    sampling = Sampling(max_new_tokens=10, temperature=1.2, top_p=0.9, seed=7)
    [alone] = generate(model, PROMPTS[:1], max_new_tokens=10, temperature=1.2, top_p=0.9, seed=7)
    with closing(Engine(model, slots=8)) as engine:
        others = [engine.submit(p, Sampling(max_new_tokens=7, temperature=2.0, top_k=9)) for p in PROMPTS[1:]]
        [request] = engine.submit(PROMPTS[0], sampling)
        others.append(engine.submit(PROMPTS[1], Sampling(max_new_tokens=12, repetition_penalty=1.3)))
        engine.run()
    assert request.tokens == alone and len(others) == 3


# --- settings ---


@torch.no_grad()
def test_log_probabilities_are_those_of_a_plain_pass(family):
    model, prompts, expected = family
    with closing(Engine(model)) as engine:
        requests = [
            engine.submit(p, Sampling(max_new_tokens=6, logprobs=3, repetition_penalty=1.1))[0] for p in prompts
        ]
        engine.run()
    for request in requests:
        assert len(request.logprobs) == len(request.tokens) == 6
        logits = model(torch.tensor([request.prompt + request.tokens]))[0, len(request.prompt) - 1 : -1]
        logprobs = logits.log_softmax(-1)
        for row, token, note in zip(logprobs, request.tokens, request.logprobs, strict=True):
            assert note.logprob == pytest.approx(row[token].item(), abs=1e-4)
            assert [value for _, value in note.top] == pytest.approx(row.topk(3).values.tolist(), abs=1e-4)


@torch.no_grad()
def test_a_repetition_penalty_counts_prompt_and_answer(theirs, model):
    for prompt in PROMPTS:
        out = theirs.generate(
            torch.tensor([prompt]), max_new_tokens=20, do_sample=False, pad_token_id=0, repetition_penalty=1.4
        )
        [found] = generate(model, [prompt], max_new_tokens=20, repetition_penalty=1.4)
        assert found == out[0, len(prompt) :].tolist()
        assert found != generate(model, [prompt], max_new_tokens=20)[0]


def test_a_stop_string_ends_an_answer_over_token_borders(model, greedy):
    class Letters:
        def decode(self, ids):
            return "".join(f"{token:02d}" for token in ids)

    text = Letters().decode(greedy[0])
    stop = text[9:12]  # which begins within a token
    end = text.index(stop) + len(stop)
    with closing(Engine(model, tokenizer=Letters())) as engine:
        [request] = engine.submit(PROMPTS[0], Sampling(max_new_tokens=20, stop_strings=[stop]))
        [other] = engine.submit(PROMPTS[1], Sampling(max_new_tokens=20))
        engine.run()
    assert request.finish_reason == "stop" and request.tokens == greedy[0][: -(-end // 2)]
    assert other.finish_reason == "length" and other.tokens == greedy[1]


def test_answers_in_int8_are_the_same_in_any_batch(family):
    model, prompts, expected = family
    together = generate(model, prompts, **GREEDY, int8=True)
    assert together == [generate(model, [p], **GREEDY, int8=True)[0] for p in prompts]
    first = [ours[0] == theirs[0] for ours, theirs in zip(together, expected, strict=False)]
    assert sum(first) >= len(first) / 2


# --- streams ---


def test_a_stream_that_is_closed_frees_its_slot(model, greedy):
    with closing(Engine(model, slots=1)) as engine:
        stream = engine.stream(PROMPTS[0], Sampling(max_new_tokens=20))
        assert [next(stream) for _ in range(3)] == greedy[0][:3]
        stream.close()
        assert list(engine.stream(PROMPTS[1], Sampling(max_new_tokens=20))) == greedy[1]


def test_a_request_is_cancelled_where_it_runs_and_where_it_waits(model, greedy):
    with closing(Engine(model, slots=1)) as engine:
        running, waiting, last = (engine.submit(p, Sampling(max_new_tokens=20))[0] for p in PROMPTS)
        engine.step()
        engine.cancel(waiting)
        engine.cancel(running)
        engine.run()
        engine.cancel(last)
    assert [running.finish_reason, waiting.finish_reason, last.finish_reason] == ["cancelled", "cancelled", "length"]
    assert [running.tokens, waiting.tokens, last.tokens] == [greedy[0][:1], [], greedy[2]]


@pytest.mark.parametrize(
    ("prompt", "options", "problem"),
    [
        ([], {}, "a prompt has no tokens"),
        ([1], {"stop_strings": ["a"]}, "stop_strings need a tokenizer"),
        ([1] * 48, {}, "a prompt of 48 tokens leaves no room"),
    ],
)
def test_what_cannot_be_answered_is_one_line(model, prompt, options, problem):
    with closing(Engine(model)) as engine, pytest.raises(ConfigError, match=f"^{problem}"):
        engine.submit(prompt, Sampling(max_new_tokens=3, **options))
    with pytest.raises(ConfigError, match="^slots is 0; it must be 1 or more"):
        Engine(model, slots=0)
