"""Many questions at once: right answers, bounded queues and memory, nothing lost."""

from __future__ import annotations

import asyncio
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.serve.conftest import PARALLEL, QUEUE
from tests.serve.many import Case, ask, ask_all
from tests.serve.running import ENDLESS, Running, serving

DRAWN = {"temperature": 50.0, "seed": 1}
MIB = 1 << 20


def body(case: Case, **more: Any) -> dict[str, Any]:
    video = {"type": "video_url", "video_url": {"url": str(case.video)}}
    content = [video, {"type": "text", "text": case.question}]
    return {"model": "tiny", "messages": [{"role": "user", "content": content}], **more}


def test_answers_are_those_computed_alone_within_the_bounds(
    server: Running, cases: list[Case], allowed: Path
) -> None:
    for case in cases:
        if not (allowed / case.video.name).exists():
            (allowed / case.video.name).write_bytes(case.video.read_bytes())
    there = [Case(allowed / c.video.name, c.question, c.budget, c.answer) for c in cases]
    answered = ask_all(server, there * 2, at_once=16)
    assert [text for _, text in answered] == [case.answer for case, _ in answered]
    assert server.metric("sttm_queue") == 0


def test_questions_that_arrive_together_are_decoded_together(
    server: Running, cases: list[Case], allowed: Path
) -> None:
    about = [case for case in cases if case.video == cases[0].video and case.budget == 0.5]
    path = allowed / cases[0].video.name
    path.write_bytes(cases[0].video.read_bytes())
    there = [Case(path, case.question, 0.5, case.answer) for case in about] * 8
    before = [server.metric(f"sttm_together_{name}") for name in ("sum", "count")]
    answered = ask_all(server, there, at_once=8)
    asked, runs = (
        server.metric(f"sttm_together_{name}") - was
        for name, was in zip(("sum", "count"), before, strict=True)
    )
    assert [text for _, text in answered] == [case.answer for case in there]
    assert asked == len(there) > runs


def test_kvs_go_down_the_tiers_and_come_back_the_same(tight: Running, cases: list[Case]) -> None:
    with tight.openai() as client:
        for order in (cases, cases[::-1], cases):
            assert [ask(client, case) for case in order] == [case.answer for case in order]
    tiers = ("device", "host", "disk", "computed")
    assert all(tight.metric(f'sttm_videos_total{{tier="{tier}"}}') > 0 for tier in tiers)
    for tier, most in (("device", 3 * MIB), ("host", MIB), ("disk", 3 * MIB)):
        assert 0 < tight.metric(f'sttm_held_bytes{{tier="{tier}"}}') <= most


def test_beyond_the_queue_is_429_and_the_server_recovers(tight: Running, cases: list[Case]) -> None:
    many = 3 * (PARALLEL + QUEUE)

    async def all_at_once() -> list[httpx.Response]:
        headers = {"Authorization": "Bearer secret"}
        limits = httpx.Limits(max_connections=many)
        async with httpx.AsyncClient(
            base_url=tight.url, headers=headers, timeout=100, limits=limits
        ) as http:
            slow = body(cases[0], max_tokens=100, **DRAWN)
            posts = (http.post("/v1/chat/completions", json=slow) for _ in range(many))
            return list(await asyncio.gather(*posts))

    answers = asyncio.run(all_at_once())
    codes = [answer.status_code for answer in answers]
    assert set(codes) == {200, 429}
    assert codes.count(200) >= PARALLEL + QUEUE
    done = {a.json()["choices"][0]["message"]["content"] for a in answers if a.status_code == 200}
    assert len(done) == 1
    refused = next(answer for answer in answers if answer.status_code == 429)
    assert int(refused.headers["Retry-After"]) >= 1
    assert refused.json()["error"]["code"] == "queue_full"
    with tight.openai() as client:
        assert ask(client, cases[0]) == cases[0].answer


def test_a_client_that_goes_away_ends_its_answer(tight: Running, cases: list[Case]) -> None:
    endless = body(cases[0], max_tokens=100_000, **DRAWN)
    with tight.http() as http:
        with http.stream("POST", "/v1/chat/completions", json={**endless, "stream": True}) as said:
            lines = said.iter_lines()
            next(lines)
            assert tight.metric("sttm_queue") == 1
        _until_running(tight, 0)
        with pytest.raises(httpx.ReadTimeout):
            http.post("/v1/chat/completions", json=endless, timeout=0.5)
        _until_running(tight, 0)


def test_a_client_that_goes_away_before_its_turn_is_forgotten(
    tight: Running, cases: list[Case]
) -> None:
    endless = body(cases[0], max_tokens=100_000, stream=True, **DRAWN)
    with tight.http() as http:
        with http.stream("POST", "/v1/chat/completions", json=endless) as said:
            lines = said.iter_lines()
            next(lines)
            for _ in range(PARALLEL + 1):
                with pytest.raises(httpx.ReadTimeout):
                    http.post("/v1/chat/completions", json=endless, timeout=0.2)
            _until_running(tight, 1)
        _until_running(tight, 0)


def test_what_runs_is_finished_before_the_end_and_what_is_new_refused(
    tmp_path: Path, cases: list[Case]
) -> None:
    with serving(tmp_path, "--allow-path", cases[0].video.parent, code=ENDLESS) as server:
        with server.http() as http:
            whole = http.post("/v1/chat/completions", json=body(cases[0], max_tokens=200, **DRAWN))
            got: list[httpx.Response] = []

            def one() -> None:
                with server.http() as own:
                    drawn = body(cases[0], max_tokens=200, **DRAWN)
                    got.append(own.post("/v1/chat/completions", json=drawn))

            asking = threading.Thread(target=one)
            asking.start()
            while server.metric("sttm_queue") == 0 and asking.is_alive():
                time.sleep(0.005)
            server.process.terminate()
            asking.join(60)
        assert got[0].status_code == 200
        assert got[0].json()["choices"] == whole.json()["choices"]
        with pytest.raises(httpx.TransportError), server.http() as http:
            http.get("/health")
        assert server.process.wait(30) == 0


def _until_running(server: Running, count: int) -> None:
    deadline = time.monotonic() + 30
    while server.metric("sttm_queue") > count:
        assert time.monotonic() < deadline, "the answer goes on"
        time.sleep(0.02)
