"""Training of the embedded model from scratch: `python -m sttm_cli.tiny.training.train RUN_FOLDER`.

The stages have fixed durations: the tower and projector alone, on dense targets; then the whole
model on clips of one frame; then on clips of several frames. Tokens are never merged. A stopped
run resumes from its last checkpoint.
"""

from __future__ import annotations

import argparse
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader

from sttm_cli.tiny.training.batches import Batch, Clips
from sttm_cli.tiny.training.learner import Learner, accuracy, cell_accuracy, losses
from sttm_cli.tiny.training.write_checkpoint import FOLDER, make_model, write_checkpoint

_WEIGHTS = {"cells": 0.3, "answer": 1.0, "moves": 0.3, "words": 0.2, "things": 0.5, "places": 1.0}
_LOG_BATCHES = 50
_REPORT_SECONDS = 90
_SAVE_SECONDS = 180


@dataclass(frozen=True)
class Stage:
    """A stage of training.

    `lengths`: frames per clip -> share of the batches; `together`: share of the batches whose
    questions are turns of one conversation; `crowded`: share of crowded scenes; `tower_rate`:
    learning rate of tower and projector, as a share of the rate.
    """

    name: str
    minutes: float
    peak_rate: float
    lengths: dict[int, float]
    frames_per_batch: int
    answers: bool = True
    together: float = 0.25
    crowded: float = 0.0
    tower_rate: float = 1.0


STAGES = (
    Stage(
        name="tower",
        minutes=6,
        peak_rate=2e-3,
        lengths={2: 1.0},
        frames_per_batch=32,
        answers=False,
        crowded=1.0,
    ),
    Stage(
        name="words",
        minutes=6,
        peak_rate=1.5e-3,
        lengths={1: 1.0},
        frames_per_batch=16,
        crowded=0.3,
        tower_rate=0.3,
    ),
    Stage(
        name="clips",
        minutes=15.5,
        peak_rate=1.2e-3,
        lengths={1: 0.05, 2: 0.2, 3: 0.2, 4: 0.14, 5: 0.1, 6: 0.1, 7: 0.08, 8: 0.12, 10: 0.01},
        frames_per_batch=48,
        tower_rate=0.3,
    ),
    Stage(
        name="longer",
        minutes=70,
        peak_rate=1e-3,
        lengths={1: 0.06, 2: 0.1, 3: 0.12, 4: 0.14, 5: 0.12, 6: 0.12, 7: 0.12, 8: 0.2, 10: 0.02},
        frames_per_batch=48,
        tower_rate=0.3,
    ),
)


class Run:
    """A training run: its folder of checkpoints, and its progress."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        torch.manual_seed(0)
        self.learner = Learner()
        self.stage, self.elapsed, self.batches = 0, 0.0, 0
        self._moments: dict[str, Any] | None = None
        if (folder / "state.pt").exists():
            self._resume(torch.load(folder / "state.pt", weights_only=True))

    def _resume(self, state: dict[str, Any]) -> None:
        self.learner.load_state_dict(state["learner"])
        self.stage, self.elapsed = state["stage"], state["elapsed"]
        self.batches, self._moments = state["batches"], state["moments"]
        _log(f"resumed in stage {self.stage} after {self.elapsed:.0f} s of it")

    def _save(self, moments: dict[str, Any] | None) -> None:
        state = {
            "learner": self.learner.state_dict(),
            "stage": self.stage,
            "elapsed": self.elapsed,
            "batches": self.batches,
            "moments": moments,
        }
        torch.save(state, self._folder / "state.tmp")
        (self._folder / "state.tmp").replace(self._folder / "state.pt")

    def export(self, folder: Path) -> None:
        """Write the model as a checkpoint folder, in bfloat16."""
        model = make_model()
        model.load_state_dict(self.learner.model.state_dict())
        write_checkpoint(model.to(torch.bfloat16), folder)

    def train(self, stages: tuple[Stage, ...]) -> None:
        while self.stage < len(stages):
            stage = stages[self.stage]
            self._train_stage(stage)
            _report(self.learner, answers=stage.answers)
            torch.save(self.learner.state_dict(), self._folder / f"{stage.name}.pt")
            self.stage, self.elapsed, self._moments = self.stage + 1, 0.0, None
            self._save(None)

    def _train_stage(self, stage: Stage) -> None:
        optimiser = self._optimiser(stage)
        begun = time.monotonic() - self.elapsed
        reported = saved = self.elapsed
        shown: dict[str, float] = {}
        for batch in self._data(stage):
            self.elapsed = time.monotonic() - begun
            done = self.elapsed / (60 * stage.minutes)
            if done >= 1:
                break
            _set_rate(optimiser, stage.peak_rate * _share_of_peak(done))
            _step(self.learner, optimiser, batch, stage, shown)
            self.batches += 1
            if self.batches % _LOG_BATCHES == 0:
                smooth = " ".join(f"{name} {value:.4f}" for name, value in shown.items())
                _log(f"{stage.name} {self.elapsed:5.0f} s {self.batches:5d} {smooth}")
            if self.elapsed - reported > _REPORT_SECONDS:
                reported = self.elapsed
                _report(self.learner, answers=stage.answers)
            if self.elapsed - saved > _SAVE_SECONDS:
                saved = self.elapsed
                self._save(optimiser.state_dict())

    def _data(self, stage: Stage) -> DataLoader[Batch]:
        clips = Clips(
            stage.lengths,
            frames_per_batch=stage.frames_per_batch,
            seed=10_000 * self.stage + int(self.elapsed),
            together=stage.together,
            crowded=stage.crowded,
        )
        return DataLoader(clips, batch_size=None, num_workers=1, prefetch_factor=6)

    def _optimiser(self, stage: Stage) -> torch.optim.Optimizer:
        optimiser = torch.optim.AdamW(
            self._groups(stage.tower_rate), lr=stage.peak_rate, betas=(0.9, 0.98), eps=1e-7
        )
        if self._moments is not None:
            optimiser.load_state_dict(self._moments)
        return optimiser

    def _groups(self, tower_rate: float) -> list[dict[str, Any]]:
        """Group the parameters by their share of the rate and their weight decay."""
        groups = []
        for in_tower, share in ((True, tower_rate), (False, 1.0)):
            named = self.learner.named_parameters()
            mine = [p for name, p in named if _in_tower(name) == in_tower]
            for matrix, decay in ((True, 0.03), (False, 0.0)):
                params = [p for p in mine if (p.ndim >= 2) == matrix]
                groups.append({"params": params, "weight_decay": decay, "share": share})
        return groups


def _in_tower(name: str) -> bool:
    return "vision_tower" in name or "multi_modal_projector" in name


def _step(
    learner: Learner,
    optimiser: torch.optim.Optimizer,
    batch: Batch,
    stage: Stage,
    shown: dict[str, float],
) -> None:
    """Train on one batch; update the running means of the losses in `shown`."""
    by_name = losses(learner, batch, answers=stage.answers)
    optimiser.zero_grad(set_to_none=True)
    total = torch.stack([_WEIGHTS[name] * value for name, value in by_name.items()]).sum()
    torch.autograd.backward(total)
    nn.utils.clip_grad_norm_(learner.parameters(), 1.0)
    optimiser.step()
    for name, value in by_name.items():
        shown[name] = 0.97 * shown.get(name, value.item()) + 0.03 * value.item()


def _share_of_peak(done: float) -> float:
    """Return the rate as a share of its peak: warm-up over the first thirtieth of a stage, then
    cosine decay to a fiftieth."""
    return min(1.0, 30 * done + 0.01) * (0.02 + 0.49 * (1 + math.cos(math.pi * done)))


def _set_rate(optimiser: torch.optim.Optimizer, rate: float) -> None:
    for group in optimiser.param_groups:
        group["lr"] = rate * group["share"]


def _report(learner: Learner, *, answers: bool) -> None:
    cells = " ".join(f"{name} {share:.3f}" for name, share in cell_accuracy(learner).items())
    _log(f"  held out, cells: {cells}")
    for frames in (1, 8) if answers else ():
        by_kind = accuracy(learner, frames)
        right = sum(share * n for share, n in by_kind.values())
        total = sum(n for _, n in by_kind.values())
        kinds = " ".join(f"{kind} {share:.2f}/{n}" for kind, (share, n) in by_kind.items())
        _log(f"  held out, {frames} frames: all {right / total:.3f} {kinds}")


def _log(text: str) -> None:
    print(time.strftime("%H:%M:%S"), text, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the embedded model.")
    parser.add_argument("folder", type=Path, help="the run's checkpoints")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--export", action="store_true", help="only write the checkpoint folder")
    parser.add_argument("--to", type=Path, default=FOLDER, help="the checkpoint folder to write")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    run = Run(options.folder)
    if not options.export:
        run.train(STAGES)
    run.export(options.to)


if __name__ == "__main__":
    main()
