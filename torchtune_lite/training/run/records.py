"""What a run writes in its output_dir beside checkpoints."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torchtune_lite import checkpoint, config
from torchtune_lite.training.metrics.loggers import MetricLoggers
from torchtune_lite.training.metrics.loss_curve import plot_loss_curve
from torchtune_lite.training.run.progress import Progress
from torchtune_lite.training.settings import TrainingSettings
from torchtune_lite.utils import LogFile
from torchtune_lite.utils.world import World


class Records:
    """The claim on `output_dir`, and in it config, metrics, log, summary and loss curve.

    Of several processes, the first writes all this; each other one has a log of its own, `logs/rank_N.log`.
    """

    def __init__(self, cfg: TrainingSettings, progress: Progress, world: World) -> None:
        self.output_dir, self.is_writer = Path(cfg.output_dir), world.rank == 0
        world.on_main(lambda: self._open(cfg, progress))  # nothing is written before it
        if not self.is_writer:
            folder = self.output_dir / "logs"
            folder.mkdir(parents=True, exist_ok=True)
            self._log_file = LogFile(folder / f"rank_{world.rank}.log")

    def _open(self, cfg: TrainingSettings, progress: Progress) -> None:
        self.claim = checkpoint.claim_output_dir(self.output_dir)
        config.save(cfg, self.output_dir)
        run_id = f"{self.claim.run_id}-{progress.start_id}"
        logger = config.instantiate(cfg.metric_logger, defaults={"run_id": run_id})
        self.metrics = MetricLoggers(self.output_dir, logger, resumed_step=progress.global_step)
        self.metrics.log_config(config.to_dict(cfg))

    def log(self, values: dict[str, Any], step: int) -> None:
        """Log the metrics of a step."""
        if self.is_writer:
            self.metrics.log_dict(values, step=step)

    def log_table(self, name: str, rows: Sequence[Mapping[str, Any]], step: int) -> None:
        """Log a table of a step, such as answers."""
        if self.is_writer:
            self.metrics.log_table(name, rows, step=step)

    def close(self, summary: dict[str, Any]) -> None:
        """Close the loggers, write the `summary` of the run and draw its loss curve, and release the output_dir."""
        if not self.is_writer:
            self._log_file.close()
            return
        self.metrics.close()
        self.claim.record(summary)
        plot_loss_curve(self.output_dir)
        self.claim.release()
