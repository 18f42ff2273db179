"""Loss and gradients of samples that are packed, joined or padded, against those of each sample by itself."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchtune_lite.models.llama2 import lora_llama2

from torchtune_lite.data import PackedDataset, make_batches
from torchtune_lite.kernels import varlen_attention
from torchtune_lite.modules.loss import LinearCrossEntropyLoss

SIZES = {"vocab_size": 50, "num_layers": 2, "num_heads": 4, "num_kv_heads": 2, "embed_dim": 32, "max_seq_len": 24}


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    model = lora_llama2(**SIZES, lora_attn_modules=["q_proj", "v_proj"], apply_lora_to_mlp=True, lora_rank=2)
    for param in model.parameters():
        torch.nn.init.normal_(param, std=0.1)  # lora_b too, which starts at zero
    return model.train()


def varlen(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, window_size):
    """Stand in for the kernel of a GPU: attention within the given bounds."""
    q, k, v = (x.transpose(0, 1)[None] for x in (query, key, value))
    k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for x in (k, v))
    number = torch.searchsorted(cu_seq_q, torch.arange(q.shape[2], dtype=torch.int32), right=True)
    mask = (number[:, None] == number) & torch.ones(q.shape[2], q.shape[2], dtype=torch.bool).tril()
    return torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)[0].transpose(0, 1)


def loss_and_gradients(model, batches):
    """Sum the loss over all batches."""
    loss_fn, total = LinearCrossEntropyLoss(), 0.0
    model.zero_grad()
    for batch in batches:
        hidden = model(batch["tokens"], seq_lens=batch.get("seq_lens"), skip_output=True)
        loss = loss_fn(model.output, hidden, batch["labels"])
        loss.backward()
        total += loss.item()
    return total, [param.grad.clone() for param in model.parameters() if param.requires_grad]


@pytest.mark.parametrize("how", ["packed", "packed, on a GPU's kernel", "joined", "padded", "padded, grouped"])
def test_the_loss_is_that_of_each_sample_by_itself(model, how, monkeypatch):
    if "kernel" in how:
        kernel = varlen_attention.Kernel(varlen, frozenset(["window_size"]))
        monkeypatch.setattr(varlen_attention, "find_kernel", lambda device: kernel)
        monkeypatch.setattr(varlen_attention, "fits", lambda dtype, head_dim: True)

    @settings(max_examples=15, derandomize=True, deadline=None)
    @given(st.lists(st.integers(1, 24), min_size=1, max_size=9), st.integers(1, 4), st.integers(0, 2**31))
    def check(lengths, batch_size, seed):
        generator = torch.Generator().manual_seed(seed)
        samples = []
        for n in lengths:
            tokens = torch.randint(1, 50, (n,), generator=generator).tolist()
            masked = torch.rand(n, generator=generator) < 0.4
            labels = [-100 if m else t for t, m in zip([*tokens[1:], 0], [*masked[1:], True], strict=True)]
            samples.append({"tokens": tokens, "labels": labels})
        alone = [{name: torch.tensor([sample[name]]) for name in sample} for sample in samples]
        expected = loss_and_gradients(model, alone)
        batches = make_batches(
            PackedDataset(samples, 24) if "packed" in how else samples,
            batch_size,
            seed=seed,
            shuffle=True,
            pad_id=0,
            collate="padded" if "padded" in how else "padding_free",
            group_by_length="grouped" in how,
        )
        found = loss_and_gradients(model, batches.epoch(0))
        assert found[0] == pytest.approx(expected[0], rel=1e-6, abs=1e-6)
        torch.testing.assert_close(found[1], expected[1], atol=1e-6, rtol=1e-5)

    check()
