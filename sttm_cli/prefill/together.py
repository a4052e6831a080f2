"""Several questions behind one prefix at once: one run of the decoder for all of them.

Their tokens follow the prefix in the order in which they arrive; each attends to the prefix and
to its own question. Prefix and weights are read once for all of them. Each question runs in a
thread of its own, as if it were alone; a step of the decoder runs as soon as every question has
handed in its next tokens.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence

import torch

from sttm_cli.prefill.ragged import KVContinuation


class Together:
    """`count` continuations of the prefix that `base` continues; `base` itself rests meanwhile.

    Every part must end with `leave`: the others wait for it.
    """

    def __init__(self, base: KVContinuation, count: int) -> None:
        base.forget()
        self._base = base
        self._active = set(range(count))
        self._owners = torch.empty(0, dtype=torch.int64)
        self._wanted: dict[int, torch.Tensor] = {}
        self._logits: dict[int, torch.Tensor] = {}
        self._error: Exception | None = None
        self._turn = threading.Condition()
        self.parts = [Part(self, base, number) for number in range(count)]

    def extend(self, part: int, ids: torch.Tensor) -> torch.Tensor:
        """Logits [n, V] after each of `part`'s next tokens `ids` [n], run with the other parts'."""
        with self._turn:
            self._wanted[part] = ids
            self._run_if_complete()
            self._turn.wait_for(lambda: part in self._logits or self._error is not None)
            if self._error is not None:
                raise self._error
            return self._logits.pop(part)

    def leave(self, part: int) -> None:
        """The others go on without `part`; after the last one the prefix is as it was."""
        with self._turn:
            self._active.discard(part)
            self._wanted.pop(part, None)
            self._run_if_complete()
            if not self._active:
                self._base.forget()

    def _run_if_complete(self) -> None:
        if not self._wanted or set(self._wanted) != self._active:
            return
        wanted, self._wanted = self._wanted, {}
        try:
            self._run(wanted)
        except Exception as error:
            self._error = error
        self._turn.notify_all()

    def _run(self, wanted: dict[int, torch.Tensor]) -> None:
        new = torch.cat([torch.full((len(ids),), part) for part, ids in wanted.items()])
        first = {part: int((self._owners == part).sum()) for part in wanted}
        places = [torch.arange(first[p], first[p] + len(ids)) for p, ids in wanted.items()]
        before, self._owners = len(self._owners), torch.cat([self._owners, new])
        # A token sees its own question's tokens up to itself.
        sees = (new[:, None] == self._owners).tril(before)
        rows = self._base.extend_at(torch.cat(list(wanted.values())), torch.cat(places), sees)
        parts = rows.split([len(ids) for ids in wanted.values()])
        self._logits |= dict(zip(wanted, parts, strict=True))


class Part:
    """One question's continuation; implements `types.Continuation`."""

    def __init__(self, together: Together, base: KVContinuation, number: int) -> None:
        self._together, self._base, self._number = together, base, number
        self._ids: list[int] = []

    @property
    def token_ids(self) -> Sequence[int]:
        return [*self._base.prefix_ids, *self._ids]

    @property
    def room(self) -> int:
        return self._base.prefix_room - len(self._ids)

    def extend(self, ids: torch.Tensor) -> torch.Tensor:
        return self.extend_each(ids)[-1]

    def extend_each(self, ids: torch.Tensor) -> torch.Tensor:
        logits = self._together.extend(self._number, ids)
        self._ids += ids.tolist()
        return logits

    def resume(self, ids: torch.Tensor) -> int:
        return 0

    def rewind(self, to: int = 0) -> None:
        if to < len(self._ids):
            self.leave()

    def leave(self) -> None:
        """Be waited for no longer."""
        self._together.leave(self._number)
