"""Several questions after one prefix, decoded together.

Their tokens follow the prefix in order of arrival; each attends to the prefix and to its own
question. Every decoder step reads prefix and weights once for all questions. Each question runs
in its own thread; a step runs as soon as every question has submitted its next tokens.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence

import torch

from sttm_cli.prefill.ragged import KVContinuation


class Together:
    """`count` parallel continuations, `parts`, of the prefix of `base`, which must not be used
    meanwhile.

    Every part must end with `leave`, since the others wait for it.
    """

    def __init__(self, base: KVContinuation, count: int) -> None:
        base.forget()
        self._base, self._states = base, base.apart()
        self._active = set(range(count))
        self._owners = torch.empty(0, dtype=torch.int64)
        self._wanted: dict[int, torch.Tensor] = {}
        self._logits: dict[int, torch.Tensor] = {}
        self._error: Exception | None = None
        self._turn = threading.Condition()
        self.parts = [Part(self, base, number) for number in range(count)]

    def extend(self, part: int, ids: torch.Tensor) -> torch.Tensor:
        """Append `ids` [n] to `part`, together with the other parts; return the logits [n, V]."""
        with self._turn:
            self._wanted[part] = ids
            self._run_if_complete()
            self._turn.wait_for(lambda: part in self._logits or self._error is not None)
            if self._error is not None:
                raise self._error
            return self._logits.pop(part)

    def leave(self, part: int) -> None:
        """Stop waiting for `part`; after the last part, `base` is rewound to its prefix."""
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
            for group in self._groups(wanted):
                self._run(group)
        except Exception as error:
            self._error = error
        self._turn.notify_all()

    def _groups(self, wanted: dict[int, torch.Tensor]) -> list[dict[int, torch.Tensor]]:
        """What can run at once: everything, or, where layers have states, the questions that append
        as many tokens; their rows of states are then equally long."""
        if not self._base.has_states:
            return [wanted]
        counts = dict.fromkeys(len(ids) for ids in wanted.values())
        return [
            {part: ids for part, ids in wanted.items() if len(ids) == count} for count in counts
        ]

    def _run(self, wanted: dict[int, torch.Tensor]) -> None:
        new = torch.cat([torch.full((len(ids),), part) for part, ids in wanted.items()])
        first = {part: int((self._owners == part).sum()) for part in wanted}
        places = [torch.arange(first[p], first[p] + len(ids)) for p, ids in wanted.items()]
        before, self._owners = len(self._owners), torch.cat([self._owners, new])
        # A token attends to its own question's tokens up to itself.
        sees = (new[:, None] == self._owners).tril(before)
        self._states.together(list(wanted))
        rows = self._base.extend_at(
            torch.cat(list(wanted.values())), torch.cat(places), sees, rows=len(wanted)
        )
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
        """End this part; the others no longer wait for it."""
        self._together.leave(self._number)
