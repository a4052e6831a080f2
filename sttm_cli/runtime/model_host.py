"""What can outlive one video and one call: the loaded model, the cache and the KVs in memory."""

from __future__ import annotations

import threading

from sttm_cli.base.types import Json
from sttm_cli.models import VideoLLM, check_unchanged, load
from sttm_cli.runtime.kv_memory import Tiers
from sttm_cli.runtime.request import ModelChoice
from sttm_cli.store import Store


class Resident:
    """One loaded model with its cache, which several `VideoQA` may share."""

    def __init__(self, store: Store, *, device_bytes: int = 0, host_bytes: int = 0) -> None:
        self.store = store
        self.tiers = Tiers(device_bytes=device_bytes, host_bytes=host_bytes)
        self._lock = threading.Lock()
        self._loaded: Json | None = None
        self._model: VideoLLM | None = None
        self._sees = False

    def has(self, choice: ModelChoice, *, vision: bool) -> bool:
        """Whether this very model is loaded: a checkpoint's files may have changed since."""
        loaded = self._loaded == _identity(choice)
        return self._model is not None and loaded and (self._sees or not vision)

    def model(self, choice: ModelChoice, *, vision: bool) -> VideoLLM:
        """The loaded model; loaded at its first use, in place of another one.

        Without `vision` it need not be able to encode.
        """
        with self._lock:
            if self._model is None or not self.has(choice, vision=vision):
                self._forget()
                place = choice.placement(vision=vision)
                self._model = load(choice.source, place, newlines=choice.newlines)
                # What the KV will be stored under must be what was read.
                check_unchanged(choice.source, self.store)
                self._loaded, self._sees = _identity(choice), vision
            return self._model

    def close(self) -> None:
        """Let go of the model and the cache."""
        with self._lock:
            self._forget()
        self.store.close()

    def _forget(self) -> None:
        self._model = self._loaded = None
        self.tiers.clear()


def _identity(choice: ModelChoice) -> Json:
    return {**choice.identity(), "newlines": choice.newlines}
