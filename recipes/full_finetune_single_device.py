"""Fine-tune every weight of a model, on one device or several.

    tune run full_finetune_single_device --config llama2/7B_full_single_device checkpointer.checkpoint_dir=/models/7b
    tune run --nproc_per_node 4 full_finetune_distributed --config ...    # on four GPUs, which share the model
    tune cp full_finetune_single_device my_recipe.py     # then change it, and: tune run my_recipe.py --config ...

Beside the weights, memory holds a gradient of each and what the optimizer keeps of it: with AdamW three times the
weights. `optimizer_in_bwd: True` lets no gradient outlive its step, `optimizer: torchtune_lite.optim.PagedAdamW` keeps
the optimizer's state in host memory, and `mixed_precision: True` is for weights that bf16 would round too coarsely.

Writes under output_dir: `epoch_N/` and `step_N/` (the model, ready for transformers, with what a resume needs in
`resume/`), `metrics.jsonl`, `config.yaml`, `run.log`, `best.json`, at last `loss_curve.png`.
"""

import sys
from dataclasses import dataclass

import torch

from torchtune_lite import config, training


@dataclass(kw_only=True)
class Settings(training.TrainingSettings):
    """The keys of this recipe's YAML: those of every training (`training/settings.py`)."""

    model: training.WholeModel = config.component()  # sizes left out come from the checkpoint


class FullFinetuneRecipeSingleDevice:
    """Training of all weights of a model."""

    def __init__(self, cfg: Settings) -> None:
        self.cfg = cfg
        self.run = training.Run(cfg)

    def setup(self) -> None:
        """Build data, model and optimizer, cheapest checks first; restore the checkpoint to resume from."""
        cfg, run = self.cfg, self.run
        self.model = run.build_model()  # shapes only: the weights come one by one from the checkpoint
        run.checkpointer.load(self.model, device=run.device, dtype=run.dtype, resume_from=run.resume_from)
        self.loss_fn = config.instantiate(cfg.loss)
        run.prepare(self.model, self.loss_fn)
        weights = [weight for weight in self.model.parameters() if weight.requires_grad]
        self.optimizer = config.instantiate(cfg.optimizer, weights)
        run.start(self.model, self.optimizer, loss=self.loss_sum, save=run.checkpointer.save)

    def train(self) -> None:
        """Take the steps that are left.

        The loss of a step is the mean over the label tokens of all its micro-batches, so that neither padding nor
        `gradient_accumulation_steps` changes the gradient. The last, shorter window of an epoch is a step too.
        """
        run = self.run
        for window in run.windows():  # the micro-batches of one step
            for batch in window:  # forward and backward
                run.backward(self.loss_sum(batch))  # divided by the label tokens of the window
            loss, grad_norm = run.clip()  # where the host waits for the device
            if run.may_step(loss, grad_norm):  # both finite, and there were labels
                self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)  # their memory is free for the next step's activations
            run.lr_scheduler.step()
            run.end_step(loss, grad_norm)  # counts the step, and logs, validates and saves where it is its turn

    def loss_sum(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """Sum the loss over the label tokens of `batch`; the model stops before its output projection.

        The loss projects the states of label tokens alone, so that there are no logits for the others.
        """
        tokens, labels = self.run.inputs(batch)  # [b, s]
        with self.run.autocast:
            hidden = self.model(tokens, seq_lens=batch.get("seq_lens"), skip_output=True)  # [b, s, d], the final states
            return self.run.summed_loss(self.loss_fn, self.model.output, hidden, labels, batch)


@config.parse(Settings)
def recipe_main(cfg: Settings) -> None:
    """Train the model, and validate and save it on the way."""
    recipe = FullFinetuneRecipeSingleDevice(cfg)
    recipe.setup()
    with recipe.run:  # a signal to stop ends it at the last step boundary, with a checkpoint
        recipe.train()


if __name__ == "__main__":
    sys.exit(recipe_main())
