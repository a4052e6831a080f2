"""Sessions: each video is prepared once, then asked about.

torch is imported only once the video and the model's name have been checked.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sttm_cli.base.device import reporting_memory
from sttm_cli.base.errors import UsageError
from sttm_cli.base.results import Answer, CacheUse, Choice, Clock
from sttm_cli.base.types import Frames, OnToken, PrefixKV, Progress, Sampling
from sttm_cli.decode import Source, Sources, in_bucket, object_at
from sttm_cli.models.given import name_of
from sttm_cli.models.registry import load
from sttm_cli.runtime.model_plan import (
    CheckedModel,
    ModelPlan,
    check_model,
    plan_loaded,
    plan_model,
    with_choices,
)
from sttm_cli.runtime.request import Request, check_video, facts_for, known_identity, make_request
from sttm_cli.runtime.resources import ModelHost, Resources
from sttm_cli.settings.fields import check_question
from sttm_cli.settings.settings import (
    DEFAULT_METHOD,
    DEFAULT_MODEL,
    SETTINGS,
    Decoder,
    DType,
    KVDType,
    Positions,
    Settings,
    Sizes,
    cache_dir,
)
from sttm_cli.store import Entry, Store, open_store

if TYPE_CHECKING:
    from transformers import PreTrainedModel, ProcessorMixin

    from sttm_cli.models.family import VideoLLM
    from sttm_cli.runtime.compute import Compute
    from sttm_cli.runtime.prefix_cache import PrefixCache
    from sttm_cli.runtime.prepared import Prepared

NARROW = 0.1
"""A checkpoint's own top-p below this leaves a temperature almost nothing to act on."""


class VideoQA:
    """Answers questions about videos; decodes, merges and prefills each one once.

    >>> with VideoQA(model="tiny", budget=0.3) as qa:  # doctest: +SKIP
    ...     qa.ask("video.mp4", "what happens?").text

    Takes the fields of `Settings`, or all of them as `settings`; they cannot be changed later.
    `model`: a name, a folder, or a loaded transformers model, which needs its `processor` and stays
    the caller's. `warn` is called with each message for the user. `resources`: a store and a loaded
    model that outlive this object; by default it has its own. `decoder_thread`: as in `Compute`.
    Raises the errors of `base/errors.py`.
    """

    def __init__(
        self,
        settings: Settings | None = None,
        *,
        warn: Callable[[str], None] | None = None,
        progress: Progress | None = None,
        resources: Resources | None = None,
        model_plan: ModelPlan | None = None,
        decoder_thread: Executor | None = None,
        model: str | Path | PreTrainedModel = DEFAULT_MODEL,
        processor: ProcessorMixin | None = None,
        revision: str | None = None,
        budget: float | int | str = 0.5,
        method: str = DEFAULT_METHOD,
        merge_layer: int | None = None,
        attention_sizes: Sizes = "auto",
        positions: Positions = "auto",
        options: Sequence[str] | str = (),
        system: str | None = None,
        fps: float | None = None,
        frames: int | None = None,
        start: float | str | None = None,
        end: float | str | None = None,
        decoder: Decoder = "auto",
        device: str = "auto",
        dtype: DType = "auto",
        kv_dtype: KVDType = "auto",
        cache_dir: str | Path | None = None,
        cache_tier: str | Path | None = None,
        no_cache: bool = False,
        refresh: bool = False,
        max_bytes: int | str | None = None,
        max_new_tokens: int = 256,
        temperature: float = 0.0,
        seed: int | None = None,
        top_p: float | None = None,
        max_download: int | str = 4 << 30,
    ) -> None:
        fields = {name: value for name, value in locals().items() if name in SETTINGS}
        loaded = None if isinstance(model, str | os.PathLike) else model
        if loaded is not None:
            fields["model"] = name_of(loaded)
        elif processor is not None:
            raise UsageError(
                "processor cannot be combined with the name of a model, which has its own",
                "leave it out, or give the loaded model",
            )
        self._settings = _checked(settings, fields)
        self._on_warning = warn or logging.getLogger("sttm_cli").warning
        self._warned: set[str] = set()
        self._progress = progress or (lambda stage, done, of: None)
        self._owner = resources is None
        store = _open_store(self._settings, self.warn) if resources is None else resources.store
        if loaded is not None:
            model_plan = plan_loaded(loaded, processor, self._settings)
            given = load(
                model_plan.checkpoint, model_plan.placement(), frozenset(model_plan.options)
            )
            resources = Resources(store, host=ModelHost.holding(model_plan, given, store))
        self._resources = resources or Resources(store)
        self._sources = Sources(max_bytes=self._settings.max_download, progress=self._progress)
        self._decoder_thread, self._given_plan = decoder_thread, model_plan
        self._rate_checked = False

    def __enter__(self) -> VideoQA:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def release(self) -> None:
        """Release the video's KV; the next question about the video restores it."""
        if "_prefixes" in self.__dict__:
            self._prefixes.release()

    def close(self) -> None:
        """Release the video and its copy, and the model and the store unless they were given."""
        self.release()
        self._sources.close()
        if self._owner:
            self._resources.close()

    def with_settings(self, settings: Settings) -> VideoQA:
        """Return another session with the same store, model and copies of videos; close it before
        this one."""
        other = VideoQA(
            settings,
            warn=self._on_warning,
            progress=self._progress,
            resources=self._resources,
            model_plan=self._given_plan and with_choices(self._given_plan, settings),
            decoder_thread=self._decoder_thread,
        )
        other._sources = self._sources.shared()
        return other

    # ---- asking

    def ask(
        self,
        video: str | Path,
        question: str,
        *,
        history: Sequence[tuple[str, str]] = (),
        on_text: Callable[[str], None] | None = None,
    ) -> Answer:
        """Answer a question, after preparing the video unless it is prepared already.

        `history`: earlier questions and answers of the same conversation.
        """
        return self.answer(self.prepare(video), question, history=history, on_text=on_text)

    def prepare(self, video: str | Path | Source | Request) -> Prepared:
        """Restore the video's prefilled KV, or compute and store it."""
        clock = Clock()
        self._warned.clear()
        request = video if isinstance(video, Request) else self.request(video, clock)
        from sttm_cli.runtime.prepared import Prepared

        self.check_rate(request)
        known = self._prefixes.uses(request.key)
        held, cache = self._prefixes.get(request, clock)
        if not known:
            for warning in held.kv.facts["decode"]["warnings"]:
                self.warn(warning)
        return Prepared(
            request=request,
            model=self.compute.model(clock, vision=False),
            kv=held.kv,
            cache=cache,
            clock=clock,
            prefix=held.prefix,
            seconds=clock.total() - clock.spent("load_model"),
        )

    def answer(
        self,
        prepared: Prepared,
        question: str,
        *,
        history: Sequence[tuple[str, str]] = (),
        sampling: Sampling | None = None,
        max_new_tokens: int | None = None,
        on_text: Callable[[str], None] | None = None,
        on_token: OnToken | None = None,
        stop: Callable[[], bool] = lambda: False,
    ) -> Answer:
        """Answer a question about a prepared video.

        `sampling` and `max_new_tokens`: for this answer, instead of the settings'. `on_token` is
        called with each token of the answer and the logits [V] that it was chosen from. `stop` is
        called before each token and ends the answer if true; an exception from `on_text` also ends
        it and is passed on. Raises UsageError if the question does not fit the model's context.
        """
        from sttm_cli.runtime.prepared import Asked, answer

        sampling = self.settings.sampling if sampling is None else sampling
        top_p = prepared.model.top_p
        if sampling.temperature and not sampling.top_p and top_p < NARROW:
            self.warn(f"the model's own top-p of {top_p} draws the likeliest tokens only")
        with reporting_memory():
            return answer(
                prepared,
                Asked(question, history),
                max_new_tokens=max_new_tokens or self.settings.max_new_tokens,
                sampling=sampling,
                on_text=on_text,
                on_token=on_token,
                stop=stop,
            )

    def choose(
        self,
        prepared: Prepared,
        question: str,
        options: Sequence[str],
        *,
        history: Sequence[tuple[str, str]] = (),
    ) -> Choice:
        """Return the likeliest of `options` as the answer to a question about a prepared video.

        Raises UsageError as `answer`, and for fewer than two options or equal ones.
        """
        from sttm_cli.runtime.prepared import Asked, choose

        with reporting_memory():
            return choose(prepared, Asked(question, history), options)

    def check(self, prepared: Prepared, questions: Sequence[str]) -> None:
        """Raise UsageError for a question that this model cannot be asked."""
        for question in questions:
            check_question(question)
            prepared.model.question(question)

    # ---- components

    @property
    def settings(self) -> Settings:
        """The session's settings, which never change (`with_settings` opens another session)."""
        return self._settings

    @property
    def store(self) -> Store:
        """The store of prefilled KVs."""
        return self._resources.store

    @cached_property
    def model_plan(self) -> ModelPlan:
        """The model and how it will be run; resolved without loading it."""
        return self._given_plan or plan_model(self.settings, self._checked_model)

    @cached_property
    def _checked_model(self) -> CheckedModel:
        return check_model(self.settings, self.store, self.warn)

    @cached_property
    def compute(self) -> Compute:
        """The stages, with this session's model."""
        from sttm_cli.runtime.compute import Compute

        return Compute(
            self.model_plan,
            self._resources.host,
            progress=self._progress,
            decoder_thread=self._decoder_thread,
        )

    @property
    def loaded(self) -> bool:
        """Whether the model is loaded."""
        return self._planned and self._resources.host.has(self.model_plan, vision=False)

    def model(self, *, vision: bool = True) -> VideoLLM:
        """Return the model, loaded at its first use; without `vision`, maybe without its
        encoder."""
        return self.compute.model(vision=vision)

    def request(self, video: str | Path | Source, clock: Clock | None = None) -> Request:
        """Return everything that shapes the video's KV; reads the file's bytes, decodes nothing."""
        source = self.found(video)
        self._import(clock or Clock())
        facts = facts_for(source, self.store)
        return make_request(source, self.model_plan, self.settings, facts, self.store)

    def known(self, video: str | Path) -> Entry | None:
        """Return the stored entry of an object in a bucket that was read before and is unchanged,
        without fetching it. None for any other video."""
        if not (isinstance(video, str) and in_bucket(video)):
            return None
        found = object_at(video)
        identity = known_identity(found, self.model_plan, self.settings, self.store)
        return None if identity is None else self.store.stored(identity)

    def forget(self, video: str | Path) -> None:
        """Remove the local copy of a remote video that will not be asked about again."""
        self._sources.drop(video)

    def found(self, video: str | Path | Source) -> Source:
        """Return the video's file, checked as far as its header allows; imports nothing heavy.

        Raises VideoError if it is not a readable video, UsageError for times outside of it,
        ModelError for an unknown model.
        """
        source = self._sources.find(video)
        if not self._planned:
            check_video(source, self.settings, facts_for(source, self.store))
        return source

    def _import(self, clock: Clock) -> None:
        """Import what the stages need, before their timing begins."""
        if "torch" in sys.modules:
            return
        # An invalid model name is refused without importing torch.
        if self._given_plan is None:
            _ = self._checked_model
        self._progress("import", 0, 1)
        with clock.stage("load_model"):
            import sttm_cli.runtime.prefix_cache
            import sttm_cli.runtime.prepared  # noqa: F401
        self._progress("import", 1, 1)

    @property
    def _planned(self) -> bool:
        return self._given_plan is not None or "model_plan" in self.__dict__

    def add(
        self, request: Request, clock: Clock, frames: Frames
    ) -> tuple[PrefixKV, CacheUse] | None:
        """Compute and store a video's KV; None if another process has just done so."""
        self._warned.clear()
        self.check_rate(request)
        return self._prefixes.add(request, clock, frames)

    def warn(self, line: str) -> None:
        """Pass a warning on, once per video."""
        if line not in self._warned:
            self._warned.add(line)
            self._on_warning(line)

    def check_rate(self, request: Request) -> None:
        """Warn once if the requested --fps is not reached."""
        times, fps, frames = request.plan.times_s, self.settings.fps, self.settings.frames
        bounded = fps and not frames and len(times) > 1 and times[1] - times[0] > 1.01 / fps
        if bounded and not self._rate_checked:
            self._rate_checked = True
            self._on_warning(
                f"--fps {fps:g} gives more than the {len(times)} frames that this model takes by "
                f"default: they are {times[1] - times[0]:.2f} s apart; --frames allows more"
            )

    @cached_property
    def _prefixes(self) -> PrefixCache:
        from sttm_cli.runtime.prefix_cache import PrefixCache

        return PrefixCache(self.settings, self._resources, self.compute, warn=self.warn)


def _checked(settings: Settings | None, fields: dict[str, Any]) -> Settings:
    """Return the settings; raises UsageError for fields given in addition to `settings`."""
    if settings is None:
        return Settings(**fields)
    given = Settings(**fields)
    beside = [name for name in SETTINGS if getattr(given, name) != getattr(Settings(), name)]
    if beside:
        raise UsageError(f"settings and {', '.join(beside)} cannot be combined", "give one of them")
    return settings


def _open_store(settings: Settings, warn: Callable[[str], None]) -> Store:
    where = None if settings.no_cache else cache_dir(settings.cache_dir)
    return open_store(where, max_bytes=settings.max_bytes, tier=settings.cache_tier, warn=warn)
