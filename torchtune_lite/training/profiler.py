"""Traces of some steps, of torch.profiler."""

from functools import partial
from pathlib import Path

import torch

from torchtune_lite.errors import ConfigError
from torchtune_lite.utils import counted, get_logger

log = get_logger()


class Profiler:
    """Records `active_steps` steps after `wait_steps` that it leaves out and `warmup_steps` that it throws away.

    That `num_cycles` times (0: until the run ends). Each trace is a file `output_dir/trace_N.json.gz`, for
    https://ui.perfetto.dev, beside a table of the operations that took longest, `trace_N.txt`; N is its last step,
    counted from the start of the profiler. `cuda` counts only where there is a GPU. A run that is too short for all
    `active_steps` gets a warning that says so.
    """

    def __init__(
        self,
        enabled: bool = True,
        output_dir: str | Path = "profile",
        cpu: bool = True,
        cuda: bool = True,
        profile_memory: bool = False,
        with_stack: bool = False,
        record_shapes: bool = True,
        with_flops: bool = False,
        wait_steps: int = 5,
        warmup_steps: int = 3,
        active_steps: int = 2,
        num_cycles: int = 1,
    ) -> None:
        self.output_dir, self._profiler = Path(output_dir), None
        self._left_out, self._active = wait_steps + warmup_steps, active_steps
        if not enabled:
            return
        activities = [torch.profiler.ProfilerActivity.CPU] * cpu
        if cuda and torch.cuda.is_available():
            activities.append(torch.profiler.ProfilerActivity.CUDA)
        if not activities:
            raise ConfigError("profiler: nothing to record; set cpu: True")
        if active_steps < 1:
            raise ConfigError(f"profiler.active_steps={active_steps}: must be at least 1")
        self._profiler = torch.profiler.profile(
            activities=activities,
            schedule=torch.profiler.schedule(
                wait=wait_steps, warmup=warmup_steps, active=active_steps, repeat=num_cycles
            ),
            on_trace_ready=self._write,
            profile_memory=profile_memory,
            with_stack=with_stack,
            record_shapes=record_shapes,
            with_flops=with_flops,
        )
        self._profiler.start()

    def step(self) -> None:
        """Mark the end of an optimizer step."""
        if self._profiler is not None:
            self._profiler.step()

    def stop(self) -> None:
        """End the recording; a cycle that is not over is written as far as it has come."""
        if self._profiler is None:
            return
        self._profiler.stop()
        steps, self._profiler = self._profiler.step_num, None
        if 0 < steps < self._left_out + self._active:
            log.warning(
                f"profiler: the trace has {max(steps - self._left_out, 0)} of {counted(self._active, 'step')}: the run "
                f"took {steps}, and the first {self._left_out} are left out (profiler.wait_steps + warmup_steps); set "
                "profiler: {_component_: torchtune_lite.training.Profiler, wait_steps: 0, warmup_steps: 1}"
            )

    def _write(self, profiler: torch.profiler.profile) -> None:
        if profiler.step_num <= self._left_out:
            return
        path = self.output_dir / f"trace_{profiler.step_num}.json.gz"
        try:
            self.output_dir.mkdir(parents=True, exist_ok=True)
            profiler.export_chrome_trace(str(path))
            table = profiler.key_averages().table(sort_by="self_cpu_time_total", row_limit=40)
            path.with_name(f"trace_{profiler.step_num}.txt").write_text(table, encoding="utf-8")
        except OSError as error:
            log.warning("profiler: %s was not written (%s); training goes on", path, error.strerror)
            return
        log.info("profiler: wrote %s", path)


setup_torch_profiler = partial(Profiler, enabled=False)
"""torchtune's name for it, off unless told `enabled: True`."""
