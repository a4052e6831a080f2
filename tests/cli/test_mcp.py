"""`sttm mcp`: a client of the Model Context Protocol drives the command in a process of its own."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from sttm_cli.cli import mcp as command
from tests.cli.process import sttm, sttm_here
from tests.cli.test_ask import QUESTION, SAMPLE
from tests.serve.running import place, serving

mcp = pytest.importorskip("mcp", reason="the MCP SDK is not installed (pip install mcp)")
anyio = pytest.importorskip("anyio")

TOOLS = {"ask_video", "prepare_video", "list_videos", "frame_at", "video_info"}


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    """A folder that may be read, with a video; one beside it may not."""
    folder = tmp_path / "videos"
    (folder / "below").mkdir(parents=True)
    shutil.copy(SAMPLE, folder / "below" / "a.mp4")
    shutil.copy(SAMPLE, tmp_path / "secret.mp4")
    return folder


@asynccontextmanager
async def talking(folder: Path, *flags: str) -> AsyncIterator[Any]:
    """A client of `sttm mcp`, which may read `folder`."""
    from mcp.client.stdio import stdio_client

    arguments = ["-m", "sttm_cli", "mcp", "--allow-path", str(folder), *flags]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    started = mcp.StdioServerParameters(
        command=sys.executable, args=arguments, env=environment, cwd=folder
    )
    with open(os.devnull, "w") as ignored:
        async with mcp.Client(stdio_client(started, errlog=ignored)) as client:
            yield client


def run(steps: Callable[[], Coroutine[Any, Any, None]]) -> None:
    async def bounded() -> None:
        with anyio.fail_after(200):
            await steps()

    anyio.run(bounded)


def text(result: Any) -> str:
    return "\n".join(part.text for part in result.content if part.type == "text")


def test_a_client_finds_the_tools_with_their_types(videos: Path) -> None:
    async def steps() -> None:
        async with talking(videos) as client:
            tools = {tool.name: tool for tool in (await client.list_tools()).tools}
            assert set(tools) == TOOLS
            asking = tools["ask_video"].input_schema
            assert set(asking["required"]) == {"video", "question"}
            assert asking["additionalProperties"] is False
            assert all(p.get("description") for p in asking["properties"].values())
            assert "answer" in tools["ask_video"].output_schema["properties"]
            assert all(tool.description for tool in tools.values())
            assert tools["list_videos"].annotations.read_only_hint
            assert not tools["ask_video"].annotations.read_only_hint

    run(steps)


def test_a_video_is_listed_prepared_asked_about_and_kept(videos: Path) -> None:
    video, heard = str(videos / "below" / "a.mp4"), []

    async def progress(done: float, of: float | None, message: str | None) -> None:
        heard.append((done, of, message))

    async def steps() -> None:
        async with talking(videos, "--budget", "0.3") as client:

            async def call(tool: str, **given: Any) -> dict[str, Any]:
                done = await client.call_tool(tool, given, progress_callback=progress)
                assert not done.is_error, text(done)
                return dict(done.structured_content)

            (listed,) = (await call("list_videos"))["videos"]
            assert (listed["path"], listed["prepared"]) == (video, [])
            made = await call("prepare_video", video="below/a.mp4")
            assert (made["already_stored"], made["stored"]) == (False, True)
            assert made["video_tokens"] == 117
            answered = await call("ask_video", video=video, question=QUESTION)
            assert (answered["answer"], answered["cache_hit"]) == ("three", True)
            # The model is loaded: no second load is shown.
            assert [m for _, _, m in heard].count("loading the model") == 1
            finer = await call("ask_video", video=video, question=QUESTION, budget="50%")
            assert (finer["video_tokens"], finer["cache_hit"]) == (196, False)
            (listed,) = (await call("list_videos", folder="below"))["videos"]
            facts = await call("video_info", video=video)
            assert listed["prepared"] == facts["prepared"]
            assert sorted(one["budget"] for one in facts["prepared"]) == [0.3, 0.5]
            assert (facts["duration_s"], facts["fps"], facts["codec"]) == (8.0, 8.0, "h264")
            assert (facts["width"], facts["bytes"]) == (224, SAMPLE.stat().st_size)
            assert len(facts["digest"]) == 64

    run(steps)
    first = [done for done, _, _ in heard[: len(heard) // 2]]
    assert {of for _, of, _ in heard} == {100.0}
    assert first == sorted(first)
    logged = sttm_here("log", "--json").json["entries"]
    assert [entry["answer"] for entry in logged] == ["three", "three"]
    assert sttm_here("ask", video, QUESTION, "-b", "0.3", "--json").json["cache"]["hit"]


def test_a_picture_is_the_one_of_its_time(videos: Path) -> None:
    from sttm_cli.decode import plan_frames, probe, read_frames

    async def steps() -> None:
        async with talking(videos) as client:
            shown = await client.call_tool("frame_at", {"video": "below/a.mp4", "time": "0:05"})
            picture, about = shown.content
            assert picture.mime_type == "image/jpeg"
            assert "at 5.00 s" in about.text
            given = Image.open(io.BytesIO(base64.b64decode(picture.data))).convert("RGB")
            pictures.append(given)
            last = await client.call_tool("frame_at", {"video": "below/a.mp4", "time": 8})
            assert "at 7.88 s" in text(last)
            beyond = await client.call_tool("frame_at", {"video": "below/a.mp4", "time": 9})
            assert beyond.is_error
            assert "beyond the end of the video (8.00 s)" in text(beyond)

    import numpy as np

    from sttm_cli.base.types import DecodeReport

    pictures: list[Image.Image] = []
    run(steps)
    plan = plan_frames(probe(SAMPLE), max_frames=1, start=5.0)
    (chunk,) = read_frames(SAMPLE, plan, report=DecodeReport())
    apart = np.abs(np.asarray(pictures[0]).astype(int) - chunk.frames[0])
    assert apart.mean() < 5


def test_files_outside_of_the_folders_are_refused_there_or_not(videos: Path) -> None:
    os.symlink(videos.parent / "secret.mp4", videos / "link.mp4")
    os.symlink(SAMPLE, videos / "below" / "out.mp4")
    outside = [
        str(videos.parent / "secret.mp4"),
        str(videos.parent / "missing.mp4"),
        "../secret.mp4",
        "link.mp4",
        "/etc/passwd",
        f"file://{videos.parent}/secret.mp4",
    ]

    async def steps() -> None:
        async with talking(videos) as client:
            for tool, more in (
                ("ask_video", {"question": QUESTION}),
                ("prepare_video", {}),
                ("frame_at", {"time": 1}),
                ("video_info", {}),
            ):
                for name in outside:
                    refused = await client.call_tool(tool, {"video": name, **more})
                    assert refused.is_error, name
                    assert f"{name} is not below a folder that this server may read" in text(
                        refused
                    )
                    assert str(videos) in text(refused)
            elsewhere = await client.call_tool("list_videos", {"folder": str(videos.parent)})
            assert elsewhere.is_error
            address = await client.call_tool("video_info", {"video": "https://example.org/a.mp4"})
            assert "is an address" in text(address)
            found = (await client.call_tool("list_videos", {})).structured_content["videos"]
            assert [one["path"] for one in found] == [str(videos / "below" / "a.mp4")]

    run(steps)


def test_a_mistake_is_an_error_with_a_hint_and_the_server_goes_on(videos: Path) -> None:
    (videos / "bad.mp4").write_text("not a video")
    mistakes = [
        ({"video": "bad.mp4", "question": QUESTION}, "is not a video"),
        ({"video": "none.mp4", "question": QUESTION}, "there is no file none.mp4"),
        ({"video": "below/a.mp4", "question": "  "}, "the question is empty"),
        ({"video": "below/a.mp4", "question": QUESTION, "budget": 7}, "--budget"),
        ({"video": "below/a.mp4", "question": QUESTION, "start": "1:00"}, "beyond the end"),
        ({"video": "below/a.mp4", "question": QUESTION, "budgett": 0.3}, "budgett"),
        ({"video": "below/a.mp4"}, "question"),
    ]

    async def steps() -> None:
        async with talking(videos) as client:
            for given, why in mistakes:
                refused = await client.call_tool("ask_video", given)
                assert refused.is_error, given
                assert why in text(refused)
                assert "Traceback" not in text(refused)
            fine = await client.call_tool(
                "ask_video", {"video": "below/a.mp4", "question": QUESTION}
            )
            assert fine.structured_content["answer"] == "three"

    run(steps)


def test_a_cancelled_call_ends_its_work_and_the_next_one_is_answered(videos: Path) -> None:
    given = {"video": "below/a.mp4", "question": QUESTION}

    async def steps() -> None:
        async with talking(videos) as client:
            with anyio.CancelScope() as scope:

                async def cancel(done: float, of: float | None, message: str | None) -> None:
                    scope.cancel()

                await client.call_tool("ask_video", given, progress_callback=cancel)
            assert scope.cancelled_caught
            # Waits for the cancelled one: what that had stored by then would be a hit.
            fine = await client.call_tool("ask_video", given)
            assert fine.structured_content["answer"] == "three"
            assert not fine.structured_content["cache_hit"]

    run(steps)
    assert len(sttm_here("log", "--json").json["entries"]) == 1


def test_a_running_server_answers_and_no_model_is_loaded_here(
    videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in place(tmp_path).items():
        monkeypatch.setenv(name, value)
    heard = []

    async def progress(done: float, of: float | None, message: str | None) -> None:
        heard.append(message)

    async def steps() -> None:
        async with talking(videos) as client:
            given = {"video": "below/a.mp4", "question": QUESTION}
            fine = await client.call_tool("ask_video", given, progress_callback=progress)
            assert fine.structured_content["answer"] == "three"

    with serving(tmp_path):
        run(steps)
        status = sttm("serve", "--status").out
    assert "1 answered" in status
    assert "starting" not in heard


@contextlib.contextmanager
def started(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """The command in `folder`, greeted, with a question sent to it."""

    def message(number: int | None, method: str, **given: Any) -> str:
        head = {"jsonrpc": "2.0", "method": method, "params": given}
        return json.dumps(head if number is None else {**head, "id": number}) + "\n"

    hello = {
        "protocolVersion": "2025-06-18",
        "capabilities": {},
        "clientInfo": {"name": "test", "version": "0"},
    }
    call = {"name": "ask_video", "arguments": {"video": "below/a.mp4", "question": QUESTION}}
    with subprocess.Popen(
        [sys.executable, "-m", "sttm_cli", "mcp"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    ) as process:
        assert process.stdin
        process.stdin.write(message(1, "initialize", **hello))
        process.stdin.write(message(None, "notifications/initialized"))
        process.stdin.write(message(2, "tools/call", **call, _meta={"progressToken": 1}))
        process.stdin.flush()
        try:
            yield process
        finally:
            process.kill()


def reply(process: subprocess.Popen[str], wanted: Callable[[dict[str, Any]], bool]) -> Any:
    """The first message on stdout that is `wanted`; every line is one of the protocol's."""
    assert process.stdout
    while line := process.stdout.readline():
        message = json.loads(line)
        assert message["jsonrpc"] == "2.0"
        if wanted(message):
            return message
    raise AssertionError("it ended")


def test_nothing_but_the_protocol_is_on_stdout_and_the_end_of_stdin_ends_it(videos: Path) -> None:
    with started(videos) as process:
        answered = reply(process, lambda message: message.get("id") == 2)
        # The current folder is what may be read without --allow-path.
        assert answered["result"]["structuredContent"]["answer"] == "three"
        assert process.stdin
        assert process.stdout
        process.stdin.close()
        assert process.stdout.read() == ""
        assert process.wait(60) == 0


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_it_amid_its_work_with_stdin_open(
    videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, code: int
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    with started(videos) as process:
        reply(process, lambda message: message.get("method") == "notifications/progress")
        process.send_signal(number)
        assert process.wait(60) == code
    assert list((tmp_path / "tmp").glob("sttm-*")) == []


def test_a_start_that_cannot_work_is_one_line(
    videos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    missing = sttm_here("mcp", "--allow-path", videos / "none")
    assert (missing.code, missing.out) == (2, "")
    assert "is not a folder" in missing.err
    assert "cannot be combined" in sttm_here("mcp", "--json").err
    with contextlib.chdir("/"):
        root = sttm_here("mcp")
    assert root.code == 2
    assert "--allow-path" in root.err
    monkeypatch.setattr(command, "find_spec", lambda name: None)
    lacking = sttm_here("mcp", "--allow-path", videos)
    assert lacking.code == 1
    assert lacking.err == (
        "sttm: an MCP server needs what is not installed: mcp\n  python -m pip install mcp\n"
    )
