"""Offloaded activations, on a CPU by a stand-in for the test of a tensor's device, and on a GPU."""

import contextlib

import pytest
import torch

from torchtune_lite.models.builders import lora_decoder
from torchtune_lite.modules import DecoderConfig
from torchtune_lite.peft import storage
from torchtune_lite.training.memory import offloading
from torchtune_lite.training.memory.offloading import OffloadedActivations, offload_activations

CONFIG = DecoderConfig(100, num_layers=3, num_heads=4, num_kv_heads=4, embed_dim=128, max_seq_len=64)
TOKENS = torch.arange(64).view(2, 32)


def model(**rest):
    torch.manual_seed(0)
    built = lora_decoder(CONFIG, ["q_proj"], apply_lora_to_mlp=True, **rest).train()
    for name, param in built.named_parameters():
        if "lora_b" in name:
            torch.nn.init.normal_(param, std=0.1)
    return built


def gradients(built):
    """The gradients of the trained weights, from a forward and a backward pass."""
    trained = [p for p in built.parameters() if p.requires_grad]
    return torch.autograd.grad(built(TOKENS.to(trained[0].device)).float().square().mean(), trained)


@pytest.fixture
def passes(monkeypatch):
    """The passes that were offloaded, all large tensors counting as a GPU's."""
    made = []

    class Kept(OffloadedActivations):
        def __init__(self, built):
            super().__init__(built, is_moved=lambda tensor: True)
            made.append(self)

    monkeypatch.setattr(offloading, "OffloadedActivations", Kept)
    return made


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("quantize_base", [False, True])
def test_gradients_keep_their_bits(passes, checkpointing, quantize_base):
    built = model(quantize_base=quantize_base)
    built.activation_checkpointing = checkpointing
    expected = gradients(built)
    offload_activations(built)
    for _ in range(2):
        for mine, theirs in zip(gradients(built), expected, strict=True):
            assert torch.equal(mine, theirs)
    assert len(passes) == 2
    assert all(len(each.out) >= 3 and not each.back for each in passes)


def test_neither_weights_nor_small_tensors_are_moved(passes):
    built = model(quantize_base=True)
    offload_activations(built)
    weights = {part.data_ptr() for p in built.parameters() for part in storage(p)}
    moved = []
    passes.append(None)
    built.register_forward_pre_hook(lambda *_: setattr(passes[-1], "is_moved", lambda t: moved.append(t) or True))
    gradients(built)
    assert moved and not {t.data_ptr() for t in moved} & weights
    assert min(t.numel() * t.itemsize for t in moved) >= 1024


def test_with_checkpointing_it_is_the_inputs_of_the_layers(passes):
    built = model()
    built.activation_checkpointing = True
    offload_activations(built)
    gradients(built)
    shapes = [tuple(t.shape) for t in passes[0].out if t.shape[-1] == 128]
    assert shapes.count((2, 32, 128)) >= 3
    assert not any(t.shape[-1] == CONFIG.intermediate_dim for t in passes[0].out)


def test_those_saved_before_are_on_their_way_while_one_is_used(passes):
    built = model()
    hooks = OffloadedActivations(built, is_moved=lambda tensor: True)
    tensors = [torch.randn(512) for _ in range(6)]
    numbers = [hooks.pack_hook(t) for t in tensors]
    assert torch.equal(hooks.unpack_hook(numbers[5]), tensors[5])
    assert sorted(hooks.back) == [3, 4]
    for i in (3, 4, 4):  # in any order, and twice
        assert torch.equal(hooks.unpack_hook(numbers[i]), tensors[i])
    assert sorted(hooks.back) == [1, 2]


def test_validation_and_a_pass_that_fails_leave_no_hook_behind(passes):
    built = model()
    offload_activations(built)
    with torch.no_grad():
        built(TOKENS)
    built.eval()
    built(TOKENS)
    assert passes == []
    with pytest.raises(ValueError, match="exceed"):
        built.train()(torch.zeros(1, 65, dtype=torch.int64))
    x = torch.randn(1000, requires_grad=True)
    assert len(passes) == 1 and x.exp().grad_fn is not None and passes[0].out == []


class Streams:
    """Two streams and their events in place of CUDA's; notes every wait and every held tensor."""

    def __init__(self, monkeypatch, hooks):
        self.log, self.names = [], {}
        self.current = Stream("computing", self)
        hooks.stream = Stream("copying", self)
        empty_like, copy = torch.empty_like, torch.Tensor.copy_
        monkeypatch.setattr(torch.cuda, "current_stream", lambda device: self.current)
        monkeypatch.setattr(torch.cuda, "stream", self.entered)
        monkeypatch.setattr(torch, "empty_like", lambda x, device, pin_memory: empty_like(x, device=device))
        monkeypatch.setattr(
            torch.Tensor, "record_stream", lambda x, stream: self.log.append(f"{self.name(x)} kept for {stream.name}")
        )
        monkeypatch.setattr(
            torch.Tensor, "copy_", lambda x, y, non_blocking: self.log.append(f"{self.name(y)} out") or copy(x, y)
        )

    def name(self, tensor):
        return self.names.get(tensor[0].item(), "?")

    @contextlib.contextmanager
    def entered(self, stream):
        self.log.append(f"on {stream.name}:")
        before, self.current = self.current, stream
        yield
        self.current = before


class Stream:
    def __init__(self, name, streams):
        self.name, self.log, self.events = name, streams.log, 0

    def wait_stream(self, other):
        self.log.append(f"{self.name} waits for {other.name}")

    def wait_event(self, event):
        self.log.append(f"{self.name} waits for {event}")

    def record_event(self):
        self.events += 1
        return f"event {self.events}"


def test_a_tensor_is_kept_until_it_is_copied_and_waited_for_alone(monkeypatch):
    """`record_stream` is called; only a GPU shows the fault without it, in the last test of this file."""
    hooks = OffloadedActivations(model(), is_moved=lambda tensor: True)
    tensors = [torch.full((512,), float(i)) for i in range(4)]
    streams = Streams(monkeypatch, hooks)
    streams.names = {float(i): f"tensor {i}" for i in range(4)}
    numbers = [hooks.pack_hook(t) for t in tensors]
    for i in range(4):
        assert streams.log[4 * i : 4 * i + 4] == [
            "copying waits for computing",
            f"tensor {i} kept for copying",
            "on copying:",
            f"tensor {i} out",
        ]
    streams.log.clear()
    hooks.unpack_hook(numbers[3])
    assert streams.log == [
        *("on copying:", "computing waits for event 1", "tensor 3 kept for computing"),
        *("on copying:", "on copying:"),  # the two that are needed next: events 2 and 3
    ]
    streams.log.clear()
    hooks.unpack_hook(numbers[2])
    assert streams.log == ["computing waits for event 3", "tensor 2 kept for computing", "on copying:"]


@pytest.mark.gpu
def test_on_a_gpu_gradients_keep_their_bits_and_the_peak_is_lower():
    device = torch.device("cuda")
    config = DecoderConfig(100, num_layers=8, num_heads=4, num_kv_heads=4, embed_dim=512, max_seq_len=4096)
    built = lora_decoder(config, ["q_proj"], apply_lora_to_mlp=True).to(device).train()
    built.activation_checkpointing = True
    tokens = torch.zeros(4, 4096, dtype=torch.int64, device=device)
    trained = [p for p in built.parameters() if p.requires_grad]
    found, peaks = [], []
    for _ in range(2):
        torch.cuda.reset_peak_memory_stats()
        found.append(torch.autograd.grad(built(tokens, skip_output=True).float().square().mean(), trained))
        peaks.append(torch.cuda.max_memory_allocated())
        offload_activations(built)
    assert all(torch.equal(*pair) for pair in zip(*found, strict=True))
    assert peaks[0] - peaks[1] > 3 * 4 * 4096 * 512 * 4  # the inputs of several layers


@pytest.mark.gpu
def test_on_a_gpu_memory_is_not_used_again_before_it_is_copied():
    """Copies start late, while others allocate memory of that size: without `record_stream` they would get theirs."""
    device = torch.device("cuda")
    built = model().to(device)
    hooks = OffloadedActivations(built)
    size = 1 << 20
    numbers = []
    for value in range(4):
        tensor = torch.full((size,), float(value), device=device)
        with torch.cuda.stream(hooks.stream):
            torch.cuda._sleep(50_000_000)  # cycles: tens of milliseconds
        numbers.append(hooks.pack_hook(tensor))
        del tensor
        others = [torch.full((size,), -1.0, device=device) for _ in range(4)]
        del others
    torch.cuda.synchronize()
    assert [hooks.out[number].unique().tolist() for number in numbers] == [[0.0], [1.0], [2.0], [3.0]]

    sums = []
    for number in reversed(numbers):
        tensor = hooks.unpack_hook(number)
        torch.cuda._sleep(50_000_000)  # the tensor is read late
        sums.append(tensor.mean())
        del tensor
    torch.cuda.synchronize()
    assert torch.stack(sums).tolist() == [3.0, 2.0, 1.0, 0.0]
