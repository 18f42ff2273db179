"""A conversation as people have it: in a pseudo-terminal, and through a pipe."""

import codecs
import fcntl
import json
import os
import pty
import re
import select
import signal
import stat
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest

from tests import scripted_model

SCRIPT = {"A": "𝄞市", "B": "大安" * 2, "C": "路\x1b"}
"""What the model says after a question that ends with this letter; the second goes round and round."""


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "my model"
    scripted_model.make(folder, SCRIPT)
    return folder


class Terminal:
    """`tune` in a terminal of its own, as a person drives it."""

    def __init__(self, cwd: Path, *words: object) -> None:
        self.text, self._at, self._decode = "", 0, codecs.getincrementaldecoder("utf-8")("replace").decode
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "TERM": "dumb", "HOME": str(cwd), "LC_ALL": "C.UTF-8"}
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
        self._master, slave = pty.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "torchtune_lite", *map(str, words)],
            **dict.fromkeys(("stdin", "stdout", "stderr"), slave),
            cwd=cwd,
            env=environment,
            start_new_session=True,
            preexec_fn=self._own_terminal,
        )
        os.close(slave)

    @staticmethod
    def _own_terminal() -> None:
        """Make Ctrl-C reach the process, as a shell does in front, even where these tests run in the background."""
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    def expect(self, pattern: str, seconds: float = 60) -> str:
        """Waits for a pattern after what was waited for before; gives the text up to its end."""
        deadline = time.monotonic() + seconds
        while not (found := re.compile(pattern, re.DOTALL).search(self.text, self._at)):
            seen = self.text[self._at :]
            assert time.monotonic() < deadline, f"no {pattern!r} in:\n{seen}"
            if select.select([self._master], [], [], 0.1)[0]:
                try:
                    self.text += self._decode(os.read(self._master, 65536))
                except OSError:
                    raise AssertionError(f"it ended, without {pattern!r}:\n{seen}") from None
        before, self._at = self.text[self._at : found.end()], found.end()
        return before

    def send(self, text: str) -> None:
        os.write(self._master, text.encode())

    def interrupt(self, pattern: str) -> str:
        """Presses Ctrl-C at the prompt until the pattern comes.

        `input()` loses a signal that falls between readline's printing and its waiting (it waits without a look at
        what came before), so a person may have to press twice, too.
        """
        for _ in range(20):
            self.send("\x03")
            try:
                return self.expect(pattern, seconds=5)
            except AssertionError:
                assert self.process.poll() is None, self.text
        raise AssertionError(f"no {pattern!r} in:\n{self.text}")

    def end(self) -> int:
        """Waits for the end and gives the exit code."""
        code = self.process.wait(60)
        os.close(self._master)
        return code


@pytest.fixture
def chat(model, tmp_path):
    opened = []

    def start(*words):
        opened.append(Terminal(tmp_path, "chat", model, "temperature=0", "device=cpu", "dtype=fp32", *words))
        opened[-1].expect("/help lists the commands.*\n> $")
        return opened[-1]

    yield start
    for terminal in opened:
        terminal.process.kill()
        terminal.process.wait()


def test_a_conversation_in_a_terminal(chat, tmp_path):
    terminal = chat("--system", "Be brief.")
    assert "system prompt: Be brief." in terminal.text
    terminal.send("Say 市 A\n")
    said = terminal.expect(r"\[5 tokens, [\d.]+ tokens/s\]\r\n> $")
    assert "\n𝄞市\r\n" in said and "\ufffd" not in said
    terminal.send("C\n")
    assert "路\\x1b\r\n" in terminal.expect("tokens/s.*> $")  # which could steer the terminal
    terminal.send("/save\n")
    terminal.expect("added 5 messages to chat.jsonl\r\n> $")
    terminal.send("/help\n")
    terminal.expect("/reset .*\n> $")
    terminal.send("/nonsense\n")
    terminal.expect("warning: there is no /nonsense; /help lists the commands\r\n> $")
    terminal.send("/system Be kind.\n")
    terminal.expect("system prompt: Be kind.\r\n> $")
    terminal.send("//A\n")
    terminal.expect("𝄞市\r\n.*> $")
    terminal.send("/save b.jsonl\n")
    terminal.expect("added 3 messages.*> $")
    terminal.send("/exit\n")
    assert terminal.end() == 0
    first, second = (json.loads((tmp_path / name).read_text())["messages"] for name in ("chat.jsonl", "b.jsonl"))
    assert [(turn["role"], turn["content"]) for turn in first] == [
        *(("system", "Be brief."), ("user", "Say 市 A"), ("assistant", "𝄞市")),
        *(("user", "C"), ("assistant", "路\x1b")),
    ]
    assert [turn["content"] for turn in second] == ["Be kind.", "/A", "𝄞市"]


def test_ctrl_c_ends_the_answer_and_not_the_conversation(chat, tmp_path):
    terminal = chat("max_new_tokens=100000")
    terminal.send("B\n")
    terminal.expect("大安大安大安")
    terminal.send("\x03")
    assert re.search(r"\r\n\[[\d,]+ tokens, .* tokens/s; stopped\]", terminal.expect("> $"))
    terminal.send("half a question")
    terminal.expect("half a question$")
    terminal.interrupt(r"\(Ctrl-D or /exit leaves\)\r\n> $")
    terminal.send("A\n")
    terminal.expect("𝄞市\r\n.*> $")  # and nothing of the half
    terminal.send("/save\n")
    terminal.expect("added 4 messages.*> $")
    terminal.send("\x04")
    assert terminal.end() == 0
    turns = [turn["content"] for turn in json.loads((tmp_path / "chat.jsonl").read_text())["messages"]]
    assert (turns[0], turns[2:]) == ("B", ["A", "𝄞市"]) and turns[1].startswith("大安大安大安")


def test_a_conversation_that_is_too_long_costs_a_turn_and_a_signal_to_end_ends_it(chat):
    terminal = chat("max_new_tokens=100000")
    terminal.send("x" * 3000 + " A\n")
    terminal.expect(r"warning: a prompt of [\d,]+ tokens leaves no room for an answer: .*> $")
    terminal.send("B\n")
    terminal.expect("大安大安大安")
    terminal.process.send_signal(signal.SIGTERM)
    terminal.expect("stopped by SIGTERM")
    assert terminal.end() == 143


def test_questions_are_kept_for_the_next_time_and_for_nobody_else(chat, tmp_path):
    terminal = chat("history=~/mine/questions")
    terminal.send("the first A\n")
    terminal.expect("tokens/s.*> $")
    terminal.send("\x04")
    assert terminal.end() == 0
    history = tmp_path / "mine/questions"
    assert "the first A" in history.read_text() and stat.S_IMODE(history.stat().st_mode) == 0o600
    terminal = chat("history=~/mine/questions", "max_new_tokens=4")
    terminal.send("/save\n")
    terminal.expect("warning: there is no answer to save yet\r\n> $")
    terminal.send("\x10\x10\n")  # as the arrow upwards
    assert "the first A" in terminal.expect("𝄞\r\n.*tokens/s; cut at max_new_tokens.*> $")


def test_through_a_pipe_each_line_is_a_question_and_only_answers_are_printed(model, tmp_path, tune_piped):
    done = tune_piped(
        "chat", model, "temperature=0", "device=cpu", "--system", "s", lines=["A", "", "/nope", "C", "/system", "A"]
    )
    assert done.stdout == "𝄞市\n路\x1b\n𝄞市\n" and done.returncode == 0
    assert "there is no /nope" in done.stderr and "system prompt: s\n" in done.stderr
    assert not (tmp_path / ".cache/torchtune_lite/chat_history").exists()


@pytest.fixture
def tune_piped(tmp_path):
    """Runs `tune` with lines through a pipe."""

    def run(*words, lines):
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "HOME": str(tmp_path), "LC_ALL": "C.UTF-8"}
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
        command = [sys.executable, "-m", "torchtune_lite", *map(str, words)]
        text = "".join(f"{line}\n" for line in lines)
        return subprocess.run(command, input=text, cwd=tmp_path, env=environment, capture_output=True, text=True)

    return run
