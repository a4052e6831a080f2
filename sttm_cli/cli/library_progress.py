"""How far a library is: a bar with rate and time left on a terminal, else a line per video."""

from __future__ import annotations

import sys
import time
from typing import Any

from sttm_cli.cli.flags import Output
from sttm_cli.cli.output import STAGES, console, printable, say, size, warn
from sttm_cli.library.outcome import Computed, Failed, Outcome, Skipped, Stopped, Tally, Wanted


class LibraryProgress:
    """A context manager; called with each stage's progress, and with every outcome."""

    def __init__(self, output: Output, total: int) -> None:
        self._output, self.total = output, total
        self._started = time.perf_counter()
        self._bar: Any = None
        if sys.stderr.isatty() and not output.quiet:
            self._bar = _bar()

    def __enter__(self) -> LibraryProgress:
        if self._bar is not None:
            self._bar.start()
            self._bar.add_task("", total=self.total, rate="", stage="")
        return self

    def __exit__(self, *exception: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self._started

    def stage(self, name: str, done: int, total: int) -> None:
        """What the model is doing; the pipeline calls it."""
        if self._bar is not None:
            count = f" {done}/{total}" if total > 1 else ""
            self._bar.update(0, stage=STAGES.get(name, name) + count)

    def show(self, outcome: Outcome, tally: Tally) -> None:
        """A video is through."""
        if isinstance(outcome, Computed):
            for line in outcome.warnings:
                self._say(f"warning: {printable(str(outcome.path))}: {line}")
        if self._output.debug and isinstance(outcome, Failed) and outcome.traceback:
            self._say(outcome.traceback)
        if self._bar is not None:
            self._bar.update(0, completed=tally.settled, rate=self._rate(tally), stage="")
        # Among the bar's thousands of videos only what needs a look is worth a line.
        worth = not self._bar and not isinstance(outcome, Stopped)
        if isinstance(outcome, Failed) or (worth and not self._output.quiet):
            what = printable(f"{outcome.path}: {outcome_words(outcome)}")
            self._say(f"[{tally.settled}/{self.total}] {what}")

    def finish(self, tally: Tally, done: str) -> None:
        """Say all of it in a line, and why it ended early if it did."""
        if tally.stopped:
            left = self.total - tally.settled
            warn(f"stopped with {left} of {self.total} videos left: {tally.stopped}")
        parts = [f"{tally.done} {done} ({size(tally.bytes)})", f"{tally.skipped} skipped"]
        if tally.same_bytes:
            parts[-1] += f" ({tally.same_bytes} with the same bytes as another)"
        parts.append(f"{len(tally.failed)} failed, {duration(self.seconds)}")
        if (hour := tally.per_video_hour(self.seconds)) is not None:
            parts.append(f"{hour:.0f} s per video-hour")
        if not self._output.quiet:
            say(", ".join(parts))

    def _say(self, line: str) -> None:
        """A line above the bar, of any length."""
        if self._bar is None:
            say(line)
        else:
            self._bar.console.print(line, soft_wrap=True)

    def _rate(self, tally: Tally) -> str:
        seconds, rates = self.seconds, [f"{60 * tally.settled / self.seconds:.1f} videos/min"]
        if (hour := tally.per_video_hour(seconds)) is not None:
            rates.append(f"{hour:.0f} s per video-hour")
        # What is skipped takes next to nothing: the work sets the pace.
        through = tally.done + len(tally.failed) or tally.settled
        left = seconds / max(1, through) * (self.total - tally.settled)
        return ", ".join([*rates, f"{duration(left)} left"])


def outcome_words(outcome: Outcome) -> str:
    """The outcome of a video in a few words."""
    if isinstance(outcome, Computed):
        tokens = outcome.tokens
        spent = sum(outcome.seconds[name] or 0.0 for name in ("decode", "encode", "merge"))
        spent += outcome.seconds["prefill"] or 0.0
        kept = f"{tokens.video_kept:,} of {tokens.video_full:,} tokens"
        return f"{kept}, {size(outcome.bytes)}, {spent:.1f} s"
    if isinstance(outcome, Wanted):
        about = "" if outcome.bytes is None else f", about {size(outcome.bytes)}"
        return f"to be computed{about}"
    if isinstance(outcome, Skipped):
        return f"skipped: {outcome.reason}"
    if isinstance(outcome, Failed):
        return f"failed: {outcome.error.removeprefix(f'{outcome.path} ')}"
    return outcome.reason


def duration(seconds: float) -> str:
    """Seconds as a person reads them: 45 s, 12 min, 3 h 20 min."""
    minutes = round(seconds / 60)
    if seconds < 100:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"


def _bar() -> Any:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    return Progress(
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TextColumn("{task.fields[stage]}", style="dim"),
        console=console(stderr=True),
        transient=True,
    )
