"""One logger, plain lines on stderr, a level that a config can set."""

import logging
import re

import pytest
from tqdm import tqdm

from torchtune_lite import errors
from torchtune_lite.errors import ConfigError
from torchtune_lite.utils import LogFile, get_logger, silence


@pytest.fixture(autouse=True)
def restore_level():
    yield
    get_logger("INFO")


def test_a_message_is_one_plain_line(capsys):
    get_logger().info("resuming from %s", "epoch_0")
    assert re.fullmatch(r"\d\d:\d\d:\d\d INFO resuming from epoch_0\n", capsys.readouterr().err)


def test_the_level_holds_until_it_is_set_again(capsys):
    get_logger("warning")
    get_logger().info("quiet")
    get_logger().warning("loud")
    assert capsys.readouterr().err.count("\n") == 1


def test_a_configured_root_logger_does_not_repeat_messages(capsys):
    handler = logging.StreamHandler()
    logging.getLogger().addHandler(handler)
    try:
        get_logger().warning("once")
    finally:
        logging.getLogger().removeHandler(handler)
    assert capsys.readouterr().err.count("once") == 1


def test_a_message_does_not_tear_the_progress_bar(capsys):
    with tqdm(total=2, desc="epoch 0"):
        get_logger().info("saved")
    lines = re.split(r"[\r\n]", capsys.readouterr().err)
    assert any(re.fullmatch(r"\d\d:\d\d:\d\d INFO saved", line) for line in lines)


def test_an_unknown_level_names_the_key_and_the_choices():
    with pytest.raises(ConfigError, match="log_level: 'LOUD' .* DEBUG, INFO"):
        get_logger("LOUD")


def test_a_log_file_gets_the_lines_until_it_is_closed_and_no_secrets(tmp_path, capsys):
    path = tmp_path / "run.log"
    path.write_text("of an earlier start\n")
    log_file = LogFile(path)
    get_logger("INFO").warning("hf_0123456789abcdefghijklmnopqrstuvXYZ is careful")
    log_file.close()
    log_file.close()
    get_logger().warning("later")
    first, second = path.read_text().splitlines()
    assert first == "of an earlier start" and second.endswith("WARNING *** is careful")
    assert "hf_0" not in capsys.readouterr().err


def test_a_log_file_that_cannot_be_written_is_one_warning(tmp_path, log_lines):
    LogFile(tmp_path).close()
    assert log_lines == [f"{tmp_path} is not written: Is a directory"]


def test_a_log_file_has_what_the_command_has_said_before_and_after(tmp_path, capsys):
    path = tmp_path / "run.log"
    get_logger("INFO").info("before the command")
    with pytest.raises(SystemExit), errors.reporting():
        errors.warn("a key without effect")
        get_logger().info("device: auto chose cpu")
        log_file = LogFile(path)
        get_logger().info("step 1")
        errors.warn("in between")
        log_file.close()
        get_logger().info("later")
        raise errors.Stopped("stopped", 15)
    lines = [re.sub(r"^\d{4}-\S+ \S+ ", "", line) for line in path.read_text().splitlines()]
    assert lines == [
        "tune: warning: a key without effect",
        "INFO device: auto chose cpu",
        "INFO step 1",
        "tune: warning: in between",
        "tune: stopped",
    ]
    said = capsys.readouterr().err
    assert [line for line in lines if line not in said] == [] and "INFO later" in said
    with errors.reporting():
        LogFile(tmp_path / "next.log").close()
    assert (tmp_path / "next.log").read_text() == ""


def test_a_full_disk_costs_lines_of_the_file_and_no_traceback(tmp_path, capsys, monkeypatch):
    log_file = LogFile(tmp_path / "run.log")

    def full(text):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(log_file._handler.stream, "write", full, raising=False)
    get_logger("INFO").info("step 1")
    monkeypatch.undo()
    log_file.close()
    assert capsys.readouterr().err.count("\n") == 1


def test_a_process_that_is_not_the_first_says_nothing_but_in_its_file(tmp_path, capsys):
    log_file = LogFile(tmp_path / "rank_1.log")
    try:
        silence()
        get_logger("INFO").warning("seen by one")
    finally:
        log_file.close()
        for handler in get_logger().handlers:
            handler.setLevel("NOTSET")
    assert capsys.readouterr().err == "" and "WARNING seen by one" in (tmp_path / "rank_1.log").read_text()
