"""Whether W&B runs are sent, kept or not made, and to which project they go: the user's nearest word wins.

From the nearest: the environment (WANDB_DISABLED, WANDB_MODE, WANDB_PROJECT, WANDB_ENTITY), what `wandb offline` and
`wandb disabled` have left in wandb's settings files, the configuration's `wandb`. What the configuration switches off
(`mode: disabled` or `wandb: null`) stays off, and what it keeps (`mode: offline`) `wandb online` does not send.
No wandb here: the Snakefile and Snakemake's logger plugin ask, too.
"""

import configparser
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from icprobe.errors import ConfigError, shown

VARIABLE = "ICPROBE_TRACKING"  # set by the Snakefile: the configuration's `wandb` and the experiment's name
# What a job on another machine must know too, where it is set.
ENVIRONMENT = ("WANDB_MODE", "WANDB_DISABLED", "WANDB_PROJECT", "WANDB_ENTITY", "WANDB_BASE_URL")
# Set when an invocation finds at its start that runs cannot go to the server: why. None of its jobs asks again.
KEPT = "ICPROBE_TRACKING_KEPT"
# W&B's words for its modes, older ones among them.
MODES = {"online": "online", "run": "online", "offline": "offline", "dryrun": "offline", "disabled": "disabled"}
NO = {"", "0", "false", "no", "off"}
# The id of the run that Snakemake's logger plugin makes of this process's own workflow, once it does.
own_run: str | None = None


def settings(environment: Mapping[str, str] | None = None) -> dict[str, Any]:
    """mode (auto, online, offline, disabled), project, entity, texts and experiment of the runs; why: who has said the
    mode.

    environment: variables (default: this process's). Raises ConfigError for a WANDB_MODE that is none.
    """
    environment = os.environ if environment is None else environment
    chosen = {"why": "wandb.mode", "texts": False, **json.loads(environment.get(VARIABLE) or '{"mode": "disabled"}')}
    if chosen["mode"] == "disabled":
        return chosen
    word = asked(environment)
    # A settings file of wandb may keep runs here; it sends none that the configuration keeps.
    if word and not (word[1] == "online" and chosen["mode"] == "offline" and not word[0].startswith("WANDB_")):
        chosen["why"], chosen["mode"] = word
    if chosen["mode"] != "disabled" and (why := environment.get(KEPT)):
        chosen["why"], chosen["mode"] = why, "offline"
    for key in ("project", "entity"):
        chosen[key] = environment.get(f"WANDB_{key.upper()}") or chosen.get(key) or in_files(environment, key)
    return chosen


def asked(environment: Mapping[str, str]) -> tuple[str, str] | None:
    """(where it is said, the mode) by the environment or wandb's settings files; None where neither has a word."""
    if environment.get("WANDB_DISABLED", "").strip().lower() not in NO:
        return "WANDB_DISABLED", "disabled"
    if said := environment.get("WANDB_MODE", "").strip().lower():
        if said not in MODES:
            raise ConfigError(f"WANDB_MODE: {shown(said)} is not a mode; use online, offline or disabled")
        return "WANDB_MODE", MODES[said]
    for path, word in _words(environment, "mode"):
        if said := MODES.get(word):
            return str(path), said
    return None


def in_files(environment: Mapping[str, str], key: str) -> str | None:
    """What wandb's files say of a key, such as the server that `wandb login --host` leaves there (base_url)."""
    return next((word for _, word in _words(environment, key) if word), None)


def _words(environment: Mapping[str, str], key: str) -> Iterator[tuple[Path, str]]:
    """(file, what it says of a key): what stands in the working directory overrides what stands in the home, as in
    wandb.
    """
    home = environment.get("WANDB_CONFIG_DIR") or os.path.expanduser("~/.config/wandb")
    for path in (Path("wandb", "settings"), Path(home, "settings")):
        file = configparser.ConfigParser(interpolation=None)
        try:
            file.read(path, encoding="utf-8")
        except (OSError, configparser.Error, UnicodeDecodeError):
            continue
        yield path, file.get("default", key, fallback="").strip()
