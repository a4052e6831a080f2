"""The table of settings: whatever is declared of a field holds on every side it comes from."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, fields, replace
from pathlib import Path
from typing import Any

import pytest
import typer

from sttm_cli.base.errors import UsageError
from sttm_cli.cli import _defaults, app
from sttm_cli.serve.server_files import per_request, pinned
from sttm_cli.settings.fields import Scope
from sttm_cli.settings.settings import CONFIG_KEYS, SETTINGS, Settings, in_scope
from tests.reference_docs import commands, is_shared

TYPED: dict[str, tuple[str, Any]] = {
    **{name: (known.choices[-1],) * 2 for name, known in SETTINGS.items() if known.choices},
    "model": ("qwen3-vl-2b", "qwen3-vl-2b"),
    "revision": ("main", "main"),
    "budget": ("0.25", 0.25),
    "method": ("tome", "tome"),
    "merge_layer": ("3", 3),
    "options": ("newlines", ("newlines",)),
    "fps": ("2", 2),
    "frames": ("16", 16),
    "start": ("0:02", 2),
    "end": ("1:30", 90.0),
    "device": ("cuda:1", "cuda:1"),
    "cache_dir": ("/a/folder", Path("/a/folder")),
    "cache_tier": ("/a/tier", Path("/a/tier")),
    "no_cache": ("true", True),
    "refresh": ("true", True),
    "max_bytes": ("2G", 2 << 30),
    "max_new_tokens": ("7", 7),
    "system": ("be short", "be short"),
    "temperature": ("0.5", 0.5),
    "seed": ("5", 5),
    "top_p": ("0.9", 0.9),
    "max_download": ("500M", 500 << 20),
}
"""A value of each field as typed and from Python; none is the default."""
NEEDED = {"seed": {"temperature": 1.0}, "top_p": {"temperature": 1.0}}
NAMES = ("model", "revision", "device", "cache_dir", "cache_tier", "system")
"""Fields that take any text."""
every_field = pytest.mark.parametrize("name", [field.name for field in fields(Settings)])


def ask(*flags: str, defaults: dict[str, Any] | None = None) -> Settings:
    """The settings of `sttm ask` with these flags."""
    command: Any = typer.main.get_command(app)
    given = ["video", "question", *flags]
    context = command.commands["ask"].make_context("ask", given, default_map=defaults)
    return Settings(**{name: context.params[name] for name in SETTINGS})


def changed(name: str, value: Any) -> Settings:
    return Settings(**{**NEEDED.get(name, {}), name: value})


@every_field
def test_text_and_a_python_value_and_the_flag_give_equal_settings(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("STTM_CACHE_DIR")
    text, value = TYPED[name]
    wanted = changed(name, value)
    assert wanted != Settings(**NEEDED.get(name, {}))
    assert changed(name, text) == wanted
    assert hash(changed(name, text)) == hash(wanted)
    known = SETTINGS[name]
    beside = [flag for key, v in NEEDED.get(name, {}).items() for flag in SETTINGS[key].typed(v)]
    for flag in known.flags:
        typed = [flag] if known.is_switch else [flag, text]
        assert ask(*beside, *typed) == wanted
    assert ask(*beside, *known.typed(getattr(wanted, name))) == wanted


@every_field
def test_a_value_that_cannot_be_read_names_the_flag(name: str) -> None:
    # A list of names may be empty, and a name be any text.
    unreadable = [object(), {}, 3.5] if name == "options" else [object(), []]
    bad = unreadable if name == "options" else [*unreadable, "" if name in NAMES else "?!"]
    for value in bad:
        with pytest.raises(UsageError, match=SETTINGS[name].flag):
            Settings(**{name: value})
    if SETTINGS[name].default is not None:
        with pytest.raises(UsageError, match=SETTINGS[name].flag):
            Settings(**{name: None})


@every_field
def test_a_field_is_named_as_its_flag_and_has_one_place_on_a_server(name: str) -> None:
    known = SETTINGS[name]
    assert known.name == name
    assert (known.default is None) == (getattr(Settings(), name) is None)
    assert all(choice in known.help for choice in known.choices)
    assert sum(name in in_scope(scope) for scope in Scope) == 1
    assert {*pinned(Settings()), *per_request(Settings()), *in_scope(Scope.PROCESS)} == {*SETTINGS}


def test_flags_that_commands_share_are_those_of_the_table() -> None:
    shared = [p for _, command in commands() for p in command.params if is_shared(p)]
    options = [option for option in shared if option.name in SETTINGS]
    assert {option.name for option in options} == set(SETTINGS)
    for option in options:
        known = SETTINGS[option.name]
        report = (tuple(option.opts), option.help, option.envvar, option.default)
        assert report == (known.flags, known.help, known.env, known.default)


@pytest.mark.parametrize("name", [*CONFIG_KEYS.keys() - {"keep_alive", "no_log"}])
def test_a_flag_beats_the_environment_which_beats_the_file_which_beats_the_default(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known, (text, _) = SETTINGS[name], TYPED[name]
    config = tmp_path / "config.toml"
    monkeypatch.setenv("STTM_CONFIG", str(config))
    if known.env:
        monkeypatch.delenv(known.env, raising=False)
    default = getattr(Settings(), name)
    assert getattr(ask(defaults=_defaults(["ask"])["ask"]), name) == default
    config.write_text(f'{name} = "{text}"\n')
    given = _defaults(["ask"])["ask"]
    held = getattr(ask(defaults=given), name)
    assert held == known.read(text) != default
    others = {
        "model": "a",
        "budget": "0.125",
        "method": "evs",
        "cache_dir": "/b",
        "cache_tier": "/c",
    }
    if known.env:
        monkeypatch.setenv(known.env, others[name])
        assert getattr(ask(defaults=given), name) == known.read(others[name])
    least = known.choices[0] if known.choices else others.get(name, "1")
    flag = f"{known.flag}={least}"
    assert getattr(ask(flag, defaults=given), name) == known.read(least) != held


def test_the_config_file_reaches_the_commands_that_take_its_flags(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "config.toml"
    monkeypatch.setenv("STTM_CONFIG", str(config))
    beside = {"keep_alive": "9m", "no_log": "true"}
    typed = {name: TYPED[name][0] if name in TYPED else beside[name] for name in CONFIG_KEYS}
    lines = (f'{name} = "{text}"' for name, text in typed.items())
    config.write_text("\n".join(lines))
    defaults = _defaults(["ask"])
    every = set(CONFIG_KEYS)
    answers = {"max_new_tokens", "temperature", "max_download", "keep_alive", "no_log"}
    assert set(defaults["ask"]) == set(defaults["chat"]) == every
    assert set(defaults["precompute"]) == every - answers | {"max_download"}
    assert set(defaults["inspect"]) == every - answers - {"budget"} | {"max_download"}
    assert set(defaults["serve"]) == every - {"max_download", "keep_alive", "no_log"}
    stores = {"cache_dir", "cache_tier", "max_bytes"}
    assert all(set(given) == stores for given in defaults["cache"].values())
    assert set(defaults["doctor"]) == stores
    assert "bench" not in defaults
    assert defaults["models"] == {"pull": {}}


def test_settings_are_frozen_and_checked_again_when_one_is_replaced() -> None:
    settings = Settings(end="0:30")
    for name in SETTINGS:
        with pytest.raises(FrozenInstanceError):
            setattr(settings, name, getattr(settings, name))
    assert replace(settings, start="0:10") == Settings(start=10, end=30)
    with pytest.raises(UsageError, match=r"--end 30 is not after --start 60"):
        replace(settings, start="1:00")
    with pytest.raises(UsageError, match="--no-cache and --refresh cannot be combined"):
        replace(Settings(no_cache=True), refresh=True)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("fps", 10**400),
        ("frames", 10**400),
        ("max_bytes", "1e308T"),
        ("max_bytes", "0.1"),
        ("start", float("nan")),
        ("budget", 10**400),
        ("budget", "1e400"),
        ("temperature", float("inf")),
        ("seed", -1),
    ],
)
def test_a_number_without_bounds_is_refused(name: str, value: Any) -> None:
    with pytest.raises(UsageError, match=name.replace("_", "-")):
        changed(name, value)


@pytest.mark.parametrize("name", ["merge_layer", "seed"])
def test_zero_is_a_value_that_is_typed(name: str) -> None:
    declared = SETTINGS[name]
    assert list(declared.typed(0)) == [f"{declared.flag}=0"]
    assert list(declared.typed(None)) == []
