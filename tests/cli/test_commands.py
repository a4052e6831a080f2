"""precompute, inspect and cache: what they print, and what they leave behind."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from tests.cli.process import sttm, sttm_here
from tests.cli.test_ask import QUESTION, SAMPLE, cached_files


@pytest.fixture
def library(tmp_path: Path) -> Path:
    """A folder with two different videos, one in a subfolder, and one broken file."""
    folder = tmp_path / "library"
    (folder / "sub").mkdir(parents=True)
    shutil.copy(SAMPLE, folder / "a.mp4")
    data = bytearray(SAMPLE.read_bytes())
    data[-1] ^= 1
    (folder / "sub" / "b.mp4").write_bytes(data)
    (folder / "broken.mp4").write_text("no video")
    (folder / "notes.txt").write_text("not looked at")
    return folder


def test_precompute_does_all_goes_on_after_a_bad_file_and_ask_starts_from_it(
    library: Path,
) -> None:
    ended = sttm("precompute", library, "--json")
    assert ended.code == 1, ended.err
    told = ended.json
    assert told["schema"] == "sttm.precompute/1"
    assert (told["done"], told["skipped"]) == (2, 0)
    assert [Path(f["path"]).name for f in told["failed"]] == ["broken.mp4"]
    assert sttm("ask", library / "sub" / "b.mp4", QUESTION, "--json").json["cache"]["hit"]
    again = sttm_here("precompute", library, "--json").json
    assert (again["done"], again["skipped"]) == (0, 2)


def test_precompute_dry_run_stores_nothing(library: Path) -> None:
    ended = sttm_here("precompute", library / "a.mp4", "--dry-run")
    assert ended.code == 0
    assert "to be computed" in ended.err
    assert not cached_files()


def test_shards_share_out_all_videos_and_none_twice(library: Path) -> None:
    (library / "broken.mp4").unlink()
    done = [
        sttm_here("precompute", library, "--shard", f"{i}/2", "--json").json["done"] for i in (1, 2)
    ]
    assert done == [1, 1]
    assert len(cached_files()) == 2


@pytest.mark.parametrize("shard", ["0/2", "3/2", "x", "1/0"])
def test_an_impossible_shard_is_a_usage_error(library: Path, shard: str) -> None:
    assert sttm_here("precompute", library, "--shard", shard).code == 2


def test_cache_lists_shows_and_removes_what_ask_stored() -> None:
    key = sttm_here("ask", SAMPLE, QUESTION, "--json").json["cache"]["key"]
    told = sttm_here("cache", "ls", "--json").json
    assert told["schema"] == "sttm.cache/1"
    assert [entry["key"] for entry in told["entries"]] == [key]
    assert told["bytes"] == told["entries"][0]["bytes"] <= told["max_bytes"]
    assert "sample.mp4" in sttm_here("cache", "ls").out
    assert key in sttm_here("cache", "show", key[:8]).out
    assert sttm_here("cache", "rm", key[:8]).code == 0
    assert not cached_files()
    assert not sttm_here("ask", SAMPLE, QUESTION, "--json").json["cache"]["hit"]


def test_removing_what_is_not_stored_fails_and_names_it() -> None:
    ended = sttm_here("cache", "rm", "abcdef")
    assert ended.code == 1
    assert "abcdef" in ended.err


def test_cache_path_prints_the_folder_in_use(tmp_path: Path) -> None:
    assert sttm_here("cache", "path").out.strip() == os.environ["STTM_CACHE_DIR"]
    given = sttm_here("cache", "path", "--cache-dir", tmp_path / "x").out.strip()
    assert given == str(tmp_path / "x")


def test_verify_finds_a_damaged_entry_and_ask_does_not_use_it() -> None:
    first = sttm_here("ask", SAMPLE, QUESTION, "--json").json
    (path,) = Path(os.environ["STTM_CACHE_DIR"]).rglob("*.safetensors")
    data = bytearray(path.read_bytes())
    data[-100] ^= 0x40
    path.write_bytes(data)
    assert sttm_here("cache", "verify").code == 1
    ended = sttm_here("ask", SAMPLE, QUESTION, "--json")
    assert not ended.json["cache"]["hit"]
    assert ended.json["answers"] == first["answers"]
    assert "warning" in ended.err


def test_config_file_gives_defaults_that_flags_and_environment_override(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "config.toml"
    config.write_text("budget = 0.4\n")
    monkeypatch.setenv("STTM_CONFIG", str(config))

    def budget(*flags: str) -> float:
        return sttm_here("ask", SAMPLE, QUESTION, "--json", *flags).json["tokens"]["budget"]

    assert budget() == 0.4
    monkeypatch.setenv("STTM_BUDGET", "0.3")
    assert budget() == 0.3
    assert budget("--budget", "0.2") == 0.2


def test_an_unknown_key_in_the_config_file_is_a_usage_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config.toml").write_text("bugdet = 0.4\n")
    monkeypatch.setenv("STTM_CONFIG", str(tmp_path / "config.toml"))
    ended = sttm_here("ask", SAMPLE, QUESTION)
    assert ended.code == 2
    assert "bugdet" in ended.err
