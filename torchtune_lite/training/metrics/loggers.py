"""The loggers of metrics: the terminal, a file, Weights & Biases, TensorBoard, and always `metrics.jsonl`."""

import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from tqdm import tqdm

from torchtune_lite.errors import ConfigError
from torchtune_lite.redaction import redact
from torchtune_lite.training.metrics.metrics_file import MetricsFile, Scalar, json_line, number
from torchtune_lite.training.metrics.time_limit import Hangs, within
from torchtune_lite.training.metrics.wandb_settings import check_wandb
from torchtune_lite.utils import get_logger
from torchtune_lite.utils.result_file import ResultFile

WITHOUT = "training goes on without it, the metrics are in metrics.jsonl"


class MetricLoggerInterface:
    """Takes metrics by name; a logger of your own subclasses it and writes `log_dict`."""

    def log_dict(self, payload: Mapping[str, Scalar], step: int) -> None:
        """Log several metrics of one step."""
        raise NotImplementedError

    def log(self, name: str, data: Scalar, step: int) -> None:
        """Log one metric."""
        self.log_dict({name: data}, step)

    def log_config(self, config: dict[str, Any]) -> None:
        """Log the run's config, where the logger has a place for it."""

    def log_table(self, name: str, rows: Sequence[Mapping[str, Any]], step: int) -> None:
        """Log rows of the same columns, where the logger has a place for them."""

    def close(self) -> None:
        """End logging and frees what it held."""


class StdoutLogger(MetricLoggerInterface):
    """Prints a line a step, above the progress bar where there is one."""

    def log_dict(self, payload: Mapping[str, Scalar], step: int) -> None:
        tqdm.write(_text_line(payload, step, "{:.6g}"), file=sys.stdout)


class DiskLogger(MetricLoggerInterface):
    """Appends to `log_dir/filename` (None: `log_{unix time}.{output_fmt}`), as lines of `txt` or `jsonl`.

    A file that is there must be such a log.
    """

    def __init__(self, log_dir: str | Path, output_fmt: str = "txt", filename: str | Path | None = None) -> None:
        if output_fmt not in ("txt", "jsonl"):
            raise ConfigError(f"metric_logger.output_fmt: {output_fmt!r} is not known; choose txt or jsonl")
        self._format = json_line if output_fmt == "jsonl" else lambda *row: _text_line(*row, "{}") + "\n"
        filename = filename or f"log_{int(time.time())}.{output_fmt}"
        if Path(filename).name != filename:
            raise ConfigError(
                f"metric_logger.filename: {filename!r} must be a name without folders; put those in log_dir"
            )
        self.path = _folder(log_dir) / filename
        if self.path.exists() and not _starts_with(self.path, b'{"step": ' if output_fmt == "jsonl" else b"Step "):
            raise ConfigError(f"metric_logger.filename: {self.path} is not a log of this kind; choose another name")
        self._file = self.path.open("a", encoding="utf-8")

    def log_dict(self, payload: Mapping[str, Scalar], step: int) -> None:
        self._file.write(self._format(payload, step))
        self._file.flush()

    def close(self) -> None:
        self._file.close()


class WandBLogger(MetricLoggerInterface):
    """Logs to Weights & Biases over `global_step`; what is not explained here is that argument of `wandb.init`.

    What would send credentials or code elsewhere is refused, as `wandb_settings` says.

    With `WANDB_MODE=offline` (or `mode: offline`) it needs no account and writes under `log_dir` (None: the working
    directory). Where the service does not answer, the run is logged offline with one warning. A wrong argument or a
    missing API key is a ConfigError. With the `run_id` of an earlier W&B run it goes on with that one, if there is one.
    A start that takes `init_timeout_s`, longer than W&B's own limit, is given up: the run goes on without W&B.
    """

    init_timeout_s = 180.0
    finish_timeout_s = 60.0

    def __init__(
        self,
        project: str = "torchtune",
        entity: str | None = None,
        group: str | None = None,
        log_dir: str | Path | None = None,
        run_id: str | None = None,
        *,
        dir: str | Path | None = None,
        id: str | None = None,
        job_type: str | None = None,
        mode: str | None = None,
        name: str | None = None,
        notes: str | None = None,
        resume: str | bool | None = None,
        save_code: bool | None = None,
        settings: dict[str, Any] | None = None,
        tags: list[str] | None = None,
    ) -> None:
        check_wandb(mode, save_code, settings)
        try:
            import wandb
        except ImportError as error:
            raise ConfigError("metric_logger: WandBLogger needs wandb; run `pip install wandb`") from error

        folder = dir or log_dir
        if folder is not None:
            folder = str(_folder(folder))
        same_run = {} if run_id is None else {"id": run_id, "resume": "allow"}
        more = {"id": id, "job_type": job_type, "mode": mode, "name": name, "notes": notes, "resume": resume}
        more |= {"save_code": save_code, "settings": settings, "tags": tags}
        arguments = {"project": project, "entity": entity, "group": group, "dir": folder} | same_run
        arguments |= {key: value for key, value in more.items() if value is not None}
        try:
            self.run = wandb.run or within(self.init_timeout_s, lambda: wandb.init(**arguments))
        except wandb.errors.UsageError as error:
            raise ConfigError(f"metric_logger: W&B says: {error} Or set WANDB_MODE=offline") from error
        except (TypeError, ValueError):  # an argument that wandb.init does not take
            raise
        except Hangs as error:
            get_logger().warning(f"W&B did not start ({error}); {WITHOUT}")
            self.run = None
        except Exception as error:
            self.run = self._start_offline(wandb, arguments, error)
        if self.run:
            self.run.define_metric("global_step")
            self.run.define_metric("*", step_metric="global_step", step_sync=True)

    def log_dict(self, payload: Mapping[str, Scalar], step: int) -> None:
        if self.run:
            self.run.log({**payload, "global_step": step})

    def log_config(self, config: dict[str, Any]) -> None:
        if self.run:
            self.run.config.update(config, allow_val_change=True)

    def log_table(self, name: str, rows: Sequence[Mapping[str, Any]], step: int) -> None:
        if self.run:
            import wandb

            table = wandb.Table(columns=list(rows[0]), data=[list(row.values()) for row in rows])
            self.run.log({name: table, "global_step": step})

    def close(self) -> None:
        """Finish the run, waiting `finish_timeout_s` at most: a hanging service cannot hold up the end of a run."""
        if not self.run:
            return
        try:
            within(self.finish_timeout_s, self.run.finish)
        except Hangs as error:
            raise TimeoutError(f"{error}; send the run later with `wandb sync`") from None

    def _start_offline(self, wandb: ModuleType, arguments: dict[str, Any], reason: Exception) -> Any:
        """Start the run offline, or return None where even that fails, and say so in one warning."""
        try:
            run = within(self.init_timeout_s, lambda: wandb.init(**arguments | {"mode": "offline"}))
            instead = f"logging offline: send the run later with `wandb sync {Path(run.dir).parent}`"
        except Exception:
            run, instead = None, WITHOUT
        get_logger().warning(f"W&B did not start ({_first_line(reason)}); {instead}")
        return run


class TensorBoardLogger(MetricLoggerInterface):
    """Writes TensorBoard events to `log_dir`, or with `organize_logs` to a folder a run, `log_dir/run_{unix time}`."""

    def __init__(self, log_dir: str | Path, organize_logs: bool = True) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ConfigError("metric_logger: TensorBoardLogger needs it: run `pip install tensorboard`") from error
        folder = _folder(log_dir)
        self._writer = SummaryWriter(folder / f"run_{int(time.time())}" if organize_logs else folder)

    def log_dict(self, payload: Mapping[str, Scalar], step: int) -> None:
        for name, value in payload.items():
            self._writer.add_scalar(name, number(value), global_step=step)
        self._writer.flush()

    def log_config(self, config: dict[str, Any]) -> None:
        indented = json.dumps(config, indent=2, default=str).replace("\n", "\n    ")
        self._writer.add_text("config", "    " + indented)  # four spaces: preformatted in Markdown

    def close(self) -> None:
        self._writer.close()


class MetricLoggers(MetricLoggerInterface):
    """Writes `metrics.jsonl` in `output_dir` and hands every metric on to `loggers`, none of which can stop training.

    A logger that fails is reported in one warning and left out after its third failure; the metrics stay in the file.
    `resumed_step` is the step after which a resumed run goes on (0: a fresh start). Rows that an interrupted run has
    logged beyond it are written to the file again, but not passed on.
    """

    max_failures, table_rows = 3, 20

    def __init__(
        self,
        output_dir: str | Path,
        loggers: Sequence[MetricLoggerInterface] | MetricLoggerInterface | None = None,
        *,
        resumed_step: int = 0,
    ) -> None:
        try:
            self._file = MetricsFile(output_dir, resumed_step=resumed_step)
        except OSError as error:
            raise ConfigError(f"output_dir: cannot write to {output_dir} ({error.strerror}); choose another") from error
        if loggers is None:
            loggers = []
        self._loggers = list(loggers) if isinstance(loggers, Sequence) else [loggers]
        self._failures: Counter[int] = Counter()

    def log_dict(self, payload: Mapping[str, Scalar], step: int) -> None:
        self._try(self._file, lambda: self._file.log_dict(payload, step))
        if (step, frozenset(payload)) not in self._file.cut_rows:
            self._each(lambda logger: logger.log_dict(payload, step))

    def log_config(self, config: dict[str, Any]) -> None:
        """Log the config with the values of keys such as `api_key`, `hf_token` or `password` blanked."""
        blanked = redact(config)
        self._each(lambda logger: logger.log_config(blanked))

    def log_table(self, name: str, rows: Sequence[Mapping[str, Any]], step: int) -> None:
        """Write rows to `name/step_N.jsonl` beside the metrics, and hand the first `table_rows` on."""
        path = self._file.path.parent / name / f"step_{step}.jsonl"
        self._try(self._file, lambda: ResultFile(path).write_lines(rows))
        self._each(lambda logger: logger.log_table(name, rows[: self.table_rows], step))

    def close(self) -> None:
        self._try(self._file, self._file.close)
        self._each(lambda logger: logger.close())

    def _each(self, call: Callable[[MetricLoggerInterface], None]) -> None:
        for logger in list(self._loggers):
            self._try(logger, lambda logger=logger: call(logger))
            if self._failures[id(logger)] >= self.max_failures:
                self._loggers.remove(logger)

    def _try(self, sink: MetricLoggerInterface | MetricsFile, call: Callable[[], None]) -> None:
        try:
            call()
        except Exception as error:
            self._failures[id(sink)] += 1
            if self._failures[id(sink)] == 1:
                where = "" if sink is self._file else f", the metrics stay in {self._file.path}"
                problem = f"{type(error).__name__}: {_first_line(error)}"
                get_logger().warning(f"{type(sink).__name__} failed ({problem}); training goes on{where}")


def _text_line(payload: Mapping[str, Scalar], step: int, form: str) -> str:
    return f"Step {step} | " + " ".join(f"{name}:{form.format(number(value))}" for name, value in payload.items())


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


def _starts_with(path: Path, start: bytes) -> bool:
    """Return whether a file starts so, or is empty."""
    with path.open("rb") as file:
        return start.startswith(file.read(len(start)))


def _folder(path: str | Path) -> Path:
    if "://" in str(path):
        raise ConfigError(f"metric_logger.log_dir: {path} is not a folder of this machine; choose one that is")
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"metric_logger.log_dir: cannot make {folder} ({error.strerror}); choose another") from error
    return folder
