"""What commands print: answers and data on stdout, everything else on stderr."""

from __future__ import annotations

import contextlib
import json
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sttm_cli.base.errors import SttmError, UsageError
from sttm_cli.base.reports import ErrorReport, SecondsReport
from sttm_cli.cli.flags import Output

if TYPE_CHECKING:
    from rich.console import Console

NAME_A_MODEL = (
    "using the small embedded model 'tiny', which knows generated scenes of coloured shapes only; "
    "name a real one with --model, such as llava-onevision-7b"
)
STAGES = {
    "download": "downloading (MB)",
    "stdin": "reading stdin (MB)",
    "load": "loading the model",
    "decode": "decoding and encoding",
    "prefill": "prefilling",
}
BYTES = {"download", "stdin"}
"""Stages that count bytes."""


STEERING = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f"  # C0 but tab and line feed, DEL, C1
    "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"  # marks and overrides of writing direction
    "\u2028\u2029\ud800-\udfff]"  # line and paragraph separators, bytes that are not text
)
"""Characters that steer a terminal, reorder a line or break it. Names of files, labels, answers of
models and of servers may contain them."""


def print_json(value: Mapping[str, object], *, indent: int | None = None) -> None:
    """One JSON object on stdout; what could steer a terminal comes as escapes."""
    text = json.dumps(value, ensure_ascii=False, indent=indent)
    # The serializer has escaped tabs and line feeds: those left are its own.
    _write(STEERING.sub(lambda found: f"\\u{ord(found[0]):04x}", text) + "\n")


def print_text(*lines: str) -> None:
    """Lines of data on stdout: as they are for a program, without what steers for a terminal."""
    text = "\n".join(lines) + "\n"
    _write(without_steering(text) if sys.stdout.isatty() else text)


def print_answer(text: str) -> None:
    """A part of an answer on stdout, at once: one answer is one line, whatever its text."""
    _write(without_steering(text))


def console(*, stderr: bool = False) -> Console:
    """A console of rich that prints no markup, no emoji codes and nothing that steers."""
    from rich.console import Console, ConsoleOptions, ConsoleRenderable, RenderHook, RenderResult
    from rich.segment import Segment

    class Filtered:
        """A renderable whose own styling is left, and whose text is filtered."""

        def __init__(self, inner: ConsoleRenderable) -> None:
            self.inner = inner

        def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
            for segment in console.render(self.inner, options):
                if segment.control:
                    yield segment
                else:
                    yield Segment(without_steering(segment.text), segment.style)

    class Filter(RenderHook):
        def process_renderables(
            self, renderables: list[ConsoleRenderable]
        ) -> list[ConsoleRenderable]:
            return [Filtered(renderable) for renderable in renderables]

    made = Console(stderr=stderr, highlight=False, markup=False, emoji=False)
    made.push_render_hook(Filter())
    return made


def say(*lines: str) -> None:
    """Lines for the person, on stderr; a line feed begins another one."""
    text = "\n".join(printable(part) for line in lines for part in line.split("\n"))
    # A terminal may be gone: the end of the process must not depend on it.
    with contextlib.suppress(OSError):
        sys.stderr.write(text + "\n")
        sys.stderr.flush()


def printable(text: str) -> str:
    """A name or message for one line of a terminal: nothing in it breaks or steers the line."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def without_steering(text: str) -> str:
    """The text with its tabs, line feeds and joined letters, and `?` for what steers a terminal."""
    return STEERING.sub("?", text)


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def warn(line: str) -> None:
    say(f"warning: {line}")


def show_failure(error: BaseException, *, as_json: bool, debug: bool) -> int:
    """Print the failure in a line and return the exit code of the contract."""
    kind, message, hint, code = _facts(error)
    if debug and kind != "interrupted":
        import traceback

        say("".join(traceback.format_exception(error)).rstrip("\n"))
    # A reader that is gone gets no message.
    if as_json and message:
        report: ErrorReport = {
            "schema": "sttm.error/1",
            "error": {"kind": kind, "message": message, "hint": hint},
        }
        print_json(report)
    if message:
        say(f"sttm: {printable(message)}" + (f"\n  {hint}" if hint else ""))
    return code


def _is_interrupt(error: BaseException | None) -> bool:
    """Whether Ctrl-C is behind an error: libraries that import lazily make others of it."""
    if error is None or isinstance(error, KeyboardInterrupt) or type(error).__name__ == "Abort":
        return error is not None
    return _is_interrupt(error.__cause__ or error.__context__)


def _facts(error: BaseException) -> tuple[str, str, str, int]:
    if _is_interrupt(error):
        return "interrupted", "interrupted", "", 130
    if isinstance(error, SttmError):
        return error.kind, error.message, error.hint, error.exit_code
    if isinstance(error, SystemExit):
        code = error.code if isinstance(error.code, int) else 1
        return "interrupted", f"ended by signal {code - 128}" if code > 128 else "", "", code
    if isinstance(error, BrokenPipeError):
        _drop_stdout()
        return "output", "", "", 1
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        hint = "use fewer --frames, a smaller --budget or --dtype bfloat16"
        return "memory", "the memory does not suffice", hint, 5
    if hasattr(error, "format_message"):
        # The command-line parser's own complaint; it names the flag.
        return "usage", error.format_message(), "see --help", getattr(error, "exit_code", 2)
    text = str(error).strip().splitlines() or [""]
    message = f"{type(error).__name__}: {text[0][:300]}"
    return "error", message, "run it again with --debug to see where", 1


def _drop_stdout() -> None:
    # The reader went away; without this Python complains once more at exit.
    import os

    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def one_line(text: str) -> str:
    """An answer as one line: scripts count lines, and one within an answer would shift them."""
    return text.replace("\r", " ").replace("\n", " ")


def cut_off(ending: str | None, max_new_tokens: int) -> str | None:
    """The warning for an answer that the model did not end itself."""
    if ending == "length":
        return f"an answer was cut off at --max-new-tokens {max_new_tokens}"
    if ending == "context":
        return "an answer was cut off where the model's context ends"
    return None


class StageProgress:
    """A bar for the stage that runs, on a terminal only; a context manager."""

    def __init__(self, output: Output) -> None:
        self._on = sys.stderr.isatty() and not output.quiet
        self._bar: Any = None
        self._tasks: dict[str, Any] = {}

    def __enter__(self) -> StageProgress:
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()

    def __call__(self, stage: str, done: int, total: int) -> None:
        if not self._on:
            return
        if self._bar is None:
            self._bar = _bar()
            self._bar.start()
        if stage in BYTES:
            done, total = done // 10**6, -(-total // 10**6)
        if stage not in self._tasks:
            self._tasks[stage] = self._bar.add_task(
                STAGES.get(stage, printable(stage)), total=total or None
            )
        self._bar.update(self._tasks[stage], completed=done, total=total or None)

    def stop(self) -> None:
        """Take the bar away, before something else is printed."""
        if self._bar is not None:
            self._bar.stop()
            self._bar, self._tasks = None, {}


def _bar() -> Any:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console(stderr=True),
        transient=True,
    )


def size(count: float) -> str:
    """Bytes as a person reads them: 11.2 MB."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def spent(seconds: SecondsReport) -> str:
    """The seconds of the stages that ran: decode 0.120, merge 0.010."""
    ran = ((name, value) for name, value in seconds.items() if isinstance(value, int | float))
    return ", ".join(f"{name} {value:.3f}" for name, value in ran)


def share(part: int, whole: int) -> str:
    return f"{part:,} of {whole:,} video tokens ({100 * part / max(whole, 1):.0f} %)"


def columns(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A plain table, columns to the right but the first; never shortened."""
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]
    lines = []
    for row in (head, *rows):
        first, *rest = (f"{cell:>{width}}" for cell, width in zip(row, widths, strict=True))
        lines.append("  ".join((f"{first.strip():<{widths[0]}}", *rest)))
    return "\n".join(line.rstrip() for line in lines)


# Files that a command writes beside its output, checked before minutes of work, not after them.


def check_file(flag: str, path: Path | None, *endings: str) -> None:
    """Raise UsageError for another kind of file than `endings`, SttmError for a missing folder."""
    if path is None:
        return
    if path.suffix.lower() not in endings:
        kinds = _alternatives([ending[1:].upper() for ending in endings])
        raise UsageError(
            f"{flag} {path} is not a {kinds} file",
            f"give a name that ends in {_alternatives(endings)}",
        )
    if not path.parent.is_dir():
        raise SttmError(f"{flag} {path} cannot be written: the folder {path.parent} is missing")


def check_plot(path: Path | None) -> None:
    """Raise SttmError where `--plot` cannot be drawn."""
    if path is None:
        return
    from sttm_cli.bench.plot import ENDINGS, require_matplotlib

    check_file("--plot", path, *ENDINGS)
    require_matplotlib()


def unwritable(flag: str, path: Path, error: OSError) -> SttmError:
    return SttmError(f"{flag} {path} cannot be written: {error.strerror or error}")


def _alternatives(names: tuple[str, ...] | list[str]) -> str:
    *first, last = names
    return f"{', '.join(first)} or {last}" if first else last
