import torch

from tests.export.models import make, prompts
from torchtune_lite.export import open_source
from torchtune_lite.export.comparison import compare, log_probs


def test_a_model_read_layer_by_layer_computes_what_it_does_whole(llama, monkeypatch):
    source = open_source(llama)
    [ids] = prompts(50)
    with torch.no_grad():
        expected = make("llama3_1", monkeypatch)(ids).logits.log_softmax(-1)
    assert (log_probs(source.model, source.base, ids) - expected).abs().max() < 1e-4
    assert all(param.is_meta for param in source.model.parameters())


def test_at_no_time_is_more_than_a_part_in_memory(llama):
    source, held, most = open_source(llama), set(), []

    def counting(name, weight):
        def read():
            held.add(name)
            most.append(sum(not param.is_meta for param in source.model.parameters()))
            return weight.read()

        return weight.mapped(lambda _: read())

    log_probs(source.model, {name: counting(name, weight) for name, weight in source.base.items()}, prompts(3)[0])
    assert held == set(source.base)
    assert max(most) < 9  # the parameters of a layer


def test_the_difference_is_that_of_the_weights(llama, plain):
    source = open_source(llama)
    same = compare(source, plain(source), source.weights)
    assert same.largest == 0 and same.divergence == 0
    off = {name: weight.mapped(lambda values: values * 1.01) for name, weight in source.weights.items()}
    found = compare(source, plain(source), off)
    assert 0.001 < found.largest < 1 and found.divergence > 1e-6
    assert "are off from the source's by at most" in str(found)
