"""inspect and cache: what they print, and what they leave behind."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from tests.cli.process import sttm_here
from tests.cli.terminal import ENTER, Terminal
from tests.cli.test_ask import QUESTION, SAMPLE, cached_files
from tests.cli.test_setup import complete


def test_cache_lists_shows_and_removes_what_ask_stored() -> None:
    key = sttm_here("ask", SAMPLE, QUESTION, "--json").json["cache"]["key"]
    report = sttm_here("cache", "ls", "--json").json
    assert report["schema"] == "sttm.cache/1"
    assert [entry["key"] for entry in report["entries"]] == [key]
    assert report["bytes"] == report["entries"][0]["bytes"] <= report["max_bytes"]
    header, row = sttm_here("cache", "ls").out.splitlines()
    assert header.split()[:2] == ["key", "video"]
    assert row.split()[:4] == [key[:12], "docs/sample.mp4", "tiny", "0.5"]
    shown = sttm_here("cache", "show", key[:8]).json
    assert (shown["key"], shown["facts"]["decode"]["lost"]) == (key, 0)
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


def test_a_server_takes_its_model_from_the_config_file_as_the_asking_commands_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config.toml").write_text('model = "no-such"\nkeep_alive = "10m"\n')
    monkeypatch.setenv("STTM_CONFIG", str(tmp_path / "config.toml"))
    for ended in (sttm_here("serve", "--socket-only"), sttm_here("ask", SAMPLE, QUESTION)):
        assert ended.code == 4
        assert "model 'no-such' is neither an alias" in ended.err


def test_an_unknown_key_in_the_config_file_is_a_usage_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config.toml").write_text("bugdet = 0.4\n")
    monkeypatch.setenv("STTM_CONFIG", str(tmp_path / "config.toml"))
    ended = sttm_here("ask", SAMPLE, QUESTION)
    assert ended.code == 2
    assert "bugdet" in ended.err


def test_ls_adds_up_what_hits_saved_and_a_lost_index_only_forgets_it() -> None:
    for _ in range(3):
        sttm_here("ask", SAMPLE, QUESTION)
    (entry,) = sttm_here("cache", "ls", "--json").json["entries"]
    assert entry["hits"] == 2
    assert entry["saved_seconds"] > 0
    assert entry["last_used"] > entry["created"]
    shutil.rmtree(Path(os.environ["STTM_CACHE_DIR"]) / "index")
    (again,) = sttm_here("cache", "ls", "--json").json["entries"]
    forgotten = {"hits": 0, "saved_seconds": 0.0, "last_used": entry["created"]}
    assert again == {**entry, **forgotten}
    assert sttm_here("ask", SAMPLE, QUESTION, "--json").json["cache"]["hit"]


def test_a_name_cannot_move_the_cursor_of_who_lists_it(tmp_path: Path) -> None:
    video = shutil.copy(SAMPLE, tmp_path / "a\x1b[2Jb.mp4")
    sttm_here("ask", video, QUESTION)
    listed = sttm_here("cache", "ls").out
    assert "b.mp4" in listed
    assert "\x1b" not in listed


def stored(*flags: object, video: Path = SAMPLE) -> str:
    return str(sttm_here("ask", video, QUESTION, "--json", *flags).json["cache"]["key"])


def test_entries_are_removed_by_video_whatever_its_name_is_now(tmp_path: Path) -> None:
    one, other = tmp_path / "one.mp4", tmp_path / "other.mp4"
    one.write_bytes(SAMPLE.read_bytes())
    other.write_bytes(SAMPLE.read_bytes() + b"\0")
    stored(video=one), stored("-b", "0.3", video=one), stored(video=other)
    removed = sttm_here("cache", "rm", one, "--json").json
    assert len(removed["removed"]) == 2
    moved = other.rename(tmp_path / "moved.mp4")
    assert len(sttm_here("cache", "rm", moved, "--json").json["removed"]) == 1
    ended = sttm_here("cache", "rm", moved)
    assert ended.code == 1
    assert "nothing is stored of" in ended.err


def test_entries_are_removed_by_model_and_by_age(random_model: Path) -> None:
    kept, gone = stored(), stored("-m", random_model)
    assert sttm_here("cache", "rm", "--older-than", "1h", "--json").json["removed"] == []
    assert sttm_here("cache", "rm", "--model", random_model, "--json").json["removed"] == [gone]
    assert sttm_here("cache", "rm", kept[:8], "--older-than", "1h", "--json").json["removed"] == []
    assert sttm_here("cache", "rm", "--older-than", "0.001s", "--json").json["removed"] == [kept]


def test_all_entries_are_removed_only_where_somebody_agrees() -> None:
    stored(), stored("-b", "0.3")
    asked = sttm_here("cache", "rm", "--all")
    assert asked.code == 2
    assert "--yes" in asked.err
    assert "nothing was named" in sttm_here("cache", "rm").err
    assert sttm_here("cache", "rm", "--all", "--older-than", "1h").code == 2
    refused = Terminal("cache", "rm", "--all")
    refused.expect("remove all 2 entries")
    refused.send(f"n{ENTER}")
    assert refused.ended() == 1
    agreed = Terminal("cache", "rm", "--all")
    agreed.expect("[y/N]")
    agreed.send(f"y{ENTER}")
    assert agreed.ended() == 0
    assert not cached_files()
    stored()
    assert sttm_here("cache", "rm", "--all", "--yes").code == 0
    assert not cached_files()


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        (["cache", "rm", ""], "KEY"),
        (["cache", "show", ""], "KEY"),
        (["ask", "--decoder", ""], "auto decord av"),
        (["ask", "--kv-dtype", "b"], "bfloat16"),
        (["ask", "--options", "n"], "newlines"),
        (["bench", "accuracy", "--split", ""], "test dev"),
        (["bench", "accuracy", "--methods", "sttm,ev"], "sttm,evs"),
        (["bench", "speed", "--geometry", "llava-v"], "llava-video-7b"),
        (["precompute", "--on", ""], "local ray"),
        (["models", "pull", "smol"], "smolvlm2-256m smolvlm2-500m smolvlm2-2.2b"),
    ],
    ids=lambda given: given if isinstance(given, str) else " ".join(given),
)
def test_the_shell_completes_keys_and_every_choice(typed: list[str], words: str) -> None:
    key = stored()
    assert set(complete(*typed).split()) == set(words.replace("KEY", key[:12]).split())


def test_what_rm_finds_nothing_of_is_said_by_name(tmp_path: Path) -> None:
    clips = tmp_path / "clips"
    clips.mkdir()
    shutil.copy(SAMPLE, clips / "a.mp4")
    sttm_here("ask", clips / "a.mp4", QUESTION)
    empty = tmp_path / "empty"
    empty.mkdir()
    for named, message in (
        (["--model", "nosuch"], "nothing is stored for --model nosuch"),
        ([empty], f"nothing is stored of {empty}"),
        (["gone.mp4"], "there is no file gone.mp4, and nothing is stored of it"),
    ):
        ended = sttm_here("cache", "rm", *named)
        assert (ended.code, ended.out) == (1, ""), named
        assert message in ended.err
    assert len(sttm_here("cache", "rm", clips, "--json").json["removed"]) == 1
    assert sttm_here("cache", "ls", "--json").json["entries"] == []
