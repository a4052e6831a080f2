"""The config file: defaults of flags, in TOML."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sttm_cli.base.errors import UsageError
from sttm_cli.base.spelling import did_you_mean

CONFIG_KEYS = (
    "model",
    "revision",
    "budget",
    "method",
    "merge_layer",
    "positions",
    "fps",
    "frames",
    "decoder",
    "device",
    "dtype",
    "kv_dtype",
    "cache_dir",
    "max_bytes",
    "max_new_tokens",
    "temperature",
    "max_download",
    "keep_alive",
)
"""Settings that may stand in the config file. A seed and a top-p belong to one call."""

_NUMBERS: dict[str, Callable[[str], Any]] = {
    "merge_layer": int,
    "frames": int,
    "max_new_tokens": int,
    "fps": float,
    "temperature": float,
}
STORE_KEYS: tuple[str, ...] = ("cache_dir", "max_bytes")
"""Those that say something to commands that only look at the cache."""


def config_path() -> Path:
    """The config file: STTM_CONFIG, else config.toml in the user's config folder."""
    if os.environ.get("STTM_CONFIG"):
        return Path(os.environ["STTM_CONFIG"])
    from platformdirs import user_config_path

    return user_config_path("sttm") / "config.toml"


def read_config() -> dict[str, str]:
    """What the config file says, as it would be typed; `{}` where there is none.

    Keys are flags without their dashes (`budget = 0.3`). Raises UsageError for a file that
    cannot be read or holds an unknown key.
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
            check_value(key, text)
        except UsageError as error:
            raise UsageError(f"config file {path}: {error.message}", error.hint) from error
    return given


def check_value(key: str, text: str) -> None:
    """Raise UsageError for a value, as typed, that the flag of this name would not take."""
    from sttm_cli.settings.settings import Settings, parse_duration

    if key == "keep_alive":
        parse_duration("--keep-alive", text)
        return
    try:
        value = _NUMBERS.get(key, str)(text)
    except ValueError:
        flag = "--" + key.replace("_", "-")
        raise UsageError(f"{flag} {text!r} is not a number", "give a number") from None
    Settings(**{key: value})


def config_defaults() -> dict[str, dict[str, Any]]:
    """Defaults per command from the config file; raises as `read_config`."""
    shared = read_config()
    store = {key: shared[key] for key in STORE_KEYS if key in shared}
    # `inspect` compares budgets: the usual one says nothing there.
    compared = {key: value for key, value in shared.items() if key != "budget"}
    # These two mean something else to a server: what clients may have it fetch, and its own end.
    served = {k: value for k, value in shared.items() if k not in ("max_download", "keep_alive")}
    return {
        **dict.fromkeys(("ask", "chat", "precompute"), shared),
        "inspect": compared,
        "serve": served,
        "doctor": store,
        "cache": dict.fromkeys(("ls", "show", "rm", "prune", "verify", "path"), store),
    }
