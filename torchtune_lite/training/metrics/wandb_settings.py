"""The Weights & Biases settings open to a config: none that sends credentials or more than the run's metrics.

W&B sends the API key of the environment to whatever `base_url` it is given, and the program's code with `save_code`.
Those are for whoever owns the key to decide: in the environment, not in a YAML.
"""

import os
from collections.abc import Mapping
from typing import Any

from torchtune_lite.errors import ConfigError

HARMLESS = (
    *("console", "finish_timeout", "heartbeat_seconds", "init_timeout", "summary_timeout"),
    *("quiet", "show_colors", "show_emoji", "show_errors", "show_info", "show_warnings", "silent"),
    *("disable_code", "disable_git", "disable_job_creation"),
    *("x_disable_machine_info", "x_disable_meta", "x_disable_stats", "x_stats_sampling_interval"),
)
"""The settings that a config may have; those to disable something, only to disable it."""


def check_wandb(mode: str | None, save_code: bool | None, settings: Mapping[str, Any] | None) -> None:
    """Raise ConfigError for an argument of `wandb.init` that a config may not give, with what to do instead."""
    for name, value in (settings or {}).items():
        known = f"x{name}" if name.startswith("_") else str(name)  # as they were called before wandb 0.19
        variable = f"WANDB_{name.upper()}"
        if known not in HARMLESS:
            raise ConfigError(
                f"metric_logger.settings: a config may not set {name}, which could send credentials or files "
                f"elsewhere; set {variable} in the environment (a config may set {', '.join(HARMLESS)})"
            )
        if "disable" in known and value is not True:
            raise ConfigError(
                f"metric_logger.settings: a config may only set {name}: True; remove it, or set {variable}"
            )
    if save_code:
        raise ConfigError("metric_logger.save_code: a config may not send code; set WANDB_SAVE_CODE=true instead")
    chosen = os.environ.get("WANDB_MODE", mode)
    if mode not in (None, chosen, "offline", "disabled"):
        raise ConfigError(f"metric_logger.mode: {mode} contradicts WANDB_MODE={chosen}; change one of them")
