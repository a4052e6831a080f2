"""The engine by itself: time limits, and memory that runs out."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sttm_cli.answer.generate import Sampler
from sttm_cli.base.errors import ModelError, OutOfMemoryError
from sttm_cli.prefill import ROOM
from sttm_cli.runtime import compute as runtime_compute
from sttm_cli.runtime import resources as runtime_resources
from sttm_cli.runtime.resources import Resources
from sttm_cli.runtime.session import VideoQA
from sttm_cli.serve.engine import Engine
from sttm_cli.serve.http_errors import Refused, refusal
from sttm_cli.serve.job import Job, Piece
from sttm_cli.serve.options import Options
from sttm_cli.settings.settings import Settings, cache_dir
from sttm_cli.store import LocalStore

SAMPLE = Path(__file__).parents[2] / "docs" / "sample.mp4"
COUNT = "how many shapes are there?"
SETTINGS = Settings(frames=4)


@contextmanager
def sample() -> Iterator[Path]:
    yield SAMPLE


async def ask(engine: Engine, settings: Settings = SETTINGS) -> str:
    """The answer, joined of its pieces."""
    text = ""
    async for event in engine.ask(Job(settings, sample(), (COUNT,))):
        text += event.text if isinstance(event, Piece) else ""
    return text


def test_a_question_that_takes_too_long_is_given_up_and_stops(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def main() -> None:
        engine = Engine(SETTINGS, Options(request_timeout=2.0))
        await engine.start()
        monkeypatch.setattr(Sampler, "__call__", lambda self, logits: 20)
        with pytest.raises(TimeoutError) as caught:
            await ask(engine, replace(SETTINGS, max_new_tokens=1_000_000))
        assert refusal(caught.value).status == 504
        async with asyncio.timeout(60):
            while engine.busy:
                await asyncio.sleep(0.01)
        engine.close()

    asyncio.run(main())


def test_who_waits_for_a_model_that_cannot_be_loaded_is_told(tmp_path: Path) -> None:
    async def main() -> None:
        engine = Engine(Settings(model=str(tmp_path)), Options())
        waiting = asyncio.create_task(ask(engine))
        await asyncio.sleep(0)
        with pytest.raises(ModelError):
            await engine.start()
        with pytest.raises(ModelError):
            await asyncio.wait_for(waiting, 60)
        assert not engine.ready
        engine.close()

    asyncio.run(main())


def test_what_runs_and_what_waits_can_be_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        engine = Engine(SETTINGS, Options(parallel=1))
        await engine.start()
        chosen: list[int] = []
        monkeypatch.setattr(Sampler, "__call__", lambda self, logits: chosen.append(20) or 20)
        endless = replace(SETTINGS, max_new_tokens=1_000_000)
        asked = [asyncio.create_task(ask(engine, endless)) for _ in range(2)]
        while not chosen:
            await asyncio.sleep(0.01)
        engine.give_up()
        for each in asked:
            with pytest.raises(Refused, match="ending"):
                await asyncio.wait_for(each, 60)
        assert not engine.busy
        engine.close()

    asyncio.run(main())


def test_a_question_can_be_given_up_at_any_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        engine = Engine(SETTINGS, Options())
        await engine.start()
        chosen: list[int] = []
        monkeypatch.setattr(Sampler, "__call__", lambda self, logits: chosen.append(20) or 20)
        for _ in range(40):
            chosen.clear()
            asked = asyncio.create_task(ask(engine, replace(SETTINGS, max_new_tokens=1_000_000)))
            while len(chosen) < 2:
                await asyncio.sleep(0.001)
            asked.cancel()
            assert await asyncio.wait({asked}, timeout=10) == ({asked}, set())
        engine.give_up()
        engine.close()

    asyncio.run(main())


def test_memory_that_runs_out_is_taken_from_kvs_that_rest(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    compute, failures = runtime_compute.prefill, [OutOfMemoryError("full")]

    async def main() -> None:
        engine = Engine(SETTINGS, Options(host_bytes=0))
        await engine.start()
        await ask(engine)
        assert engine.status()["held_bytes"]["device"] > 0

        def once(*given: object, **more: object) -> object:
            if failures:
                raise failures.pop()
            return compute(*given, **more)  # type: ignore[arg-type]

        monkeypatch.setattr(runtime_compute, "prefill", once)
        assert await ask(engine, replace(SETTINGS, budget=0.2))
        failures.extend([OutOfMemoryError("full")] * 2)
        with pytest.raises(OutOfMemoryError):
            await ask(engine, replace(SETTINGS, budget=0.1))
        assert await ask(engine, replace(SETTINGS, budget=0.1))
        engine.close()

    asyncio.run(main())


def test_a_kv_in_host_memory_that_finds_the_device_full_gets_room_or_comes_from_the_disk(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    copied, failures = runtime_resources._copied, [0]

    def scarce(kv: Any, devices: Any, room: int) -> Any:
        if room == ROOM and failures[0]:
            failures[0] -= 1
            raise OutOfMemoryError("full")
        return copied(kv, devices, room)

    monkeypatch.setattr(runtime_resources, "_copied", scarce)
    store = LocalStore(cache_dir(None), max_bytes=SETTINGS.max_bytes, warn=lambda line: None)
    resources = Resources(store, device_bytes=1 << 30, host_bytes=1 << 30)

    def tier(settings: Settings) -> str | None:
        with VideoQA(settings, resources=resources) as qa:
            return qa.prepare(SAMPLE).cache.tier

    other = replace(SETTINGS, budget=0.2)
    tier(SETTINGS)
    resources.memory.free_device()
    tier(other)
    failures[0] = 1
    assert tier(SETTINGS) == runtime_resources.HOST
    resources.memory.free_device()
    failures[0] = 2
    assert tier(SETTINGS) == runtime_resources.DISK
    assert tier(other) == runtime_resources.HOST
    resources.close()


def test_the_loop_goes_on_while_a_kv_is_copied_to_host_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    copied, copying, going_on = runtime_resources._copied, threading.Event(), threading.Event()
    went_on: list[bool] = []

    def slow(*given: Any) -> Any:
        copying.set()
        went_on.append(going_on.wait(30))
        return copied(*given)

    async def main() -> None:
        engine = Engine(SETTINGS, Options(device_bytes=0, host_bytes=1 << 30))
        await engine.start()
        monkeypatch.setattr(runtime_resources, "_copied", slow)
        asked = asyncio.create_task(ask(engine))
        while not copying.is_set():
            await asyncio.sleep(0.01)
        going_on.set()
        await asked
        engine.close()

    asyncio.run(main())
    assert went_on == [True]
