import json

import pytest

from torchtune_lite.cli.verbs import env
from torchtune_lite.utils import machine


def test_prints_sections_of_lines(tune, monkeypatch):
    report = {"versions": {"torch": "2.13", "torchao": None}, "devices": {"cpu": {"name": "X", "memory_gib": 8.0}}}
    monkeypatch.setattr(env, "describe_machine", lambda: report)
    assert tune("env").splitlines() == [
        "versions",
        "  torch            2.13",
        "  torchao          not installed",
        "devices",
        "  cpu              name X, memory 8.0 GiB",
    ]
    assert json.loads(tune("env", "--json")) == report


@pytest.mark.parametrize(("value", "text"), [({"memory_gib": None}, "memory unknown"), ("plain", "plain")])
def test_what_is_not_known_is_said(value, text):
    assert env.written(value) == text


def test_the_real_report_is_one_line_for_each_thing(tune):
    lines = tune("env").splitlines()
    assert [line for line in lines if not line.startswith("  ")] == list(machine.describe_machine())


def test_no_secret_of_the_environment_is_shown(tune, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "s3cret-of-mine")
    monkeypatch.setattr(env, "describe_machine", lambda: {"wandb": {"mode": "s3cret-of-mine"}})
    assert tune("env").splitlines() == ["wandb", "  mode             ***"]
    assert "s3cret" not in tune("env", "--json")
