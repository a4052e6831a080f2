"""Questions in, events out: the queue, the threads, and the one model they share.

A question first gets a place in the queue. Its video is then made ready in a thread of its own,
so that decoding and encoding one video overlap answers about another; everything that runs the
text decoder does so on the model's thread, where its hooks and its KV buffers belong to one run
at a time.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

from sttm_cli.base.results import Answer, Choice
from sttm_cli.base.types import Json, PrefixKV
from sttm_cli.decode import Source
from sttm_cli.runtime.ask_report import ask_report
from sttm_cli.runtime.kv_memory import DISK
from sttm_cli.runtime.model_host import Resident
from sttm_cli.runtime.prepared import Prepared
from sttm_cli.runtime.session import VideoQA
from sttm_cli.serve.batch import Batches, together
from sttm_cli.serve.events import Asking, Run, Told
from sttm_cli.serve.http_errors import Refused
from sttm_cli.serve.kv_bounds import bounds
from sttm_cli.serve.logprobs import LogProbs
from sttm_cli.serve.metrics import Metrics
from sttm_cli.serve.options import Options
from sttm_cli.settings.settings import Settings, cache_dir
from sttm_cli.store import open_store


class Engine:
    """Answers questions with one loaded model."""

    def __init__(self, settings: Settings, options: Options) -> None:
        self.settings, self._options = settings, options
        self.stop = asyncio.Event()
        self.keep_alive = options.keep_alive
        self.last_used, self.answered = time.monotonic(), 0
        self._loaded = asyncio.get_running_loop().create_future()
        self._store = open_store(
            cache_dir(settings.cache_dir), max_bytes=settings.max_bytes, warn=lambda line: None
        )
        self.metrics = Metrics(queue=lambda: len(self._runs), held=self._held)
        self._runs: dict[asyncio.Task[None], Run] = {}
        self._mean_s = 1.0
        self._slots = asyncio.Semaphore(options.parallel)
        self._keys = WeakValueDictionary[str, asyncio.Lock]()
        self._model_thread = ThreadPoolExecutor(1, thread_name_prefix="model")
        self._preparing = ThreadPoolExecutor(2, thread_name_prefix="prepare")

    async def start(self) -> None:
        """Load the model; raises as `VideoQA.model`."""
        loop = asyncio.get_running_loop()
        try:
            await loop.run_in_executor(self._model_thread, self._load)
        except Exception as error:
            # For whoever waits for the model already.
            self._loaded.set_exception(error)
            self._loaded.exception()
            raise
        self._loaded.set_result(None)

    @property
    def ready(self) -> bool:
        """Whether the model is loaded."""
        return self._loaded.done() and self._loaded.exception() is None

    def stay(self, seconds: float) -> None:
        """Where this server ends by itself, end `seconds` after the last question."""
        if self.keep_alive is not None:
            self.keep_alive = seconds

    def give_up(self) -> None:
        """End what runs at its next token or chunk of frames, and what waits at once."""
        for task, run in self._runs.items():
            run.give_up(task)

    def close(self) -> None:
        """Let go of everything; called once nothing runs."""
        self._preparing.shutdown()
        self._model_thread.shutdown()
        if self.ready:
            self._batches.close()
            self._resident.close()

    def status(self) -> Json:
        """What `sttm serve --status` shows."""
        held = self._resident.tiers.bytes() if self.ready else {}
        return {
            "ready": self.ready,
            "running": len(self._runs),
            "answered": self.answered,
            "idle_s": 0.0 if self.busy else time.monotonic() - self.last_used,
            "held_bytes": held,
        }

    @property
    def busy(self) -> bool:
        """Whether anything waits or runs."""
        return bool(self._runs)

    async def ask(self, asking: Asking) -> AsyncIterator[Told]:
        """What becomes of `asking`, as it comes; leaving the loop early stops the work.

        Raises Refused where the queue is full or the time is up, and the errors of `errors.py`.
        """
        self._refuse_if_full()
        loop, told = asyncio.get_running_loop(), asyncio.Queue[Told | None]()
        run = Run(lambda event: loop.call_soon_threadsafe(told.put_nowait, event))
        task = asyncio.create_task(self._run(asking, run))
        self._runs[task] = run
        task.add_done_callback(self._done)
        task.add_done_callback(lambda _: run.tell(None))
        deadline = loop.time() + self._options.request_timeout
        try:
            while True:
                # Not `wait_for`: before Python 3.12 that loses a cancellation beside an event.
                async with asyncio.timeout_at(deadline):
                    event = await told.get()
                if event is None:
                    break
                yield event
            if run.cancelled.is_set():
                raise Refused(503, "this server is ending", code="stopping")
            await task
        finally:
            run.give_up(task)

    # ---- one asking

    async def _run(self, asking: Asking, run: Run) -> None:
        async with self._slots:
            await asyncio.shield(self._loaded)
            run.started, started = True, time.monotonic()
            await self._answer_all(asking, run)
        self._mean_s += 0.2 * (time.monotonic() - started - self._mean_s)

    async def _answer_all(self, asking: Asking, run: Run) -> None:
        stack = ExitStack()
        try:
            path = await asyncio.to_thread(stack.enter_context, asking.video)
            qa = stack.enter_context(
                _SharedQA(self._model_thread, run, asking.settings, self._resident)
            )
            prepared = await self._prepare(qa, path)
            self.metrics.prepared(prepared.cache.tier, prepared.clock.seconds())
            await asyncio.to_thread(_check, qa, asking)
            answers: list[Answer | Choice] = []
            for question in asking.questions:
                told = await self._answer(qa, prepared, question, asking, run)
                answers.append(told.value)
                run.tell(told)
            run.tell(Told("report", ask_report(qa, prepared, answers)))
        finally:
            # A KV that is let go of may be copied to host memory, which must not hold up the loop.
            await asyncio.to_thread(stack.close)

    async def _prepare(self, qa: VideoQA, video: Path | Source) -> Prepared:
        loop = asyncio.get_running_loop()
        request = await asyncio.to_thread(qa.request, video)
        # What is asked of one video at the same time is prepared once.
        lock = self._keys.setdefault(request.key, asyncio.Lock())
        async with lock:
            quick = await asyncio.to_thread(self._resident.tiers.has, request.key)
            pool = None if quick else self._preparing
            return await loop.run_in_executor(pool, qa.prepare, video)

    async def _answer(
        self, qa: VideoQA, prepared: Prepared, question: str, asking: Asking, run: Run
    ) -> Told:
        def work(prepared: Prepared) -> Told:
            run.check()
            return _reply(qa, prepared, question, asking, run)

        run.turn = self._batches.submit(prepared, work, alone=bool(asking.options))
        told: Told = await asyncio.wrap_future(run.turn)
        run.check()
        self.metrics.answered(told.value)
        self.answered += 1
        return told

    # ---- the queue

    def _refuse_if_full(self) -> None:
        if len(self._runs) >= self._options.parallel + self._options.max_queue:
            wait = self._mean_s * self._options.max_queue / self._options.parallel
            raise Refused(
                429,
                "the queue of this server is full; try again later",
                code="queue_full",
                retry_after=max(1, min(60, round(wait))),
            )

    def _done(self, task: asyncio.Task[None]) -> None:
        del self._runs[task]
        self.last_used = time.monotonic()
        # Told to whoever waits; where nobody does, nobody has to be told.
        _ = task.cancelled() or task.exception()

    def _load(self) -> None:
        choice = VideoQA(self.settings, resident=Resident(self._store)).choice
        most = together(choice, self._options.together)
        self._batches = Batches(self._model_thread, most, self.metrics.together.observe)
        device, host = bounds(choice.device, self._options)
        self._resident = Resident(self._store, device_bytes=device, host_bytes=host)
        VideoQA(self.settings, resident=self._resident).model()

    def _held(self, tier: str) -> int:
        if tier == DISK:
            return self._store.bytes
        return self._resident.tiers.bytes()[tier] if self.ready else 0


def _check(qa: VideoQA, asking: Asking) -> None:
    """Raise UsageError for questions that cannot be asked, and for earlier answers that hold
    control tokens: a client may put there what it likes."""
    qa.check(asking.questions)
    model = qa.model(vision=False)
    for _, answer in asking.history:
        model.answer(answer)


def _reply(qa: VideoQA, prepared: Prepared, question: str, asking: Asking, run: Run) -> Told:
    """The answer to one question, its pieces told as they come."""
    model = qa.model(vision=False)
    count = prepared.kv.tokens.prefix + len(model.question(question, asking.history))
    if asking.options:
        weighed = qa.choose(prepared, question, asking.options, history=asking.history)
        return Told("answer", weighed, count)
    probs = LogProbs(model.text, asking.logprobs)
    answer = qa.answer(
        prepared,
        question,
        history=asking.history,
        on_text=lambda piece: run.tell(Told("text", piece, logprobs=probs.taken())),
        on_token=probs.add,
        stop=run.cancelled.is_set,
    )
    return Told("answer", answer, count, probs.taken())


class _SharedQA(VideoQA):
    """A `VideoQA` among others: the decoder runs on the model's thread only."""

    def __init__(
        self, thread: ThreadPoolExecutor, run: Run, settings: Settings, resident: Resident
    ) -> None:
        super().__init__(settings, warn=run.warn, progress=run.progress, resident=resident)
        self._thread = thread

    def prefill(self, *args: Any, **options: Any) -> PrefixKV:
        return self._thread.submit(super().prefill, *args, **options).result()
