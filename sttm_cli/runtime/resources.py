"""What outlives one session: the store, the loaded model, and the KVs in memory."""

from __future__ import annotations

from sttm_cli.runtime.kv_memory import KVMemory
from sttm_cli.runtime.model_host import ModelHost
from sttm_cli.store import Store


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
