import pytest

from torchtune_lite.evaluation.texts import generate_texts
from torchtune_lite.generation import Sampling, generate

TEXTS = ["台北市 信義區 市府路", "高雄市", "828高雄市永安區金信西路 ", "a b", "新北市 林口區"]


@pytest.fixture
def prompts(base_tokenizer):
    return [base_tokenizer.encode(text, add_eos=False) for text in TEXTS]


@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_each_text_is_that_of_its_prompt_alone(batch_size, prompts, base_model, base_tokenizer):
    samplings = [Sampling(max_new_tokens=4 + number) for number in range(len(prompts))]
    found = dict(generate_texts(base_model, base_tokenizer, prompts, samplings, batch_size=batch_size))
    for number, prompt in enumerate(prompts):
        how = {"max_new_tokens": 4 + number, "stop_tokens": base_tokenizer.stop_tokens}
        [tokens] = generate(base_model, [prompt], **how)
        assert found[number] == base_tokenizer.decode(tokens)
    assert len(set(found.values())) > 3


def test_a_text_ends_before_a_stop_string_and_at_the_last_position(prompts, base_model, base_tokenizer):
    [(_, whole)] = generate_texts(base_model, base_tokenizer, prompts[:1], [Sampling(max_new_tokens=8)], batch_size=1)
    stop = whole[3:5]
    sampling = Sampling(max_new_tokens=8, stop_strings=("\0", stop))
    [(_, text)] = generate_texts(base_model, base_tokenizer, prompts[:1], [sampling], batch_size=1)
    assert text == whole[: whole.index(stop)]
    [(_, short)] = generate_texts(base_model, base_tokenizer, prompts[:1], [Sampling(max_new_tokens=2)], batch_size=1)
    how = {"batch_size": 1, "max_seq_len": len(prompts[0]) + 2}
    [(_, text)] = generate_texts(base_model, base_tokenizer, prompts[:1], [Sampling(max_new_tokens=8)], **how)
    assert text == short != whole


def test_a_model_that_is_left_half_way_trains_on(prompts, base_model, base_tokenizer):
    base_model.train()
    found = generate_texts(base_model, base_tokenizer, prompts, [Sampling(max_new_tokens=2)] * 5, batch_size=2)
    next(found)
    assert not base_model.training
    found.close()
    assert base_model.training and base_model.layers[0].attn.kv_cache is None
    base_model.eval()
    assert list(generate_texts(base_model, base_tokenizer, [], [], batch_size=2)) == []
