"""The scripts, in the shells themselves."""

import shutil
import subprocess
import sys

import pytest

from torchtune_lite.cli.verbs.completion import SCRIPTS

ASK_BASH = """
COMP_LINE="$1" COMP_POINT=${#1} COMP_WORDBREAKS=$' \\t\\n"=:'
_tune "$PWD/tune"
printf '%s\\n' "${COMPREPLY[@]}"
complete -p tune
"""
ASK_ZSH = """
compadd() { while [[ $1 != -- ]]; do shift; done; shift; print -l -- $@ }
compdef() { print -- "compdef $@" }
source ./script
LBUFFER="$1" words=("$PWD/tune")
_tune
"""


@pytest.fixture
def ask(folder):
    """Complete a line in a shell that has read its script."""
    (folder / "tune").write_text(f'#!/bin/sh\nexec {sys.executable} -m torchtune_lite "$@"\n')
    (folder / "tune").chmod(0o755)
    (folder / "my config.yaml").write_text("steps: 2\n")

    def run(shell, line):
        if not shutil.which(shell):
            pytest.skip(f"{shell} is not installed")
        (folder / "script").write_text(SCRIPTS[shell])
        (folder / "ask").write_text("source ./script\n" + ASK_BASH if shell == "bash" else ASK_ZSH)
        flags = ["--norc"] if shell == "bash" else ["-f"]
        done = subprocess.run([shell, *flags, "./ask", line], capture_output=True, text=True)
        assert done.stderr == ""
        return done.stdout.splitlines()

    return run


@pytest.mark.parametrize("shell", SCRIPTS)
def test_the_script_is_printed(shell, tune):
    assert tune("completion", shell) == SCRIPTS[shell]


@pytest.mark.parametrize("shell", SCRIPTS)
@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("tune va", ["validate"]),
        ("tune run lora", ["lora_finetune_distributed", "lora_finetune_single_device"]),
        ("tune validate demo/address_q", ["demo/address_qlora"]),
        ("tune run lora_finetune_single_device --config demo/address_qlora optimizer.l", ["optimizer.lr="]),
        ("tune cat my", ["my config.yaml"]),
        ("tune nonsense ", []),
    ],
)
def test_a_shell_completes(shell, line, expected, ask):
    registered = "complete -F _tune tune" if shell == "bash" else "compdef _tune tune"
    answers = ask(shell, line)
    assert registered in answers
    assert [answer for answer in answers if answer and answer != registered] == expected


def test_bash_gets_what_stands_behind_the_equals_sign(ask):
    assert ask("bash", "tune run generate --config=demo/address_q")[0] == "demo/address_qlora"
    assert ask("zsh", "tune run generate --config=demo/address_q")[1] == "--config=demo/address_qlora"
