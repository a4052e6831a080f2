"""Questions in, events out: the queue, the threads, and the shared model.

A job first waits in the queue. Its video is then prepared in a thread of its own, so that decoding
and encoding one video overlap with answers about another. The text decoder runs on the model's
thread only, where its hooks and its KV buffers serve one run at a time.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from weakref import WeakValueDictionary

import psutil

from sttm_cli.base.events import Reported
from sttm_cli.base.reports import ServerStatus
from sttm_cli.base.results import Answer, Choice
from sttm_cli.decode import Source
from sttm_cli.runtime.model_plan import check_model, plan_model
from sttm_cli.runtime.prepared import Prepared, ask_report
from sttm_cli.runtime.resources import DISK, Resources
from sttm_cli.runtime.session import VideoQA
from sttm_cli.serve.batch import Batches, together
from sttm_cli.serve.http_errors import Refused
from sttm_cli.serve.job import Event, Job, JobRun, Piece, Reply
from sttm_cli.serve.metrics import Metrics
from sttm_cli.serve.openai_reply import LogProbs
from sttm_cli.serve.options import Options
from sttm_cli.settings.settings import Settings, cache_dir
from sttm_cli.store import open_store

# Default memory bounds of KVs.


def bounds(device: str, options: Options) -> tuple[int, int]:
    """Return the bytes for KVs on the device and in host memory: as given, or a share of the
    memory.

    An accelerator contributes a fifth of its memory, the host an eighth of its own; if the device
    is the host, there is one tier with a quarter.
    """
    host: int = psutil.virtual_memory().total
    if device.startswith("cuda"):
        import torch

        of_device, of_host = torch.cuda.mem_get_info(device)[1] // 5, host // 8
    elif device == "cpu":
        of_device, of_host = host // 4, 0
    else:
        of_device, of_host = host // 8, host // 8
    given = options.device_bytes, options.host_bytes
    return (
        of_device if given[0] is None else given[0],
        of_host if given[1] is None else given[1],
    )


class Engine:
    """Answers questions with one loaded model."""

    def __init__(self, settings: Settings, options: Options) -> None:
        self.settings, self._options = settings, options
        self.stop = asyncio.Event()
        self.keep_alive = options.keep_alive
        self.last_used, self.answered = time.monotonic(), 0
        self._loaded = asyncio.get_running_loop().create_future()
        self._store = open_store(
            cache_dir(settings.cache_dir),
            max_bytes=settings.max_bytes,
            tier=settings.cache_tier,
            warn=lambda line: None,
        )
        self.metrics = Metrics(queue=lambda: len(self._runs), held=self._held)
        self._runs: dict[asyncio.Task[None], JobRun] = {}
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
            # Jobs may already be waiting for the model.
            self._loaded.set_exception(error)
            self._loaded.exception()
            raise
        self._loaded.set_result(None)

    @property
    def ready(self) -> bool:
        """Whether the model is loaded."""
        return self._loaded.done() and self._loaded.exception() is None

    def stay(self, seconds: float) -> None:
        """Stop `seconds` after the last question, if this server stops by itself at all."""
        if self.keep_alive is not None:
            self.keep_alive = seconds

    def give_up(self) -> None:
        """Stop running jobs at their next token or chunk of frames, and waiting ones at once."""
        for task, run in self._runs.items():
            run.give_up(task)

    def close(self) -> None:
        """Release threads and memory; call once nothing is running."""
        self._preparing.shutdown()
        self._model_thread.shutdown()
        if self.ready:
            self._batches.close()
            self._resources.close()

    def status(self) -> ServerStatus:
        """Return the status that `sttm serve --status` shows."""
        held = self._resources.memory.bytes() if self.ready else {}
        return {
            "ready": self.ready,
            "running": len(self._runs),
            "answered": self.answered,
            "idle_s": 0.0 if self.busy else time.monotonic() - self.last_used,
            "held_bytes": held,
        }

    @property
    def busy(self) -> bool:
        """Whether any job is waiting or running."""
        return bool(self._runs)

    async def ask(self, job: Job) -> AsyncIterator[Event]:
        """Yield the events of `job` as they happen; leaving the loop early stops the work.

        Raises Refused if the queue is full, TimeoutError, and the errors of `errors.py`.
        """
        self._refuse_if_full()
        loop, events = asyncio.get_running_loop(), asyncio.Queue[Event | None]()
        run = JobRun(lambda event: loop.call_soon_threadsafe(events.put_nowait, event))
        task = asyncio.create_task(self._run(job, run))
        self._runs[task] = run
        task.add_done_callback(self._done)
        task.add_done_callback(lambda _: run.send(None))
        deadline = loop.time() + self._options.request_timeout
        try:
            while True:
                # Not `wait_for`: before Python 3.12 it loses a cancellation that coincides with an
                # event.
                async with asyncio.timeout_at(deadline):
                    event = await events.get()
                if event is None:
                    break
                yield event
            if run.cancelled.is_set():
                raise Refused(503, "this server is ending", code="stopping")
            await task
        finally:
            run.give_up(task)

    # ---- one job

    async def _run(self, job: Job, run: JobRun) -> None:
        async with self._slots:
            await asyncio.shield(self._loaded)
            run.started, started = True, time.monotonic()
            await self._answer_all(job, run)
        self._mean_s += 0.2 * (time.monotonic() - started - self._mean_s)

    async def _answer_all(self, job: Job, run: JobRun) -> None:
        stack = ExitStack()
        try:
            path = await asyncio.to_thread(stack.enter_context, job.video)
            qa = stack.enter_context(self._session(job.settings, run))
            prepared = await self._prepare(qa, path)
            self.metrics.prepared(prepared.cache.tier, prepared.clock.seconds())
            await asyncio.to_thread(_check, qa, prepared, job)
            answers: list[Answer | Choice] = []
            for question in job.questions:
                reply = await self._answer(qa, prepared, question, job, run)
                answers.append(reply.answer)
                run.send(reply)
            run.send(
                Reported(ask_report(prepared, answers, settings=qa.settings, plan=qa.model_plan))
            )
        finally:
            # Releasing a KV may copy it to host memory, which must not block the loop.
            await asyncio.to_thread(stack.close)

    async def _prepare(self, qa: VideoQA, video: Path | Source) -> Prepared:
        loop = asyncio.get_running_loop()
        request = await asyncio.to_thread(qa.request, video)
        # Concurrent jobs about one video share its preparation.
        lock = self._keys.setdefault(request.key, asyncio.Lock())
        async with lock:
            quick = await asyncio.to_thread(self._resources.memory.has, request.key)
            pool = None if quick else self._preparing
            return await loop.run_in_executor(pool, qa.prepare, request)

    async def _answer(
        self, qa: VideoQA, prepared: Prepared, question: str, job: Job, run: JobRun
    ) -> Reply:
        def work(prepared: Prepared) -> Reply:
            run.check()
            return _reply(qa, prepared, question, job, run)

        run.turn = self._batches.submit(prepared, work, alone=bool(job.options))
        reply: Reply = await asyncio.wrap_future(run.turn)
        run.check()
        self.metrics.answered(reply.answer)
        self.answered += 1
        return reply

    def _session(self, settings: Settings, run: JobRun) -> VideoQA:
        """Return a session for one job; its decoder runs on the model's thread only."""
        return VideoQA(
            settings,
            warn=run.warn,
            progress=run.progress,
            resources=self._resources,
            decoder_thread=self._model_thread,
        )

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
        # Retrieved, so that asyncio does not log the failure of a job whose client is gone.
        _ = task.cancelled() or task.exception()

    def _load(self) -> None:
        plan = plan_model(self.settings, check_model(self.settings, self._store))
        most = together(plan, self._options.together)
        self._batches = Batches(self._model_thread, most, self.metrics.together.observe)
        device, host = bounds(plan.device, self._options)
        self._resources = Resources(self._store, device_bytes=device, host_bytes=host)
        self._resources.host.get(plan, vision=True)

    def _held(self, tier: str) -> int:
        if tier == DISK:
            return self._store.bytes
        return self._resources.memory.bytes()[tier] if self.ready else 0


def _check(qa: VideoQA, prepared: Prepared, job: Job) -> None:
    """Raise UsageError for unanswerable questions, and for control tokens in earlier answers, which
    the client may have forged."""
    qa.check(prepared, job.questions)
    for _, answer in job.history:
        prepared.model.answer(answer)


def _reply(qa: VideoQA, prepared: Prepared, question: str, job: Job, run: JobRun) -> Reply:
    """Answer one question; pieces are sent as they are generated."""
    model = prepared.model
    count = prepared.kv.tokens.prefix + len(model.question(question, job.history))
    if job.options:
        weighed = qa.choose(prepared, question, job.options, history=job.history)
        return Reply(weighed, count)
    probs = LogProbs(model.text, job.logprobs)
    answer = qa.answer(
        prepared,
        question,
        history=job.history,
        on_text=lambda piece: run.send(Piece(piece, probs.taken())),
        on_token=probs.add,
        stop=run.cancelled.is_set,
    )
    return Reply(answer, count, probs.taken())
