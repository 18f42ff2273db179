import inspect

import pytest

from torchtune_lite.errors import ConfigError
from torchtune_lite.training import WandBLogger
from torchtune_lite.training.metrics.wandb_settings import HARMLESS, check_wandb

Settings = pytest.importorskip("wandb").Settings


@pytest.mark.parametrize("name", sorted(set(Settings.model_fields) - set(HARMLESS)) + ["_extra_http_headers", "other"])
def test_every_setting_that_is_not_known_to_be_harmless_is_refused_by_name(name):
    with pytest.raises(ConfigError, match=f"may not set {name}, .*; set WANDB_{name.upper()} in the environment"):
        check_wandb(None, None, {"quiet": True, name: "https://elsewhere.example"})


def test_what_redirects_or_carries_secrets_is_not_among_the_harmless():
    harmful = {"api_key", "base_url", "app_url_override", "identity_token_file", "credentials_file", "http_proxy"}
    harmful |= {"https_proxy", "x_extra_http_headers", "x_proxies", "insecure_disable_ssl", "save_code", "code_dir"}
    assert harmful <= set(Settings.model_fields) and not harmful & set(HARMLESS)
    assert set(HARMLESS) <= set(Settings.model_fields)


def test_harmless_settings_stay():
    check_wandb(None, None, {name: True for name in HARMLESS} | {"_disable_stats": True})


@pytest.mark.parametrize("name", [name for name in HARMLESS if "disable" in name])
def test_what_the_environment_disables_is_not_enabled_again(name):
    with pytest.raises(ConfigError, match=f"may only set {name}: True; remove it, or set WANDB_"):
        check_wandb(None, None, {name: False})


@pytest.mark.parametrize(
    ("mode", "variable", "right"),
    [
        (None, "offline", True),
        ("offline", "online", True),
        ("disabled", "online", True),
        ("online", None, True),
        ("online", "online", True),
        ("online", "offline", False),
        ("online", "disabled", False),
        ("shared", "offline", False),
    ],
)
def test_a_config_does_not_send_what_the_environment_keeps(mode, variable, right, monkeypatch):
    monkeypatch.delenv("WANDB_MODE", raising=False)
    if variable:
        monkeypatch.setenv("WANDB_MODE", variable)
    if right:
        check_wandb(mode, None, None)
        return
    with pytest.raises(ConfigError, match=f"mode: {mode} contradicts WANDB_MODE={variable}"):
        check_wandb(mode, None, None)


def test_code_is_not_sent():
    check_wandb(None, False, None)
    with pytest.raises(ConfigError, match="may not send code; set WANDB_SAVE_CODE=true"):
        check_wandb(None, True, None)


def test_the_logger_refuses_before_wandb_is_started(monkeypatch):
    import wandb

    monkeypatch.setattr(wandb, "init", lambda **_: pytest.fail("started"))
    with pytest.raises(ConfigError, match="may not set base_url"):
        WandBLogger(settings={"base_url": "https://elsewhere.example"})


def test_the_logger_takes_no_other_argument_of_wandb_that_redirects():
    assert set(inspect.signature(WandBLogger).parameters) == {
        *("project", "entity", "group", "log_dir", "run_id", "dir", "id", "job_type", "mode", "name", "notes"),
        *("resume", "save_code", "settings", "tags"),
    }
