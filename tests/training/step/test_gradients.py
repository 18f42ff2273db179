"""The gradients of a recipe: three ways to take the same steps."""

import json
from dataclasses import asdict

import pytest
import torch
from torch import nn

from torchtune_lite.data import num_label_tokens
from torchtune_lite.errors import ConfigError, NonFiniteError
from torchtune_lite.training import Gradients, Progress, may_step
from torchtune_lite.training.step import gradients

STEPS = 4
FULL_STATE = {"scale": 64.0, "growth_factor": 2.0, "backoff_factor": 0.5, "growth_interval": 2000, "_growth_tracker": 7}


def window(labels=3, micro_batches=2):
    return [{"labels": torch.tensor([[1] * labels + [-100]])} for _ in range(micro_batches)]


class Loop:
    """A recipe's loop."""

    def __init__(self, *, progress=None, dtype="fp32", clip_grad_norm=0.5, in_backward=False):
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 1))
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.1)
        self.progress = progress or Progress(seed=0)
        self.gradients = Gradients(self.optimizer, self.progress, clip_grad_norm, dtype=dtype, in_backward=in_backward)
        self.norms, self.finite = [], []

    def step(self, labels=3, factor=1.0):
        batches = window(labels)
        num_tokens = num_label_tokens(batches)
        self.gradients.start(len(batches), num_tokens)
        total = 0.0
        for _ in batches:
            loss = factor * self.model(torch.randn(3, 4)).square().sum() / max(num_tokens, 1) * (labels > 0)
            self.gradients.backward(loss)
            total += loss.detach()
        total, norm = self.gradients.clip(total)
        self.norms.append(norm)
        self.finite.append(may_step(self.progress, "skip", lambda: "", loss=total, grad_norm=norm))
        if self.finite[-1] and num_tokens:
            self.optimizer.step()
        self.optimizer.zero_grad()
        return self

    def weights(self):
        return [param.tolist() for param in self.model.parameters()]


def test_plain_gradients_are_those_of_torch():
    loop = Loop()
    loop.gradients.start(2, 6)
    x = torch.randn(3, 4)
    loss = loop.model(x).sum()
    loop.gradients.backward(loss)
    norm = torch.nn.utils.get_total_norm([param.grad for param in loop.model.parameters()])
    assert loop.gradients.clip(loss) == (loss.item(), norm.item()) and norm > 0.5
    assert torch.nn.utils.get_total_norm([param.grad for param in loop.model.parameters()]) == pytest.approx(0.5)


def test_steps_in_the_backward_pass_are_the_plain_ones_without_clipping():
    plain, ours = (Loop(clip_grad_norm=None, in_backward=each) for each in (False, True))
    for loop in (plain, ours):
        torch.manual_seed(1)
        for _ in range(STEPS):
            loop.step()
    assert ours.weights() == plain.weights() and ours.norms == pytest.approx(plain.norms, rel=1e-5)


@pytest.mark.parametrize("in_backward", [False, True])
@pytest.mark.parametrize("dtype", ["fp32", "fp16"])
def test_a_step_without_labels_or_with_a_loss_of_nan_leaves_the_weights_alone(in_backward, dtype):
    if in_backward and dtype == "fp16":
        return
    loop = Loop(in_backward=in_backward, dtype=dtype).step()
    before = loop.weights()
    loop.step(labels=0).step(factor=float("nan"))
    assert loop.weights() == before and loop.finite == [True, True, False]
    assert loop.step().weights() != before


def test_a_norm_that_overflows_after_weights_were_updated_stops_the_run():
    loop = Loop(in_backward=True)
    loop.model[0].weight.register_hook(lambda grad: grad * float("inf"))
    with pytest.raises(NonFiniteError, match="step 1: grad_norm is nan, and with optimizer_in_bwd some weights are"):
        loop.step()


def test_scaled_gradients_are_unscaled_before_they_are_clipped():
    plain, scaled = Loop(), Loop(dtype="fp16")
    for loop in (plain, scaled):
        torch.manual_seed(1)
        for _ in range(STEPS):
            loop.step()
    assert scaled.norms == pytest.approx(plain.norms, rel=1e-6) and max(plain.norms) > 0.5
    assert torch.allclose(torch.tensor(scaled.weights()[0]), torch.tensor(plain.weights()[0]), atol=1e-6)
    assert plain.progress.scaler is None and scaled.progress.scaler["scale"] == 65536


def test_the_scale_falls_until_gradients_fit_and_a_resumed_run_has_it():
    loop = Loop(dtype="fp16").step(factor=1e35).step(factor=1e35)
    assert loop.finite == [False, False] and loop.progress.skipped_steps == 2
    assert loop.progress.scaler["scale"] == 65536 / 4
    saved = Progress(**json.loads(json.dumps(asdict(loop.step().progress))))
    resumed = Loop(progress=saved, dtype="fp16")
    resumed.model.load_state_dict(loop.model.state_dict())
    for each in (loop, resumed):
        torch.manual_seed(2)
        each.step(factor=1e35).step()
    assert resumed.progress == loop.progress and resumed.progress.scaler["scale"] == 65536 / 8


def test_the_scale_is_that_of_torchs_scaler(monkeypatch):
    monkeypatch.setattr(gradients, "GROWTH_INTERVAL", 3)
    theirs = torch.amp.GradScaler("cpu", growth_interval=3)
    loop = Loop(dtype="fp16")
    scales = []
    for fits in (True, True, False, True, True, True, True, True, True, False, False, True):
        weight = nn.Parameter(torch.ones(1))
        optimizer = torch.optim.SGD([weight])
        theirs.scale(weight.sum() * (1.0 if fits else float("inf"))).backward()
        theirs.unscale_(optimizer)
        theirs.update()
        loop.step(factor=1.0 if fits else 1e35)
        assert loop.progress.scaler == {key: theirs.state_dict()[key] for key in ("scale", "_growth_tracker")}
        scales.append(loop.progress.scaler["scale"])
    assert set(scales) == {32768, 65536, 131072}


def test_the_state_of_torchs_scaler_is_gone_on_with_and_that_of_another_dtype_is_not():
    assert Loop(progress=Progress(seed=0, scaler={**FULL_STATE}), dtype="fp16").step().progress.scaler["scale"] == 64
    assert Loop(progress=Progress(seed=0, scaler={**FULL_STATE})).step().progress.scaler is None


def test_a_step_without_any_gradient_has_a_norm_of_0():
    loop = Loop(dtype="fp16")
    loop.gradients.start(1, 3)
    assert loop.gradients.clip(torch.tensor(2.0)) == (2.0, 0.0)


def test_what_cannot_work_is_refused():
    params = [nn.Parameter(torch.ones(2, dtype=torch.float16))]
    progress = Progress(seed=0)
    with pytest.raises(ConfigError, match="optimizer_in_bwd: True steps before dtype: fp16 can see an overflow"):
        Gradients(torch.optim.SGD(params), progress, dtype="fp16", in_backward=True)
    with pytest.raises(ConfigError, match="fp16 is too coarse for weights that are trained; set mixed_precision: True"):
        Gradients(torch.optim.SGD(params), progress, dtype="fp16")

    class CPUOffloadOptimizer(torch.optim.Optimizer):
        def __init__(self):  # as torchao's, which calls no other
            pass

    with pytest.raises(ConfigError, match="CPUOffloadOptimizer keeps its state where no checkpoint sees it"):
        Gradients(CPUOffloadOptimizer(), progress)
