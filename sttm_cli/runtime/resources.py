"""What outlives one session: the store, the loaded model, and the KVs in memory."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

from sttm_cli.base.filefacts import FileFacts
from sttm_cli.models.checkpoint import check_unchanged
from sttm_cli.models.registry import load
from sttm_cli.models.video_llm import VideoLLM
from sttm_cli.runtime.kv_memory import KVMemory
from sttm_cli.runtime.model_plan import ModelPlan
from sttm_cli.store import Store

Loading = Callable[[], AbstractContextManager[object]]


class ModelHost:
    """Loads a model at its first use and keeps it until another one is asked for.

    `facts`: where fingerprints of checkpoints are remembered; `on_unload` runs before a model is
    given up. Safe to use from several threads.
    """

    def __init__(self, facts: FileFacts, *, on_unload: Callable[[], None] = lambda: None) -> None:
        self._facts, self._on_unload = facts, on_unload
        self._lock = threading.RLock()
        self._model: VideoLLM | None = None
        self._plan: ModelPlan | None = None
        self._sees = False

    @classmethod
    def holding(cls, plan: ModelPlan, model: VideoLLM, facts: FileFacts) -> ModelHost:
        """A host of a model that was made elsewhere."""
        host = cls(facts)
        host._model, host._plan, host._sees = model, plan, True
        return host

    def has(self, plan: ModelPlan, *, vision: bool) -> bool:
        """Whether this very model is loaded: a checkpoint's files may have changed since."""
        return self._held(plan, vision) is not None

    def get(self, plan: ModelPlan, *, vision: bool, loading: Loading = nullcontext) -> VideoLLM:
        """The loaded model; without `vision` it need not be able to encode.

        `loading` surrounds the loading where there is any. Raises ModelError or
        OutOfMemoryError.
        """
        with self._lock:
            held = self._held(plan, vision)
            if held is None:
                self.unload()
                with loading():
                    held = self._load(plan, vision)
            return held

    def unload(self) -> None:
        """Give the model up; whoever uses it now keeps it until it is done."""
        with self._lock:
            if self._model is not None:
                self._on_unload()
            self._model = self._plan = None

    def _held(self, plan: ModelPlan, vision: bool) -> VideoLLM | None:
        if self._plan is None or (vision and not self._sees):
            return None
        same = self._plan is plan or self._plan.loaded_as == plan.loaded_as
        return self._model if same else None

    def _load(self, plan: ModelPlan, vision: bool) -> VideoLLM:
        model = load(plan.checkpoint, plan.placement(vision=vision), frozenset(plan.options))
        # What the KV will be stored under must be what was read.
        check_unchanged(plan.checkpoint, self._facts)
        self._model, self._plan, self._sees = model, plan, vision
        return model


class Resources:
    """A store, a model host and a KV memory, which several sessions may share.

    `device_bytes`, `host_bytes`: how much of the device's and of the host's memory KVs may take
    that no session uses at the moment. `host`: one that holds a model already.
    """

    def __init__(
        self,
        store: Store,
        *,
        device_bytes: int = 0,
        host_bytes: int = 0,
        host: ModelHost | None = None,
    ) -> None:
        self.store = store
        self.memory = KVMemory(device_bytes=device_bytes, host_bytes=host_bytes)
        self.host = host or ModelHost(store, on_unload=self.memory.clear)

    def close(self) -> None:
        """Give up the model and the KVs, and close the store."""
        self.host.unload()
        self.memory.clear()
        self.store.close()
