"""The output of commands: answers and data on stdout, everything else on stderr."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TextIO, cast

from rich.cells import cell_len

from sttm_cli.base.errors import SttmError, UsageError
from sttm_cli.base.reports import ErrorReport, SecondsReport
from sttm_cli.cli.flags import Output

if TYPE_CHECKING:
    from rich.console import Console

RED, YELLOW = 31, 33
COMMAND = "    "
"""Prefix of a line that is a command to copy."""
STAGES = {
    "import": "starting",
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
"""Characters that control a terminal, reorder a line or break it. File names, labels, and answers
of models and servers may contain them."""


def print_json(value: Mapping[str, object], *, indent: int | None = None) -> None:
    """Print one JSON object on stdout; control characters are escaped."""
    text = json.dumps(value, ensure_ascii=False, indent=indent)
    # The serializer has escaped tabs and line feeds; those left are its own.
    _write(STEERING.sub(lambda found: f"\\u{ord(found[0]):04x}", text) + "\n")


def print_text(*lines: str) -> None:
    """Print lines of data on stdout, without control characters on a terminal."""
    text = "\n".join(lines) + "\n"
    _write(without_steering(text) if sys.stdout.isatty() else text)


def print_answer(text: str) -> None:
    """Print a part of an answer on stdout at once: an answer is one line, whatever its text."""
    _write(without_steering(text))


def console(*, stderr: bool = False) -> Console:
    """Return a rich console that prints no markup, no emoji codes and no control characters."""
    from rich.console import Console, ConsoleOptions, ConsoleRenderable, RenderHook, RenderResult
    from rich.segment import Segment

    class Filtered:
        """A renderable whose styling is kept and whose text is filtered."""

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

    out = None if stderr else cast("IO[str]", _Stdout())
    made = Console(file=out, stderr=stderr, highlight=False, markup=False, emoji=False)
    made.push_render_hook(Filter())
    return made


class _Stdout:
    """Standard output for rich, with failures reported as those of all other output."""

    encoding = "utf-8"

    def write(self, text: str) -> int:
        _write(text)
        return len(text)

    def flush(self) -> None:
        """Do nothing: every write is flushed."""

    def isatty(self) -> bool:
        return sys.stdout.isatty()

    def fileno(self) -> int:
        return sys.stdout.fileno()


def say(*lines: str) -> None:
    """Print lines for the user on stderr; a line feed begins another one. On a terminal they wrap
    between words, except lines that begin with four spaces, which are meant to be copied."""
    _tell("\n".join(lines))


def _tell(text: str, mark: str = "", colour: int = 0) -> None:
    """Print text on stderr; `mark`: the words before it, in an ANSI `colour` if colours are
    shown."""
    width = columns_of(sys.stderr)
    lines = [printable(part) for part in f"{mark}{text}".split("\n")]
    if width is not None:
        told = ([line] if line.startswith(COMMAND) else _wrapped(line, width) for line in lines)
        lines = [part for parts in told for part in parts]
    shown = "\n".join(lines)
    plain = "NO_COLOR" in os.environ or os.environ.get("TERM") == "dumb"
    if colour and width is not None and not plain:
        shown = f"\x1b[{colour}m{shown[: len(mark)]}\x1b[0m{shown[len(mark) :]}"
    # The terminal may be gone, which must not affect the exit code.
    with contextlib.suppress(OSError):
        sys.stderr.write(shown + "\n")
        sys.stderr.flush()


def print_words(text: str, *, indent: int = 0) -> None:
    """Print words on stdout; on a terminal they wrap, with continuation lines indented."""
    width = columns_of(sys.stdout)
    for line in text.split("\n"):
        print_text(*([line] if width is None else _wrapped(line, width, indent)))


def columns_of(stream: TextIO) -> int | None:
    """Return the number of columns of a terminal; None for anything else."""
    if not stream.isatty():
        return None
    if (given := os.environ.get("COLUMNS", "")).isdigit() and int(given):
        return int(given)
    try:
        return os.get_terminal_size(stream.fileno()).columns or 80
    except (OSError, ValueError):
        return 80


def _wrapped(line: str, width: int, indent: int | None = None) -> list[str]:
    """Split a line into parts of at most `width` columns where its words allow, later ones indented
    like the line, or by `indent`."""
    before = len(line) - len(line.lstrip()) if indent is None else indent
    parts, rest = [], line
    while cell_len(rest) > width:
        spaces = [at for at, letter in enumerate(rest) if letter == " " and rest[:at].strip()]
        fitting = [at for at in spaces if cell_len(rest[:at].rstrip()) <= width]
        if not spaces:
            break
        cut = fitting[-1] if fitting else spaces[0]
        parts.append(rest[:cut].rstrip())
        rest = " " * before + rest[cut:].lstrip()
    return [*parts, rest]


def printable(text: str) -> str:
    """Escape a name or message for a terminal: nothing in it breaks or controls the line."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def without_steering(text: str) -> str:
    """Return the text with tabs, line feeds and joined letters, and `?` for control characters."""
    return STEERING.sub("?", text)


def _write(text: str) -> None:
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        # A reader that has gone needs no message.
        raise
    except OSError as error:
        _drop_stdout()
        raise SttmError(
            f"the output cannot be written: {error.strerror or error}",
            "make room, or write elsewhere",
        ) from error


def warn(line: str) -> None:
    _tell(line, "warning: ", YELLOW)


def show_failure(error: BaseException, *, as_json: bool, debug: bool) -> int:
    """Print the failure in a line and return the contract's exit code."""
    kind, message, hint, code = _facts(error)
    if debug and kind != "interrupted":
        import traceback

        say("".join(traceback.format_exception(error)).rstrip("\n"))
    # A reader that is gone gets no message.
    if as_json and message:
        report = _error_report(kind, message, hint)
        # Where nothing can be written, the line on stderr is all there is.
        with contextlib.suppress(SttmError, OSError):
            print_json(report)
    if message:
        fail(printable(message), hint)
    return code


def error_report(error: SttmError) -> ErrorReport:
    """The object `sttm.error/1` of an error."""
    return _error_report(error.kind, error.message, error.hint)


def _error_report(kind: str, message: str, hint: str) -> ErrorReport:
    return {
        "schema": "sttm.error/1",
        "error": {"kind": kind, "message": message, "hint": hint},
    }


def fail(message: str, hint: str = "") -> None:
    """Print a failure: the message, and below it the hint."""
    _tell(message + (f"\n  {hint}" if hint else ""), "sttm: ", RED)


def _is_interrupt(error: BaseException | None) -> bool:
    """Return whether Ctrl-C caused an error: libraries that import lazily wrap it in others."""
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
    if isinstance(error, OSError) and error.filename is None and error.errno == errno.ENOSPC:
        # The command-line parser prints help texts itself.
        _drop_stdout()
        return "output", f"the output cannot be written: {error.strerror}", "make room", 1
    if hasattr(error, "format_message"):
        # The command-line parser's own error; it names the flag.
        return "usage", error.format_message(), "see --help", getattr(error, "exit_code", 2)
    text = str(error).strip().splitlines() or [""]
    message = f"{type(error).__name__}: {text[0][:300]}"
    return "error", message, "run it again with --debug to see where", 1


def _drop_stdout() -> None:
    # Nothing more can be written; otherwise Python would report it again at exit.
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def one_line(text: str) -> str:
    """Return an answer as one line: scripts count lines."""
    return text.replace("\r", " ").replace("\n", " ")


def cut_off(ending: str | None, max_new_tokens: int) -> str | None:
    """Return the warning for an answer that the model did not end itself."""
    if ending == "length":
        return f"an answer was cut off at --max-new-tokens {max_new_tokens}"
    if ending == "context":
        return "an answer was cut off where the model's context ends"
    return None


class StageProgress:
    """Shows the current stage and its progress, on a terminal only; a context manager. A spinner
    shows from the start, since importing a model's libraries takes seconds."""

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
        """Remove the bar before something else is printed."""
        if self._bar is not None:
            self._bar.stop()
            self._bar, self._tasks = None, {}


@contextlib.contextmanager
def starting(output: Output) -> Iterator[None]:
    """Show a spinner, on a terminal, while the block imports libraries."""
    with StageProgress(output) as progress:
        progress("import", 0, 1)
        yield


def _bar() -> Any:
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        SpinnerColumn,
        TextColumn,
        TimeElapsedColumn,
    )

    screen = console(stderr=True)
    return Progress(
        SpinnerColumn(finished_text=" "),
        TextColumn("{task.description}", markup=False),
        # The other columns take at most 45 characters.
        BarColumn(bar_width=max(5, min(24, screen.width - 45))),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=screen,
        transient=True,
    )


def size(count: float) -> str:
    """Format bytes for a person: 11.2 MB."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def duration(seconds: float) -> str:
    """Format seconds for a person: 45 s, 12 min, 3 h 20 min."""
    minutes = round(seconds / 60)
    if seconds < 100:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"


def spent(seconds: SecondsReport) -> str:
    """Format the seconds of the stages that ran: decode 0.120, merge 0.010."""
    ran = ((name, value) for name, value in seconds.items() if isinstance(value, int | float))
    return ", ".join(f"{name} {value:.3f}" for name, value in ran)


def share(part: int, whole: int) -> str:
    return f"{part:,} of {whole:,} video tokens ({100 * part / max(whole, 1):.0f} %)"


# Files that a command writes in addition to its output, checked before minutes of work.


def check_file(flag: str, path: Path | None, *endings: str) -> None:
    """Raise UsageError unless the suffix is one of `endings`, SttmError for a missing folder."""
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
    """Raise SttmError if `--plot` cannot be drawn."""
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
