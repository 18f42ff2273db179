"""Fine-tune adapters (LoRA, QLoRA, DoRA) on a frozen base model, on one device or several.

    tune run lora_finetune_single_device --config llama2/7B_qlora_single_device checkpointer.checkpoint_dir=/models/7b
    tune run --nproc_per_node 4 lora_finetune_distributed --config ...    # on four GPUs, which share the base
    tune cp lora_finetune_single_device my_recipe.py     # then change it, and: tune run my_recipe.py --config ...

Which method it is, the model builder decides: `lora_llama2_7b` adapts a base in the dtype of the run, `qlora_llama2_7b`
one in NF4, of a quarter of the size, and either learns a magnitude for each row besides with `use_dora: True`.

Writes under output_dir:

    epoch_N/, step_N/     the merged model, ready for transformers
      adapter/            the adapter alone, ready for PEFT
      resume/             what a resume needs: optimizer, schedule, random states, position in the data
    metrics.jsonl, config.yaml, run.log, best.json, loss_curve.png
"""

import sys
from dataclasses import dataclass
from functools import partial

from torch import Tensor

from torchtune_lite import config, data, errors, peft, training


@dataclass(kw_only=True)
class Settings(training.TrainingSettings):
    """The keys of adapters, beside those of every training (`training/settings.py`; `--help` lists all)."""

    model: training.AdaptedModel = config.component()  # sizes left out come from the checkpoint
    adapter_dtype: str | None = config.key(None, choices=("fp32", "bf16"))  # null: as dtype; fp32 keeps small updates
    loraplus_lr_ratio: float | None = config.key(None, minimum=1)  # learning rate of B over that of A; null: 1
    weight_decay_b: float | None = config.key(None, minimum=0)  # of B; null: the optimizer's, as for A
    save_adapter_weights_only: bool = False  # True: no merged model, megabytes instead of gigabytes


class LoRAFinetuneRecipeSingleDevice:
    """Training of the adapters of a model whose base stays frozen."""

    def __init__(self, cfg: Settings) -> None:
        self.cfg, self.run = cfg, training.Run(cfg)

    def setup(self) -> None:
        """Build data, model, adapters and optimizer, cheapest checks first; restore the checkpoint to resume from."""
        cfg, run = self.cfg, self.run
        self.model = run.build_model()  # shapes only
        if cfg.save_adapter_weights_only and run.checkpointer.merge_adapter:
            raise errors.ConfigError("save_adapter_weights_only leaves out the base that merge_adapter makes")
        self.load_base()
        self.loss_fn = config.instantiate(cfg.loss)
        run.prepare(self.model, self.loss_fn)
        build = partial(config.instantiate, cfg.optimizer)
        self.optimizer = peft.adapter_optimizer(self.model, build, cfg.loraplus_lr_ratio, cfg.weight_decay_b)
        save = partial(run.checkpointer.save, adapter_only=cfg.save_adapter_weights_only)
        run.start(self.model, self.optimizer, self.loss_sum, save)

    def load_base(self) -> None:
        """Read the base's weights one by one, quantised on the way if the model says so, and make its adapters."""
        run, adapter_dtype = self.run, self.cfg.adapter_dtype
        run.checkpointer.load(
            self.model,
            device=run.device,
            dtype=run.dtype,
            adapter_dtype=adapter_dtype and training.get_dtype(adapter_dtype, run.device),
            cache_dir=run.output_dir.parent / "nf4_cache",  # for the next run over the same base
            resume_from=run.resume_from,
        )

    def train(self) -> None:
        """Take the steps that are left; gradients flow through the frozen base, and only adapters keep them."""
        run = self.run
        for window in run.windows():
            for batch in window:
                run.backward(self.loss_sum(batch))
            loss, grad_norm = run.clip()
            if run.may_step(loss, grad_norm):
                self.optimizer.step()  # of the adapters
            self.optimizer.zero_grad(set_to_none=True)
            run.lr_scheduler.step()
            run.end_step(loss, grad_norm)  # counts, logs, validates, saves

    def loss_sum(self, batch: data.Batch) -> Tensor:
        """Sum the loss over the label tokens of a micro-batch."""
        tokens, labels = self.run.inputs(batch)  # [b, s]
        with self.run.autocast:
            hidden = self.model(tokens, seq_lens=batch.get("seq_lens"), skip_output=True)  # [b, s, d]
            return self.run.summed_loss(self.loss_fn, self.model.output, hidden, labels, batch)


@config.parse(Settings)
def recipe_main(cfg: Settings) -> None:
    """Train the adapters, and validate and save them on the way."""
    recipe = LoRAFinetuneRecipeSingleDevice(cfg)
    recipe.setup()
    with recipe.run:  # a signal to stop ends it at the last step boundary, with a checkpoint
        recipe.train()


if __name__ == "__main__":
    sys.exit(recipe_main())
