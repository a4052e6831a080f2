"""The config file: defaults of flags, in TOML."""

from __future__ import annotations

import os
from pathlib import Path

from sttm_cli.base.errors import UsageError
from sttm_cli.base.spelling import did_you_mean
from sttm_cli.settings.fields import Setting
from sttm_cli.settings.settings import KEEP_ALIVE, SETTINGS

CONFIG_KEYS: dict[str, Setting] = {
    declared.name: declared for declared in (*SETTINGS.values(), KEEP_ALIVE) if declared.in_config
}
"""The settings that the config file may hold, by their keys."""


def config_path() -> Path:
    """The config file: STTM_CONFIG, else config.toml in the user's config folder."""
    if os.environ.get("STTM_CONFIG"):
        return Path(os.environ["STTM_CONFIG"])
    from platformdirs import user_config_path

    return user_config_path("sttm") / "config.toml"


def read_config() -> dict[str, str]:
    """The values in the config file, as they would be typed; `{}` where there is no file.

    Keys are flags without their dashes (`budget = 0.3`). Raises UsageError for a file that
    cannot be read or holds an unknown key or a value that its flag would not take.
    """
    path = config_path()
    if not path.exists():
        return {}
    import tomllib

    try:
        loaded = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"config file {path}: {error}") from error
    given = {key.replace("-", "_"): str(value) for key, value in loaded.items()}
    for key in sorted(set(given) - set(CONFIG_KEYS)):
        meant = did_you_mean(key, CONFIG_KEYS)
        raise UsageError(
            f"config file {path}: unknown key {key!r}", meant or f"known: {', '.join(CONFIG_KEYS)}"
        )
    for key, text in given.items():
        try:
            CONFIG_KEYS[key].read(text)
        except UsageError as error:
            raise UsageError(f"config file {path}: {error.message}", error.hint) from error
    return given
