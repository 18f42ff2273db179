"""The metric loggers by themselves, and together with services that fail."""

import json
import os
import sys
import threading
import types

import pytest
import torch

from torchtune_lite.errors import ConfigError
from torchtune_lite.training.metrics import loggers as metric_logging
from torchtune_lite.training.metrics.loggers import (
    DiskLogger,
    MetricLoggerInterface,
    MetricLoggers,
    StdoutLogger,
    TensorBoardLogger,
    WandBLogger,
)


class Recorder(MetricLoggerInterface):
    """A logger that keeps its payloads."""

    def __init__(self):
        self.rows, self.config, self.closed = [], None, False

    def log_dict(self, payload, step):
        self.rows.append((step, dict(payload)))

    def log_config(self, config):
        self.config = config

    def close(self):
        self.closed = True


class Broken(MetricLoggerInterface):
    """A logger that counts its calls and fails at each."""

    calls = 0

    def log_dict(self, payload, step):
        self.calls += 1
        raise RuntimeError("the service is gone")

    close = log_config = lambda self, *_: self.log_dict({}, 0)


def metric_rows(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


# --- files and terminal ---


def test_stdout_prints_a_line_a_step(capsys):
    logger = StdoutLogger()
    logger.log_dict({"loss": torch.tensor(1.23456789), "lr": 2e-5}, step=12)
    logger.log("val_loss", 0.5, 13)
    assert capsys.readouterr().out == "Step 12 | loss:1.23457 lr:2e-05\nStep 13 | val_loss:0.5\n"


def test_disk_writes_text_or_json_lines(tmp_path):
    text, lines = DiskLogger(tmp_path / "logs", filename="a.txt"), DiskLogger(tmp_path / "logs", "jsonl", "a.jsonl")
    for logger in (text, lines):
        logger.log_dict({"loss": 1.25, "lr": float("nan")}, 3)
    assert (tmp_path / "logs/a.txt").read_text() == "Step 3 | loss:1.25 lr:nan\n"
    assert json.loads((tmp_path / "logs/a.jsonl").read_text()) == {
        "step": 3,
        "loss": 1.25,
        "lr": None,
        "nonfinite": {"lr": "nan"},
    }


def test_disk_names_its_file_after_the_time(tmp_path, monkeypatch):
    monkeypatch.setattr(metric_logging.time, "time", lambda: 1700000000.5)
    assert DiskLogger(tmp_path).path.name == "log_1700000000.txt"
    assert DiskLogger(tmp_path, output_fmt="jsonl").path.name == "log_1700000000.jsonl"


def test_disk_refuses_another_format(tmp_path):
    with pytest.raises(ConfigError, match="output_fmt: 'csv' .* txt or jsonl"):
        DiskLogger(tmp_path, output_fmt="csv")


@pytest.mark.parametrize("name", ["../a.txt", "a/b.txt", "/etc/motd", ".."])
def test_disk_writes_into_its_folder_alone(name, tmp_path):
    with pytest.raises(
        (ConfigError, IsADirectoryError), match="must be a name without folders; put those in log_dir|directory"
    ):
        DiskLogger(tmp_path / "logs", filename=name)


@pytest.mark.parametrize("output_fmt", ["txt", "jsonl"])
def test_disk_goes_on_with_its_own_log_and_with_no_other_file(output_fmt, tmp_path):
    for _ in range(2):
        logger = DiskLogger(tmp_path, output_fmt, "a.log")
        logger.log("loss", 1.0, 1)
        logger.close()
    written = (tmp_path / "a.log").read_text()
    assert len(written.splitlines()) == 2
    other = "jsonl" if output_fmt == "txt" else "txt"
    (tmp_path / ".bashrc").write_text("export A=1\n")
    for kind, name in ((other, "a.log"), (output_fmt, ".bashrc")):
        with pytest.raises(ConfigError, match=f"{name} is not a log of this kind; choose another name"):
            DiskLogger(tmp_path, kind, name)
    assert (tmp_path / "a.log").read_text() == written
    assert (tmp_path / ".bashrc").read_text() == "export A=1\n"


@pytest.mark.parametrize("logger", [DiskLogger, TensorBoardLogger, lambda log_dir: WandBLogger(log_dir=log_dir)])
def test_no_logger_writes_to_another_machine(logger, folder):
    with pytest.raises(ConfigError, match="log_dir: s3://elsewhere/logs is not a folder of this machine"):
        logger("s3://elsewhere/logs")
    assert not list(folder.iterdir())


def test_a_log_dir_that_cannot_be_made_is_an_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="log_dir: cannot make .*file/logs"):
        DiskLogger(tmp_path / "file" / "logs")


# --- TensorBoard ---


@pytest.mark.parametrize("organize_logs", [True, False])
def test_tensorboard_reads_back_what_was_logged(tmp_path, organize_logs):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logger = TensorBoardLogger(tmp_path, organize_logs=organize_logs)
    logger.log_dict({"loss": torch.tensor(0.5)}, 1)
    logger.log("loss", 0.25, 2)
    logger.log_config({"optimizer": {"lr": 1e-4}})
    logger.close()
    (events,) = tmp_path.rglob("events.out.tfevents.*")
    assert (events.parent == tmp_path) != organize_logs
    reader = EventAccumulator(str(events.parent)).Reload()
    assert [(event.step, event.value) for event in reader.Scalars("loss")] == [(1, 0.5), (2, 0.25)]
    assert b'"lr": 0.0001' in reader.Tensors("config/text_summary")[0].tensor_proto.string_val[0]


def test_a_missing_tensorboard_names_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ConfigError, match="pip install tensorboard"):
        TensorBoardLogger(tmp_path)


# --- all together ---


def test_every_logger_and_the_file_get_everything(tmp_path):
    one, two = Recorder(), Recorder()
    loggers = MetricLoggers(tmp_path, [one, two])
    loggers.log_config({"seed": 1})
    loggers.log_dict({"loss": 2.0}, 1)
    loggers.log("val_loss", 1.5, 1)
    loggers.close()
    assert one.rows == two.rows == [(1, {"loss": 2.0}), (1, {"val_loss": 1.5})]
    assert one.config == {"seed": 1} and one.closed and two.closed
    assert metric_rows(tmp_path) == [{"step": 1, "loss": 2.0}, {"step": 1, "val_loss": 1.5}]


@pytest.mark.parametrize("given", [None, [], "one"])
def test_a_config_may_name_no_logger_or_one(tmp_path, given):
    recorder = Recorder()
    loggers = MetricLoggers(tmp_path, recorder if given == "one" else given)
    loggers.log("loss", 1.0, 1)
    loggers.close()
    assert recorder.closed == (given == "one")
    assert metric_rows(tmp_path) == [{"step": 1, "loss": 1.0}]


def test_a_failing_logger_is_one_warning_and_the_others_go_on(tmp_path, capsys):
    broken, recorder = Broken(), Recorder()
    loggers = MetricLoggers(tmp_path, [broken, recorder])
    for step in range(1, 8):
        loggers.log("loss", float(step), step)
    loggers.close()
    assert broken.calls == MetricLoggers.max_failures
    assert len(recorder.rows) == len(metric_rows(tmp_path)) == 7 and recorder.closed
    warnings = capsys.readouterr().err.splitlines()
    assert len(warnings) == 1
    assert "Broken failed (RuntimeError: the service is gone)" in warnings[0]
    assert str(tmp_path / "metrics.jsonl") in warnings[0]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_does_not_stop_training(tmp_path, capsys):
    recorder = Recorder()
    loggers = MetricLoggers(tmp_path, recorder)
    loggers._file._file = open("/dev/full", "a")  # noqa: SIM115
    for step in range(5):
        loggers.log("loss", 1.0, step)
    loggers.close()
    assert len(recorder.rows) == 5
    assert capsys.readouterr().err.count("No space left on device") == 1


def test_an_output_dir_that_cannot_be_made_is_an_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="output_dir: cannot write to .*file/run"):
        MetricLoggers(tmp_path / "file" / "run")


def test_a_resumed_run_goes_on_in_the_file(tmp_path):
    for start, resumed_step in ((1, 0), (3, 2)):
        loggers = MetricLoggers(tmp_path, resumed_step=resumed_step)
        for step in range(start, start + 3):
            loggers.log("loss", float(step), step)
        loggers.close()
    assert [row["step"] for row in metric_rows(tmp_path)] == [1, 2, 3, 4, 5]


def test_a_resumed_run_hands_no_row_on_twice(tmp_path):
    first, second = Recorder(), Recorder()
    metrics = MetricLoggers(tmp_path, first)
    for step in (1, 2, 3):
        metrics.log_dict({"loss": 1.0 / step}, step)
    metrics.close()  # killed here, before the validation of step 3 was logged
    metrics = MetricLoggers(tmp_path, second, resumed_step=1)
    for step in (2, 3, 4):
        metrics.log_dict({"loss": 1.0 / step}, step)
    metrics.log_dict({"val_loss": 2.0}, 3)
    metrics.close()
    assert [(step, *payload) for step, payload in second.rows] == [(4, "loss"), (3, "val_loss")]
    assert [row["step"] for row in metric_rows(tmp_path)] == [1, 2, 3, 4, 3]


def test_secrets_in_the_config_are_blanked_and_tokens_are_not(tmp_path):
    recorder = Recorder()
    config = {
        "tokenizer": {"path": "m", "pad_token": 3, "max_new_tokens": 9},
        "loggers": [{"api_key": "s3cret", "project": "p"}],
        "hf_token": "s3cret",
        "seed": 1,
    }
    MetricLoggers(tmp_path, recorder).log_config(config)
    assert "s3cret" not in json.dumps(recorder.config)
    assert recorder.config["tokenizer"] == config["tokenizer"]
    assert recorder.config["loggers"][0]["project"] == "p"
    assert config["hf_token"] == "s3cret"


# --- Weights & Biases ---


class FakeRun:
    """A run that keeps its rows and can fail or hang at `finish`."""

    dir = "/somewhere/files"

    def __init__(self, finish=lambda: None):
        self.rows, self.finish = [], finish
        self.config = types.SimpleNamespace(update=lambda config, **kwargs: None)

    def define_metric(self, *args, **kwargs):
        pass

    def log(self, row):
        self.rows.append(row)


class UsageError(Exception):
    """The exception of wandb for a user's mistake."""


@pytest.fixture
def wandb(monkeypatch):
    """A wandb module whose `init` is to be set by the test."""
    module = types.ModuleType("wandb")
    module.run, module.calls = None, []
    module.errors = types.SimpleNamespace(UsageError=UsageError)
    monkeypatch.setitem(sys.modules, "wandb", module)
    return module


def init(wandb, *outcomes):
    """Make each call of `wandb.init` return or raise the next outcome."""
    left = list(outcomes)

    def call(**kwargs):
        wandb.calls.append(kwargs)
        outcome = left.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    wandb.init = call


def test_wandb_gets_torchtunes_arguments_and_the_rest(wandb, tmp_path):
    init(wandb, FakeRun())
    logger = WandBLogger("p", "e", "g", str(tmp_path / "logs"), name="run 1", mode="offline")
    assert wandb.calls == [
        {"project": "p", "entity": "e", "group": "g", "dir": str(tmp_path / "logs"), "name": "run 1", "mode": "offline"}
    ]
    logger.log_dict({"loss": 1.0}, 4)
    assert logger.run.rows == [{"loss": 1.0, "global_step": 4}]
    assert (tmp_path / "logs").is_dir()


def test_wandb_goes_on_with_the_run_it_is_given_the_id_of(wandb):
    init(wandb, FakeRun(), FakeRun())
    WandBLogger(run_id="abc-1")
    assert (wandb.calls[0]["id"], wandb.calls[0]["resume"]) == ("abc-1", "allow")
    WandBLogger(run_id="abc-1", id="mine", resume="must")
    assert (wandb.calls[1]["id"], wandb.calls[1]["resume"]) == ("mine", "must")


def test_wandb_joins_a_run_that_is_already_there(wandb):
    wandb.run = FakeRun()
    assert WandBLogger().run is wandb.run
    assert wandb.calls == []


def test_wandb_that_does_not_answer_goes_offline_with_one_warning(wandb, capsys):
    init(wandb, ConnectionError("timed out\nwhile retrying"), FakeRun())
    logger = WandBLogger(project="p", tags=["a"])
    assert wandb.calls[1] == wandb.calls[0] | {"mode": "offline"}
    logger.log("loss", 1.0, 1)
    assert logger.run.rows == [{"loss": 1.0, "global_step": 1}]
    warning = "W&B did not start (timed out); logging offline: send the run later with `wandb sync /somewhere`"
    assert capsys.readouterr().err.count(warning) == 1


def test_wandb_that_cannot_start_at_all_is_left_out(wandb, capsys, tmp_path):
    init(wandb, RuntimeError("no service"), RuntimeError("no service"))
    loggers = MetricLoggers(tmp_path, WandBLogger())
    loggers.log_config({"seed": 1})
    loggers.log("loss", 1.0, 1)
    loggers.close()
    assert metric_rows(tmp_path) == [{"step": 1, "loss": 1.0}]
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_wandb_that_fails_while_logging_does_not_stop_training(wandb, capsys, tmp_path):
    run = FakeRun()
    init(wandb, run)
    loggers = MetricLoggers(tmp_path, WandBLogger())
    loggers.log("loss", 1.0, 1)
    run.log = lambda row: (_ for _ in ()).throw(BrokenPipeError("service killed"))
    for step in range(2, 8):
        loggers.log("loss", 1.0, step)
    loggers.close()
    assert len(metric_rows(tmp_path)) == 7
    assert capsys.readouterr().err.count("service killed") == len(run.rows) == 1


def test_a_missing_key_and_a_wrong_argument_are_errors(wandb):
    init(wandb, UsageError("No API key configured."))
    with pytest.raises(ConfigError, match="No API key configured. Or set WANDB_MODE=offline"):
        WandBLogger()
    init(wandb, TypeError("init() got an unexpected keyword argument 'nmae'"))
    with pytest.raises(TypeError, match="nmae"):
        WandBLogger(nmae="run 1")


def test_wandb_that_hangs_at_the_end_is_left_after_a_while(wandb, capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(WandBLogger, "finish_timeout_s", 0.1)
    release, ended = threading.Event(), []
    init(wandb, FakeRun(finish=lambda: ended.append(release.wait(60))))
    loggers = MetricLoggers(tmp_path, WandBLogger())
    loggers.close()
    assert ended == []
    release.set()
    assert "not finished after 0.1 s" in capsys.readouterr().err


def test_an_error_at_the_end_is_one_warning(wandb, capsys, tmp_path):
    def finish():
        raise OSError("upload failed")

    init(wandb, FakeRun(finish))
    MetricLoggers(tmp_path, WandBLogger()).close()
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_answers_go_to_a_file_and_the_first_of_them_to_wandb_as_a_table(wandb, tmp_path):
    init(wandb, FakeRun())
    wandb.Table = lambda columns, data: (columns, data)
    logger = WandBLogger()
    metrics = MetricLoggers(tmp_path, [logger, Recorder()])
    rows = [{"prompt": "市", "answer": str(number), "f1": 0.5} for number in range(25)]
    metrics.log_table("answers", rows, step=3)
    lines = (tmp_path / "answers/step_3.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == rows
    [logged] = logger.run.rows
    assert logged["global_step"] == 3
    assert logged["answers"] == (["prompt", "answer", "f1"], [list(row.values()) for row in rows[:20]])


def test_a_missing_wandb_names_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ConfigError, match="pip install wandb"):
        WandBLogger()


def test_wandb_offline_needs_no_account_and_keeps_config_and_metrics(tmp_path, monkeypatch):
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    logger = WandBLogger(project="demo", group="g", log_dir=str(tmp_path / "logs"), name="run-1", run_id="7f3a-1")
    assert logger.run.id == "7f3a-1"
    loggers = MetricLoggers(tmp_path, logger)
    loggers.log_config({"optimizer": {"lr": 0.00031415}})
    for step in range(1, 4):
        loggers.log_dict({"loss": 1 / step, "lr": 1e-4}, step)
    assert (logger.run.project, logger.run.group, logger.run.name) == ("demo", "g", "run-1")
    loggers.close()
    sys.modules["wandb"].teardown()  # waits for the service, which ends the file after `finish` has returned
    (record,) = (tmp_path / "logs/wandb").glob("offline-run-*/*.wandb")
    content = record.read_bytes()
    pieces = (b"run-1", b"0.00031415", b"global_step", b"0.3333333333333333")
    assert [piece for piece in pieces if piece not in content] == []
    assert len(metric_rows(tmp_path)) == 3
