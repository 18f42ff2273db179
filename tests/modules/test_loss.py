"""The chunked loss against cross-entropy over all logits: value, gradients, and the number of projected tokens."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.testing import assert_close

from torchtune_lite.modules import loss
from torchtune_lite.modules.loss import CEWithChunkedOutputLoss, LinearCrossEntropyLoss, token_log_probs
from torchtune_lite.peft import LoRALinear

B, S, D, V = 3, 10, 16, 50


def problem(keep, dtype=torch.float32):
    """An output projection, hidden states and labels of which the share `keep` counts."""
    torch.manual_seed(0)
    output = nn.Linear(D, V, bias=False, dtype=dtype)
    hidden = torch.randn(B, S, D, dtype=dtype, requires_grad=True)
    labels = torch.randint(0, V, (B, S))
    labels[torch.rand(B, S) >= keep] = -100
    return output, hidden, labels


def value_and_gradients(loss, output, hidden):
    return loss, *torch.autograd.grad(loss, [hidden, output.weight])


@pytest.mark.parametrize("chunk_size", [1, 7, 1024])
@pytest.mark.parametrize("keep", [1.0, 0.4, 0.05])
def test_value_and_gradients_are_those_of_cross_entropy(keep, chunk_size):
    output, hidden, labels = problem(keep)
    assert (labels != -100).any()
    dense = F.cross_entropy(output(hidden).flatten(0, 1), labels.flatten(), ignore_index=-100, reduction="sum")
    expected = value_and_gradients(dense, output, hidden)
    ours = value_and_gradients(LinearCrossEntropyLoss(chunk_size)(output, hidden, labels), output, hidden)
    for found, wanted in zip(ours, expected, strict=True):
        assert_close(found, wanted, atol=1e-5, rtol=1e-5)


def test_of_a_bf16_model_the_gradient_is_as_good_as_that_of_all_logits_at_once():
    output, hidden, labels = problem(keep=0.6, dtype=torch.bfloat16)
    exact_hidden = hidden.detach().double().requires_grad_()
    logits = F.linear(exact_hidden, output.weight.double())
    exact = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100, reduction="sum") / 7
    (wanted,) = torch.autograd.grad(exact, exact_hidden)
    dense = F.cross_entropy(output(hidden).flatten(0, 1).float(), labels.flatten(), ignore_index=-100, reduction="sum")

    def error(loss):
        return (torch.autograd.grad(loss / 7, hidden)[0] - wanted).norm() / wanted.norm()

    assert error(LinearCrossEntropyLoss(4)(output, hidden, labels)) < 1.5 * error(dense) < 0.01


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_adapter_on_the_output_is_trained_and_its_frozen_base_is_not(dtype):
    torch.manual_seed(0)
    _, hidden, labels = problem(keep=0.6, dtype=dtype)
    output = LoRALinear(D, V, rank=4, alpha=8).to(dtype)
    nn.init.normal_(output.lora_b.weight)
    dense = F.cross_entropy(output(hidden).flatten(0, 1).float(), labels.flatten(), ignore_index=-100, reduction="sum")
    inputs = [hidden, output.lora_a.weight, output.lora_b.weight]
    wanted = torch.autograd.grad(dense, inputs)
    found = torch.autograd.grad(LinearCrossEntropyLoss(4)(output, hidden, labels), inputs)
    for ours, expected in zip(found, wanted, strict=True):
        assert ours.dtype == dtype
        assert (ours - expected).norm() / expected.norm() < (1e-6 if dtype == torch.float32 else 0.02)
    assert output.weight.grad is None


def test_a_weight_shared_with_the_embedding_gets_both_gradients():
    output, _, labels = problem(keep=1.0)
    embedding = nn.Embedding(V, D)
    embedding.weight = output.weight
    tokens = torch.randint(0, V, (B, S))
    losses = (
        LinearCrossEntropyLoss(4)(output, embedding(tokens), labels),
        F.cross_entropy(output(embedding(tokens)).flatten(0, 1), labels.flatten(), reduction="sum"),
    )
    found, wanted = (torch.autograd.grad(loss, output.weight)[0] for loss in losses)
    assert_close(found, wanted)


def test_nothing_is_kept_of_the_logits():
    output, hidden, labels = problem(keep=1.0)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.shape) or t, lambda t: t):
        loss = LinearCrossEntropyLoss(10)(output, hidden, labels)
    assert (10, V) not in kept and (B * S, V) not in kept
    with torch.no_grad():
        assert not LinearCrossEntropyLoss(10)(output, hidden, labels).requires_grad
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="differentiated already"):
        loss.backward()


@pytest.mark.parametrize(("limit", "rows"), [(4 * V, 4), (V - 1, 1)])
def test_the_chunk_follows_from_the_vocabulary(limit, rows, monkeypatch):
    monkeypatch.setattr(loss, "CHUNK_CPU", limit)
    output, hidden, labels = problem(keep=1.0)
    seen = []
    output.register_forward_hook(lambda module, inputs, logits: seen.append(len(logits)))
    LinearCrossEntropyLoss()(output, hidden, labels)
    assert max(seen) == rows


@pytest.mark.parametrize("slab", [1, V, 3 * V])
def test_slabs_of_the_softmax_change_nothing(slab, monkeypatch):
    output, hidden, labels = problem(keep=1.0)
    expected = value_and_gradients(LinearCrossEntropyLoss()(output, hidden, labels), output, hidden)
    monkeypatch.setattr(loss, "SLAB_CPU", slab)
    found = value_and_gradients(LinearCrossEntropyLoss()(output, hidden, labels), output, hidden)
    for ours, wanted in zip(found, expected, strict=True):
        assert_close(ours, wanted)


def test_without_any_label_the_loss_is_zero_and_so_are_the_gradients():
    output, hidden, labels = problem(keep=0.0)
    loss, *gradients = value_and_gradients(LinearCrossEntropyLoss()(output, hidden, labels), output, hidden)
    assert loss.item() == 0.0
    assert all(torch.equal(gradient, torch.zeros_like(gradient)) for gradient in gradients)


def test_only_rows_with_a_label_are_projected_and_never_more_than_a_chunk():
    output, hidden, labels = problem(keep=0.5)
    num_labels = int((labels != -100).sum())
    rows = []
    output.register_forward_hook(lambda module, inputs, logits: rows.append(len(logits)))
    LinearCrossEntropyLoss(chunk_size=4)(output, hidden, labels)
    assert sum(rows) == num_labels
    assert max(rows) == 4


def test_the_softmax_of_a_bf16_model_is_float32():
    output, hidden, labels = problem(keep=1.0, dtype=torch.bfloat16)
    loss = LinearCrossEntropyLoss(chunk_size=8)(output, hidden, labels)
    exact = F.cross_entropy(output(hidden).float().flatten(0, 1), labels.flatten(), reduction="sum")
    assert loss.dtype == torch.float32
    assert_close(loss, exact, atol=0, rtol=1e-5)


def test_another_ignore_index_is_honoured():
    output, hidden, labels = problem(keep=0.5)
    expected = LinearCrossEntropyLoss()(output, hidden, labels)
    labels[labels == -100] = 7_777
    assert_close(LinearCrossEntropyLoss(ignore_index=7_777)(output, hidden, labels), expected)


@pytest.mark.parametrize("slab", [V, 1 << 18])
def test_tells_the_loss_of_each_token(slab, monkeypatch):
    monkeypatch.setattr(loss, "SLAB_CPU", slab)
    output, hidden, labels = problem(keep=0.5)
    token_losses = torch.zeros(labels.shape)
    summed = LinearCrossEntropyLoss(4)(output, hidden, labels, token_losses=token_losses)
    exact = F.cross_entropy(output(hidden).flatten(0, 1), labels.flatten(), reduction="none", ignore_index=-100)
    assert_close(token_losses, exact.view(labels.shape))
    assert_close(summed, token_losses.sum())
    assert torch.equal(summed, LinearCrossEntropyLoss(4)(output, hidden, labels))


def test_a_chunk_without_rows_is_an_error():
    with pytest.raises(ValueError, match="chunk_size 0 must be at least 1"):
        LinearCrossEntropyLoss(chunk_size=0)


def test_torchtunes_older_name_is_the_same_loss():
    assert CEWithChunkedOutputLoss is LinearCrossEntropyLoss


def test_rows_that_are_known_are_not_looked_for():
    output, hidden, labels = problem(keep=0.5)
    ours = LinearCrossEntropyLoss()
    expected = value_and_gradients(ours(output, hidden, labels), output, hidden)
    rows = ours.rows_of(labels)
    assert rows.tolist() == [i for i, label in enumerate(labels.flatten().tolist()) if label != -100]
    ours.rows_of = None
    found = value_and_gradients(ours(output, hidden, labels, rows), output, hidden)
    for mine, wanted in zip(found, expected, strict=True):
        assert torch.equal(mine, wanted)


@pytest.mark.parametrize("chunk_size", [1, 7, None])
def test_log_probabilities_and_their_gradients_are_those_of_all_logits(chunk_size):
    output, hidden, labels = problem(keep=0.5)
    weights = torch.randn(B, S)  # what a preference loss, or a ratio of policies, makes of each token
    dense = -F.cross_entropy(output(hidden).flatten(0, 1), labels.flatten(), ignore_index=-100, reduction="none")
    ours = token_log_probs(output, hidden, labels, chunk_size)
    assert_close(ours, dense.view(B, S))
    assert (ours != 0).equal(labels != -100)
    expected = value_and_gradients((weights * dense.view(B, S)).sum().sigmoid(), output, hidden)
    for found, wanted in zip(
        value_and_gradients((weights * ours).sum().sigmoid(), output, hidden), expected, strict=True
    ):
        assert_close(found, wanted, atol=1e-6, rtol=1e-5)
    loss = LinearCrossEntropyLoss(chunk_size)(output, hidden, labels)
    assert_close(-ours.sum(), loss)


def test_log_probabilities_project_a_chunk_at_a_time_and_keep_no_logits():
    output, hidden, labels = problem(keep=1.0)
    rows, kept = [], []
    output.register_forward_hook(lambda module, inputs, logits: rows.append(len(logits)))
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.shape) or t, lambda t: t):
        log_probs = token_log_probs(output, hidden, labels, 4)
    assert max(rows) == 4 and sum(rows) == B * S
    assert all(V not in shape or shape == output.weight.shape for shape in kept)
    with torch.no_grad():
        assert not token_log_probs(output, hidden, labels).requires_grad
    log_probs.sum().backward()
    assert sum(rows) == 3 * B * S and hidden.grad.abs().sum() > 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("chunk_size", [7, None])
def test_the_likeliest_tokens_are_those_of_all_logits(chunk_size, dtype):
    output, hidden, labels = problem(keep=0.5, dtype=dtype)
    likeliest = torch.full_like(labels, -1)
    with torch.inference_mode():
        log_probs = token_log_probs(output, hidden, labels, chunk_size, likeliest=likeliest)
        logits = output(hidden)
    assert torch.equal(likeliest, logits.argmax(-1).where(labels != -100, -1))
    dense = logits.float().log_softmax(-1).gather(-1, labels.clamp(min=0)[..., None])[..., 0]
    assert_close(log_probs, dense.where(labels != -100, 0.0))


def test_of_an_adapter_on_the_output_only_what_is_trained_gets_a_gradient():
    _, hidden, labels = problem(keep=0.6, dtype=torch.bfloat16)
    output = LoRALinear(D, V, rank=4, alpha=8).to(torch.bfloat16)
    nn.init.normal_(output.lora_b.weight)
    token_log_probs(output, hidden, labels, 4).pow(2).sum().backward()
    assert output.weight.grad is None and output.lora_a.weight.grad.dtype == torch.bfloat16


def test_without_any_label_all_log_probabilities_are_zero():
    output, hidden, labels = problem(keep=0.0)
    log_probs = token_log_probs(output, hidden, labels)
    log_probs.sum().backward()
    assert not log_probs.any() and not hidden.grad.any() and not output.weight.grad.any()
