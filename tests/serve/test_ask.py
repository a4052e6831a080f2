"""`sttm ask` finds a server by itself, and does without one that is dead or not its own."""

from __future__ import annotations

import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from sttm_cli.base.errors import ContextError
from sttm_cli.base.events import Progressed, Shown
from sttm_cli.serve import local_servers as others
from sttm_cli.serve.client import ServerGone, find_server
from sttm_cli.serve.server_files import ServerFiles, files_of
from sttm_cli.settings.settings import Settings
from tests.cli.process import sttm_here
from tests.serve.running import ENDLESS, Running, place, serving
from tests.test_startup import HEAVY, modules_after

SAMPLE = Path(__file__).parents[2] / "docs" / "sample.mp4"
COUNT, DIGIT = "how many shapes are there?", "which digit flashes?"
SLOW_PREFILL = """
import time
import sttm_cli.runtime.compute as stages
prefill = stages.prefill
stages.prefill = lambda *given, **more: (time.sleep(2), prefill(*given, **more))[1]
"""
DRAWN = ("--temperature", "50", "--seed", "1", "--max-new-tokens", "1000")


@pytest.fixture
def found(server: Running, monkeypatch: pytest.MonkeyPatch) -> Running:
    """Commands in this process find the server."""
    for name, value in server.env.items():
        monkeypatch.setenv(name, value)
    return server


def test_the_report_is_that_of_a_run_without_a_server(found: Running, tmp_path: Path) -> None:
    video = shutil.copy(SAMPLE, tmp_path / "film.mp4")
    through = sttm_here("ask", video, COUNT, DIGIT, "--json", "--budget", "0.3")
    alone = sttm_here("ask", video, COUNT, DIGIT, "--json", "--budget", "0.3", "--no-server")
    assert "this user's server" in through.err
    assert "server" not in alone.err
    assert not through.json["cache"]["hit"]
    assert alone.json["cache"]["hit"]
    for part in ("schema", "video", "model", "tokens", "answers"):
        assert through.json[part] == alone.json[part]
    assert set(through.json["seconds"]) == set(alone.json["seconds"])


def test_each_video_is_asked_of_the_server_and_logged_here(found: Running, tmp_path: Path) -> None:
    for name in ("one.mp4", "two.mp4"):
        shutil.copy(SAMPLE, tmp_path / name)
    (tmp_path / "bad.mp4").write_text("no video")
    told = sttm_here("ask", tmp_path, COUNT, "--each")
    assert told.code == 1
    assert "this user's server" in told.err
    assert told.out == f"{tmp_path / 'one.mp4'}\tthree\n{tmp_path / 'two.mp4'}\tthree\n"
    assert f"{tmp_path / 'bad.mp4'}: failed" in told.err
    later = sttm_here("ask", "-c", DIGIT)
    assert (later.out, "this user's server" in later.err) == ("4\n", True)
    entries = sttm_here("log", "--json").json["entries"]
    names = [Path(entry["video"]).name for entry in entries]
    assert names == ["one.mp4", "two.mp4", "two.mp4"]


def test_a_system_prompt_goes_to_the_server_with_the_question(found: Running) -> None:
    flags = ("--system", "answer in one word", "--json")
    through = sttm_here("ask", SAMPLE, COUNT, *flags)
    assert "this user's server" in through.err
    alone = sttm_here("ask", SAMPLE, COUNT, *flags, "--no-server").json
    assert alone["cache"]["hit"]
    assert alone["answers"] == through.json["answers"]
    assert (
        through.json["tokens"]["prefix"]
        > sttm_here("ask", SAMPLE, COUNT, "--json").json["tokens"]["prefix"]
    )


def test_precompute_has_the_server_compute(found: Running, tmp_path: Path) -> None:
    for name in ("one.mp4", "twin.mp4"):
        shutil.copy(SAMPLE, tmp_path / name)
    (tmp_path / "bad.mp4").write_text("no video")
    told = sttm_here("precompute", tmp_path, "--json", "--budget", "0.4")
    assert "this user's server computes" in told.err
    assert told.code == 1
    assert (told.json["done"], told.json["skipped_same_bytes"]) == (1, 1)
    assert len(told.json["failed"]) == 1
    assert told.json["bytes"] > 0
    alone = sttm_here("ask", SAMPLE, COUNT, "--json", "--budget", "0.4", "--no-server")
    assert alone.json["cache"]["tier"] == "disk"
    assert sttm_here("precompute", tmp_path, "--json", "--budget", "0.4").json["skipped"] == 2


def test_chat_talks_through_it(found: Running) -> None:
    through = sttm_here("chat", SAMPLE, "--json", stdin=f"{COUNT}\n{DIGIT}\n")
    alone = sttm_here("chat", SAMPLE, "--json", "--no-server", stdin=f"{COUNT}\n{DIGIT}\n")
    assert "this user's server" in through.err
    turns = [
        [(t["question"], t["answer"]) for t in ended.json["turns"]] for ended in (through, alone)
    ]
    assert turns[0] == turns[1]


def test_options_are_weighed_and_errors_are_told_as_without_a_server(found: Running) -> None:
    weighed = sttm_here("ask", SAMPLE, COUNT, "--choices", "two|three", "--json").json
    assert [option["text"] for option in weighed["answers"][0]["choices"]] == ["two", "three"]
    for arguments, code in (
        (["nowhere.mp4", COUNT], 3),
        ([__file__, COUNT], 3),
        ([SAMPLE, COUNT, "--start", "99"], 2),
    ):
        through = sttm_here("ask", *arguments, "--json")
        alone = sttm_here("ask", *arguments, "--json", "--no-server")
        assert (through.code, alone.code) == (code, code)
        assert through.json["error"] == alone.json["error"]


def test_the_client_imports_nothing_heavy(found: Running) -> None:
    code = (
        f"import os, sys; os.environ.update({found.env!r})\n"
        f"sys.argv = ['sttm', 'ask', {str(SAMPLE)!r}, {COUNT!r}]\n"
        "from sttm_cli.cli import main\n"
        "try: main()\nexcept SystemExit as end: assert not end.code, end.code"
    )
    assert not modules_after(code) & {*HEAVY, "starlette", "uvicorn", "httpx", "asyncio"}


def test_other_settings_of_the_model_are_not_that_servers(found: Running) -> None:
    other = sttm_here("ask", SAMPLE, COUNT, "--dtype", "bfloat16", "--json")
    assert other.json["model"]["dtype"] == "bfloat16"
    assert "server" not in other.err


def test_an_address_of_a_server_beats_looking_for_one(
    server: Running, allowed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STTM_HOST", server.url.removeprefix("http://"))
    told = sttm_here("ask", allowed / "sample.mp4", COUNT, "--json")
    assert server.url in told.err
    assert told.json["answers"][0]["answer"] == "three"
    # Elsewhere than below --allow-path even the user's own command may not make it read.
    refused = sttm_here("ask", SAMPLE, COUNT, "--json")
    assert "answering without it" in refused.err
    assert refused.json["answers"] == told.json["answers"]
    missing = sttm_here("ask", allowed / "nowhere.mp4", COUNT)
    assert missing.code == 3
    assert "answering without it" in missing.err
    monkeypatch.setenv("STTM_HOST", "nonsense")
    assert sttm_here("ask", SAMPLE, COUNT).code == 2


def test_the_server_of_an_address_answers_for_its_own_model_only(
    server: Running, allowed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STTM_HOST", server.url)
    for settings, told in (
        (Settings(model="llava-onevision-7b"), "its model is tiny, not llava-onevision-7b"),
        (Settings(dtype="bfloat16"), "its dtype is auto, not bfloat16"),
        (Settings(options=("newlines",)), "its options is"),
    ):
        found = find_server(settings, print)
        assert found is not None
        with pytest.raises(ServerGone, match=told):
            found.ask(settings, str(allowed / "sample.mp4"), [COUNT])
    assert find_server(Settings(refresh=True), print) is None
    assert find_server(Settings(no_cache=True), print) is None


def test_a_conversation_that_outgrew_the_context_is_told_as_such_over_an_address(
    server: Running, allowed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STTM_HOST", server.url)
    found = find_server(Settings(), print)
    assert found is not None
    history = [(COUNT, "three " * 40_000)]
    with pytest.raises(ContextError):
        found.ask(Settings(), str(allowed / "sample.mp4"), [COUNT], history=history)


def test_only_this_user_can_reach_the_socket(server: Running) -> None:
    assert stat.S_IMODE(server.files.stat().st_mode) == 0o700
    modes = {p.suffix: stat.S_IMODE(p.stat().st_mode) for p in server.files.iterdir()}
    assert modes == {".sock": 0o600, ".json": 0o600, ".lock": 0o600}


def test_a_second_server_for_the_same_is_refused(found: Running) -> None:
    second = sttm_here("serve", "--port", "0")
    assert second.code == 1
    assert "runs already" in second.err


def test_status_shows_it(found: Running) -> None:
    (told,) = sttm_here("serve", "--status", "--json").json["servers"]
    assert told["pid"] == found.process.pid
    assert told["ready"]
    assert told["model"] == "tiny"
    assert f"process {found.process.pid}" in sttm_here("serve", "--status", "--quiet").out


@pytest.mark.parametrize(
    "flags",
    [
        ("--status", "--port", "9"),
        ("--stop", "--status"),
        ("--socket-only", "--port", "9"),
        ("--port", "70000"),
        ("--allow-path", "/nowhere"),
    ],
)
def test_flags_that_cannot_hold_are_refused_by_name(flags: tuple[str, ...]) -> None:
    told = sttm_here("serve", *flags)
    assert told.code == 2
    assert all(flag in told.err for flag in flags if flag.startswith("--"))


@pytest.mark.parametrize("command", [("serve",), ("mcp",), ("eval", "paper")])
def test_an_empty_allow_path_is_not_the_current_folder(command: tuple[str, ...]) -> None:
    told = sttm_here(*command, "--allow-path", "", "--merge-layer", "-7")
    assert told.code == 2
    assert "'--allow-path': it is empty" in told.err


def test_a_server_of_another_version_is_said_and_not_used(
    found: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sttm_cli.serve.client.__version__", "9.9.9")
    told = sttm_here("ask", SAMPLE, COUNT, "--json")
    assert "9.9.9" in told.err
    assert told.json["answers"][0]["answer"] == "three"
    # Over an address there is no file that would tell.
    monkeypatch.setenv("STTM_HOST", found.url)
    over = sttm_here("ask", SAMPLE, COUNT, "--json")
    assert "of version" in over.err
    assert over.json["answers"] == told.json["answers"]


def test_something_else_at_that_address_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    class Other(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"[1, 2]\n")

        def log_message(self, *args: object) -> None:
            pass

    other = HTTPServer(("127.0.0.1", 0), Other)
    threading.Thread(target=other.handle_request, daemon=True).start()
    monkeypatch.setenv("STTM_HOST", f"127.0.0.1:{other.server_address[1]}")
    told = sttm_here("ask", SAMPLE, COUNT, "--json")
    other.server_close()
    assert "answering without it" in told.err
    assert told.json["answers"][0]["answer"] == "three"


def test_killed_while_it_answers_and_while_it_prefills(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(tmp_path, code=ENDLESS) as server:
        for name, value in server.env.items():
            monkeypatch.setenv(name, value)
        alone = sttm_here("ask", SAMPLE, DIGIT, *DRAWN, "--json", "--no-server").json
        asking = subprocess.Popen(
            [sys.executable, "-m", "sttm_cli", "ask", str(SAMPLE), DIGIT, *DRAWN, "--json"],
            env={**os.environ, **server.env},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        while server.metric('sttm_videos_total{tier="disk"}') == 0:
            time.sleep(0.01)
        server.process.send_signal(signal.SIGKILL)
        out, err = asking.communicate(timeout=120)
        assert "answering without it" in err
        assert json.loads(out)["answers"] == alone["answers"]
        assert sttm_here("ask", SAMPLE, COUNT).out == "three\n"
    # What the dead server left is in nobody's way.
    with serving(tmp_path, code=SLOW_PREFILL) as again:
        assert "this user's server" in sttm_here("ask", SAMPLE, COUNT).err
        settings = Settings(budget=0.2)
        found = find_server(settings, print)
        assert found is not None
        shown: list[Shown] = []

        def kill_at_prefill(event: Shown) -> None:
            shown.append(event)
            if event == Progressed("prefill", 0, 1):
                again.process.send_signal(signal.SIGKILL)

        with pytest.raises(ServerGone):
            found.ask(settings, str(SAMPLE), [COUNT], show=kill_at_prefill)
        assert Progressed("prefill", 0, 1) in shown
    assert sttm_here("cache", "verify").code == 0
    after = sttm_here("ask", SAMPLE, COUNT, "--budget", "0.2", "--json")
    assert not after.json["cache"]["hit"]
    assert after.json["answers"][0]["answer"]


def test_a_dead_servers_address_is_said_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    where = own_place(tmp_path, monkeypatch)
    where.write({"pid": 1, "version": "0.0.1"})
    assert "has died" in sttm_here("ask", SAMPLE, COUNT).err
    assert "has died" not in sttm_here("ask", SAMPLE, COUNT).err


def test_a_server_that_is_left_behind_ends_when_nothing_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    env = place(tmp_path)
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    first = sttm_here("ask", SAMPLE, COUNT, "--keep-alive", "10m", "--json")
    # One that is there already stays for as long as was asked for last.
    again = sttm_here("ask", SAMPLE, COUNT, "--keep-alive", "1s", "--json")
    assert "stays for 10m" in first.err
    assert first.json["cache"]["tier"] is None
    assert again.json["cache"]["tier"] == "device"
    assert again.json["answers"] == first.json["answers"]
    deadline = time.monotonic() + 60
    while list((tmp_path / "run" / "sttm").glob("*.sock")):
        assert time.monotonic() < deadline, "it does not end"
        time.sleep(0.05)
    assert sttm_here("serve", "--status", "--json").json["servers"] == []


def test_no_server_is_left_behind_where_another_is_or_is_about_to_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    where = own_place(tmp_path, monkeypatch)
    monkeypatch.setattr(others, "_OTHERS_S", 0.1)
    with where.hold() as ours:
        assert ours
        with pytest.raises(ServerGone, match="did not start"):
            others.leave_behind(Settings(), where, "1m")
        where.write({"pid": 1, "version": "0.0.1"})
        with pytest.raises(ServerGone, match="another version"):
            others.leave_behind(Settings(), where, "1m")


def own_place(folder: Path, monkeypatch: pytest.MonkeyPatch) -> ServerFiles:
    """Where a server would be whose runtime folder is below `folder`."""
    for name, value in place(folder).items():
        monkeypatch.setenv(name, value)
    where = files_of(Settings())
    assert where is not None
    return where


def test_keep_alive_and_no_server_cannot_hold_together() -> None:
    told = sttm_here("ask", SAMPLE, COUNT, "--keep-alive", "1m", "--no-server")
    assert told.code == 2
    assert "--keep-alive" in told.err
    assert "--no-server" in told.err


def test_a_damaged_entry_is_said_as_without_a_server(found: Running, tmp_path: Path) -> None:
    video = shutil.copy(SAMPLE, tmp_path / "film.mp4")
    told = sttm_here("ask", video, COUNT, "--json", "--budget", "0.35", "--no-server").json
    (path,) = Path(found.env["STTM_CACHE_DIR"]).rglob(f"{told['cache']['key']}.safetensors")
    path.write_bytes(b"no artifact" * 100)
    again = sttm_here("ask", video, COUNT, "--json", "--budget", "0.35")
    assert not again.json["cache"]["hit"]
    assert f"stored entry {told['cache']['key'][:12]} is not used" in again.err
