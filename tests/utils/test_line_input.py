import io
import sys
from pathlib import Path

import pytest

from torchtune_lite.utils import LineInput, visible
from torchtune_lite.utils import line_input as module


@pytest.mark.parametrize("text", ["", "a\n", "a\r\n\n b ", "市\n\nlast without an end"])
def test_lines_of_a_pipe_come_without_a_prompt(monkeypatch, capsys, text, tmp_path):
    monkeypatch.setattr(sys, "stdin", io.StringIO(text, newline=None))
    lines = LineInput(tmp_path / "history")
    assert not lines.interactive
    assert list(lines.lines("> ")) == text.replace("\r\n", "\n").splitlines()
    assert capsys.readouterr().out == "" and not (tmp_path / "history").exists()


class Readline:
    """What is asked of readline."""

    def __init__(self):
        self.lines = ["before"]

    def read_history_file(self, path):
        self.lines = Path(path).read_text().splitlines()

    def write_history_file(self, path):
        Path(path).write_text("\n".join(self.lines))

    def set_history_length(self, length):
        self.lines = self.lines[-length:]


@pytest.fixture
def typed(monkeypatch):
    """Gives the lines of a terminal in which a person types: lines, or exceptions as keys make them."""
    readline = Readline()

    def lines(keys, history=None):
        def read(prompt):
            assert prompt == "> "
            found = keys.pop(0)
            if isinstance(found, type):
                raise found
            readline.lines.append(found)
            return found

        monkeypatch.setattr("builtins.input", read)
        monkeypatch.setattr(module, "find_readline", lambda: readline)
        for name in ("stdin", "stdout"):
            monkeypatch.setattr(getattr(sys, name), "isatty", lambda: True)
        return list(LineInput(history).lines("> "))

    return lines


def test_ctrl_c_drops_a_line_and_ctrl_d_ends(typed, capsys):
    assert typed(["a", KeyboardInterrupt, "b", EOFError]) == ["a", "b"]
    assert capsys.readouterr().out == "\n(Ctrl-D or /exit leaves)\n\n"


def test_lines_are_kept_and_read_again(typed, tmp_path):
    history = tmp_path / "a/b/history"
    typed(["a", "b", EOFError], history)
    assert history.read_text() == "before\na\nb" and history.stat().st_mode & 0o777 == 0o600
    typed(["c", EOFError], history)
    assert history.read_text() == "before\na\nb\nc"


def test_a_history_that_cannot_be_kept_is_one_warning(typed, tmp_path, log_lines):
    (tmp_path / "file").write_text("")
    assert typed(["a", "b", EOFError], tmp_path / "file/history") == ["a", "b"]
    assert log_lines == [f"history {tmp_path}/file/history is not kept: File exists"]


def test_what_could_steer_a_terminal_is_shown_as_its_escape():
    assert visible("a\x1b[31m\x07\t市\n\x9b👨\u200d👩\r") == "a\\x1b[31m\\x07\t市\n\\x9b👨\u200d👩\\r"
