"""A run without a recipe: its steps, its ends and its files."""

import json

import pytest
import torch

from tests.recipes.killed_runs import COMMON
from torchtune_lite import checkpoint, config, training
from torchtune_lite.errors import NonFiniteError, Stopped
from torchtune_lite.modules.loss import LinearCrossEntropyLoss
from torchtune_lite.training.signals import StopRequested

REST = """
dtype: fp32
max_steps_per_epoch: 3
verify_saves: null
model: {_component_: torchtune_lite.models.llama2.llama2}
"""


@pytest.fixture
def start(tmp_path):
    """Return a started run, and a recipe that trains its model."""

    def start(*changes: str):
        path = tmp_path / "run.yaml"
        path.write_text(f"output_dir: {tmp_path}/out\n{COMMON}{REST}")
        words = ["keep_last_n_checkpoints=null", *changes]
        run = training.Run(config.load(path, words, training.TrainingSettings))
        model, loss_fn = run.build_model(), LinearCrossEntropyLoss()
        run.checkpointer.load(model, device=run.device, dtype=run.dtype, resume_from=run.resume_from)
        run.prepare(model, loss_fn)
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)

        def loss(batch):
            tokens, labels = run.inputs(batch)
            hidden = model(tokens, seq_lens=batch.get("seq_lens"), skip_output=True)
            return run.summed_loss(loss_fn, model.output, hidden, labels, batch)

        run.start(model, optimizer, loss, run.checkpointer.save)
        return run, optimizer, loss

    return start


def take(run, optimizer, loss, stop_in=None):
    """Take the steps that are left; return the loss of each. In step `stop_in` it is stopped."""
    losses = []
    with run:
        for window in run.windows():
            for batch in window:
                run.backward(loss(batch))
            if run.progress.global_step + 1 == stop_in:
                raise StopRequested(2)
            losses.append(run.clip())
            if run.may_step(*losses[-1]):
                optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            run.lr_scheduler.step()
            run.end_step(*losses[-1])
    return losses


def logged(tmp_path, name):
    rows = map(json.loads, (tmp_path / "out" / "metrics.jsonl").read_text().splitlines())
    return [row[name] for row in rows if name in row]


def test_every_step_of_every_epoch_is_taken_counted_logged_and_saved(start, tmp_path):
    run, *rest = start()
    losses = take(run, *rest)
    assert len(losses) == 6 == run.progress.global_step and run.is_done()
    assert logged(tmp_path, "loss") == [loss for loss, _ in losses]
    epochs = logged(tmp_path, "epoch")
    assert epochs == sorted(epochs) and set(epochs) == {0, 1}
    names = {folder.name for folder in checkpoint.published(tmp_path / "out")}
    assert names == {"step_2", "epoch_0", "step_4", "epoch_1"}
    with checkpoint.claim_output_dir(tmp_path / "out"):
        pass  # it is free again


def test_a_stop_leaves_a_checkpoint_of_the_last_whole_step_and_a_resumed_run_goes_on_from_it(start, tmp_path):
    run, *rest = start("resume_from_checkpoint=False", f"output_dir={tmp_path}/whole")
    whole = take(run, *rest)
    run, *rest = start("resume_from_checkpoint=False")
    with pytest.raises(Stopped, match="after step 1; saved .*step_1; continue with"):
        take(run, *rest, stop_in=2)
    assert run.bar.disable or run.bar.n == 1
    run, *rest = start()
    assert run.progress.global_step == 1
    assert take(run, *rest) == whole[1:]


def test_an_error_closes_the_run_and_saves_nothing(start, tmp_path):
    run, optimizer, loss = start()
    with pytest.raises(NonFiniteError):
        take(run, optimizer, lambda batch: loss(batch) * float("nan"))
    assert checkpoint.published(tmp_path / "out") == []
    checkpoint.claim_output_dir(tmp_path / "out").release()


def test_the_loss_of_a_step_is_the_mean_over_the_label_tokens_of_its_window(start):
    run, _, loss = start()
    for window in run.windows():
        with torch.no_grad():
            total = sum(loss(batch).item() for batch in window)
        for batch in window:
            run.backward(loss(batch))
        labels = sum(int((batch["labels"] != -100).sum()) for batch in window)
        assert len(window) == 2 and run.clip()[0] == pytest.approx(total / labels, rel=1e-6)
        break
    assert run.may_step(1.0, 1.0)
    run.num_tokens = 0
    assert not run.may_step(0.0, 0.0), "a step without labels leaves the weights alone"
    run.close()
