"""doctor, config, completion, and what is said about models that are not here yet."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sttm_cli.base.errors import VideoError
from sttm_cli.models.registry import aliases
from sttm_cli.settings.settings import SETTINGS
from tests.cli.process import sttm_here
from tests.cli.test_ask import QUESTION, SAMPLE
from tests.test_startup import HEAVY, modules_after

PROGRAM = "import sys; sys.argv[0] = 'sttm'; from sttm_cli.cli import main; main()"


def test_doctor_finds_a_working_machine_well_and_says_what_it_found() -> None:
    sttm_here("ask", SAMPLE, QUESTION)
    ended = sttm_here("doctor", "--json")
    report = ended.json
    assert (report["schema"], report["ok"]) == ("sttm.doctor/1", True), report
    assert ended.code == 0
    checks = {check["name"]: check for check in report["checks"]}
    assert {"python", "torch", "av", "devices", "attention", "models", "config"} <= set(checks)
    assert "H.264" in checks["decode with av"]["found"]
    assert checks["devices"]["facts"]["devices"][0]["cores"] == os.cpu_count()
    cache = checks["cache"]["facts"]
    assert cache["path"] == os.environ["STTM_CACHE_DIR"]
    assert (cache["entries"], cache["verified"], cache["damaged"]) == (1, 1, 0)


def test_doctor_ends_with_1_and_a_next_step_for_each_thing_that_is_broken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args: object, **kwargs: object) -> None:
        raise VideoError("no frame could be decoded")

    (tmp_path / "file").write_text("")
    (tmp_path / "config.toml").write_text("bugdet = 0.4\n")
    monkeypatch.setenv("STTM_CONFIG", str(tmp_path / "config.toml"))
    monkeypatch.setattr("sttm_cli.decode.read_frames", broken)
    ended = sttm_here("doctor", "--cache-dir", tmp_path / "file" / "cache")
    assert ended.code == 1
    for part in (
        "no frame could be decoded",
        "force-reinstall av",
        "unknown key 'bugdet'",
        "did you mean budget?",
        "--cache-dir or STTM_CACHE_DIR",
    ):
        assert part in ended.out
    assert "Traceback" not in ended.out + ended.err


def test_doctor_finds_a_damaged_entry() -> None:
    sttm_here("ask", SAMPLE, QUESTION)
    (path,) = Path(os.environ["STTM_CACHE_DIR"]).rglob("*.safetensors")
    data = bytearray(path.read_bytes())
    data[-100] ^= 0x40
    path.write_bytes(data)
    ended = sttm_here("doctor", "--json")
    (cache,) = [check for check in ended.json["checks"] if check["name"] == "cache"]
    assert ended.code == 1
    assert "1 entries cannot be used" in cache["problem"]
    assert "--repair" in cache["hint"]


def test_config_show_tells_each_value_and_where_it_comes_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "config.toml"
    file.write_text('budget = 0.4\nmax-bytes = "5G"\nmodel = "qwen3-vl-2b"\n')
    monkeypatch.setenv("STTM_CONFIG", str(file))
    monkeypatch.setenv("STTM_BUDGET", "0.3")
    report = sttm_here("config", "show", "--json").json
    assert (report["schema"], report["path"], report["exists"]) == (
        "sttm.config/1",
        str(file),
        True,
    )
    rows = {row["key"]: (row["value"], row["origin"]) for row in report["settings"]}
    assert rows["budget"] == ("0.3", "STTM_BUDGET")
    assert rows["max_bytes"] == ("5G", "file")
    assert rows["model"] == ("qwen3-vl-2b", "file")
    assert rows["frames"] == (None, "default")
    assert rows["max_new_tokens"] == ("256", "default")
    assert sttm_here("config", "path").out.strip() == str(file)
    assert "qwen3-vl-2b" in sttm_here("config", "show").out


@pytest.mark.parametrize(
    ("line", "part"),
    [
        ("bugdet = 0.4", "did you mean budget?"),
        ("budget = 7", "--budget 7"),
        ('frames = "many"', "--frames 'many'"),
        ("= 3", "config.toml"),
        ('keep_alive = "soon"', "--keep-alive"),
    ],
)
def test_config_show_names_what_is_wrong_with_the_file_and_path_still_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str, part: str
) -> None:
    (tmp_path / "config.toml").write_text(line)
    monkeypatch.setenv("STTM_CONFIG", str(tmp_path / "config.toml"))
    ended = sttm_here("config", "show")
    assert ended.code == 2
    assert part in ended.err
    assert sttm_here("config", "path").code == 0


def complete(*words: str) -> str:
    """What the shell would offer for the last of `words`."""
    env = {
        "COMP_WORDS": " ".join(("sttm", *words)),
        "COMP_CWORD": str(len(words)),
        "_STTM_COMPLETE": "complete_bash",
    }
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        capture_output=True, text=True, check=True, env={**os.environ, **env},
    )  # fmt: skip
    return done.stdout


def test_the_shell_completes_commands_flags_and_models() -> None:
    assert complete("prec").split() == ["precompute"]
    assert complete("ask", "--choi").split() == ["--choices"]
    assert "qwen3-vl-8b" in complete("ask", "v.mp4", "-m", "qwen3").split()


@pytest.mark.parametrize("name", [name for name, known in SETTINGS.items() if known.choices])
def test_the_shell_completes_the_words_that_a_flag_takes(name: str) -> None:
    known = SETTINGS[name]
    begun = known.choices[-1][:2]
    words = [word for word in known.choices if word.startswith(begun)]
    assert complete("ask", "v.mp4", known.flag, begun).split() == words


def test_completion_imports_nothing_heavy_and_is_installed_for_a_shell(tmp_path: Path) -> None:
    env = "COMP_WORDS='sttm ask -m qwen', COMP_CWORD='3', _STTM_COMPLETE='complete_bash'"
    code = (
        f"import os; os.environ.update({env})\ntry:\n    {PROGRAM.replace('; ', chr(10) + '    ')}"
    )
    assert not modules_after(f"{code}\nexcept SystemExit: pass") & HEAVY
    subprocess.run(
        # typer looks for the shell among the processes above.
        ["bash", "-c", '"$@" && true', "bash", sys.executable, "-c", PROGRAM,
         "--install-completion", "bash"],
        check=True, capture_output=True, env={**os.environ, "HOME": str(tmp_path)},
    )  # fmt: skip
    (script,) = (tmp_path / ".bash_completions").iterdir()
    assert "complete -o default -F _sttm_completion sttm" in script.read_text()


@pytest.mark.parametrize(
    ("typed", "meant"),
    [("llava-onevision-7", "llava-onevision-7b"), ("Qwen3-VL-8B", "qwen3-vl-8b")],
)
def test_a_misspelt_alias_is_answered_with_the_nearest(typed: str, meant: str) -> None:
    ended = sttm_here("ask", SAMPLE, QUESTION, "--model", typed)
    assert ended.code == 4
    assert f"did you mean {meant}?" in ended.err


def test_before_a_model_is_fetched_its_size_and_place_are_said(
    random_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[dict[str, Any]] = []

    def hub(repository: str, **how: Any) -> object:
        asked.append(how)
        if how.get("local_files_only"):
            raise FileNotFoundError
        if how.get("dry_run"):
            sizes = ((2_500_000_000, True), (9_000_000_000, False), (None, True))
            return [SimpleNamespace(file_size=size, will_download=new) for size, new in sizes]
        return str(random_model)

    monkeypatch.setattr("huggingface_hub.snapshot_download", hub)
    ended = sttm_here("ask", SAMPLE, QUESTION, "--model", "qwen3-vl-2b", "--max-new-tokens", 2)
    assert ended.code == 0, ended.err
    assert f"fetching {aliases()['qwen3-vl-2b']}, 2.5 GB" in ended.err
    assert "set HF_HOME to change this" in ended.err
    assert [how.get("dry_run", False) for how in asked] == [False, True, False]


@pytest.mark.parametrize(
    "line", ['budget = "lots"', 'frames = "many"', 'max_bytes = "lots"', 'keep_alive = "forever"']
)
def test_a_value_that_no_flag_would_take_is_told_with_the_file(
    line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "config.toml"
    path.write_text(line)
    monkeypatch.setenv("STTM_CONFIG", str(path))
    ended = sttm_here("cache", "ls")
    assert ended.code == 2
    assert f"config file {path}: " in ended.err
    assert len(ended.err.splitlines()) == 2
    assert sttm_here("ask", "--help").code == 0


def test_a_reader_that_has_gone_is_told_nothing() -> None:
    command = [sys.executable, "-m", "sttm_cli", "cache", "ls", "--json"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    assert process.stderr.read() == ""
    process.wait()
