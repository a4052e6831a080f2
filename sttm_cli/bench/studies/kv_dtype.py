"""Effect of rounding the stored KV on the embedded model's logits and answers.

    python -m sttm_cli.bench.studies.kv_dtype [--scenes 60] [--budget 0.5]

Each held-out question is asked of the same prefilled video with every rounding; "token" and
"channel" are the axes along which keys and values have int8 scales.
"""

from __future__ import annotations

import argparse
import math
import tempfile
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch

from sttm_cli.answer import generate
from sttm_cli.bench.exam import Exam
from sttm_cli.prefill import KVContinuation
from sttm_cli.runtime.prepared import Prepared
from sttm_cli.runtime.session import VideoQA
from sttm_cli.store.packing import DIM, STORED, TOKENS, Packed, pack_tensor

Rounding = Callable[[torch.Tensor, bool], Packed]
"""Packs a tensor [n, heads, dim], given whether it holds keys, as for storage."""
LONGEST = 16
SECONDS = 8
AXES = {"channel": TOKENS, "token": DIM}


@dataclass
class Loss:
    """The effect of one rounding: differences of the first token's logits, answers, bytes."""

    squares: float = 0.0
    most: float = 0.0
    changed: int = 0
    right: int = 0
    asked: int = 0
    bytes: int = 0

    @property
    def rms(self) -> float:
        return math.sqrt(self.squares / self.asked)


def roundings() -> dict[str, Rounding]:
    """Return all roundings by name; the first is lossless."""

    def simple(name: str) -> Rounding:
        return lambda tensor, is_key: pack_tensor(tensor, STORED[name])

    def scaled(key_axis: int, value_axis: int) -> Rounding:
        return lambda tensor, is_key: pack_tensor(
            tensor, torch.int8, axis=key_axis if is_key else value_axis
        )

    return {name: simple(name) for name in ("float32", "bfloat16", "float16")} | {
        f"int8, keys per {k}, values per {v}": scaled(AXES[k], AXES[v]) for k in AXES for v in AXES
    }


@torch.inference_mode()
def measure(scenes: int, *, budget: float) -> dict[str, Loss]:
    """Ask one question of each kind about each of `scenes` held-out scenes, with every rounding."""
    losses = {name: Loss() for name in roundings()}
    with (
        VideoQA(model="tiny", dtype="float32", budget=budget, no_cache=True) as qa,
        tempfile.TemporaryDirectory() as folder,
    ):
        for sheet in islice(Exam("test", SECONDS).sheets(Path(folder)), scenes):
            prepared = qa.prepare(sheet.path)
            ways = dict(_rounded(qa, prepared, losses))
            for question in sheet.questions:
                _ask(qa, ways, losses, question=question.text, truth=question.answer)
    return losses


def _rounded(
    qa: VideoQA, prepared: Prepared, losses: dict[str, Loss]
) -> Iterator[tuple[str, KVContinuation]]:
    for name, way in roundings().items():
        kv = deepcopy(prepared.kv)
        for number, tensor in enumerate(kv.keys + kv.values):
            rows = tensor[: (kv.lengths * 2)[number]]
            packed = way(rows, number < len(kv.keys))
            packed.unpack(rows)
            losses[name].bytes += packed.nbytes
        yield name, KVContinuation(qa.model(), kv)


def _ask(
    qa: VideoQA,
    ways: dict[str, KVContinuation],
    losses: dict[str, Loss],
    *,
    question: str,
    truth: str,
) -> None:
    model, exact = qa.model(), list[tuple[torch.Tensor, str]]()
    ids = model.question(question)
    for name, prefix in ways.items():
        logits = prefix.extend(ids)
        prefix.rewind()
        answer = generate(prefix, ids, model, max_new_tokens=LONGEST).text.strip().lower()
        exact.append((logits, answer))
        (wanted, said), loss = exact[0], losses[name]
        difference = logits - wanted
        loss.squares += difference.square().mean().item()
        loss.most = max(loss.most, difference.abs().max().item())
        loss.changed += answer != said
        loss.right += answer == truth
        loss.asked += 1


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m sttm_cli.bench.studies.kv_dtype", description=__doc__
    )
    parser.add_argument("--scenes", type=int, default=60)
    parser.add_argument("--budget", type=float, default=0.5)
    options = parser.parse_args()
    losses = measure(options.scenes, budget=options.budget)
    whole = next(iter(losses.values())).bytes
    print("| kept as | bytes | logits, rms | logits, most | answers changed | right |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    for name, loss in losses.items():
        print(
            f"| {name} | {loss.bytes / whole:.0%} | {loss.rms:.4f} | {loss.most:.3f} "
            f"| {loss.changed} of {loss.asked} | {loss.right / loss.asked:.1%} |"
        )


if __name__ == "__main__":
    main()
