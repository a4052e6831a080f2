"""`sttm chat`: a conversation about a video, on a terminal or through a pipe."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from sttm_cli.base.errors import SttmError, UsageError
from sttm_cli.base.events import Noted, Progressed, Restarted, Shown, TextPiece, Warned
from sttm_cli.base.names import did_you_mean
from sttm_cli.cli.asker import Asker
from sttm_cli.cli.conversation import Conversation, Stopped, Turn
from sttm_cli.cli.flags import (
    ANSWERS,
    RUN,
    SOURCE,
    KeepAlive,
    NoLog,
    NoServer,
    Output,
    Subtitles,
    check_keep_alive,
    examples,
    settings_from,
    takes,
)
from sttm_cli.cli.lines import lines, typed_by_a_person
from sttm_cli.cli.log import Record
from sttm_cli.cli.notes import notes_on
from sttm_cli.cli.output import (
    StageProgress,
    cut_off,
    fail,
    one_line,
    print_answer,
    print_json,
    say,
    share,
    spent,
    warn,
)
from sttm_cli.decode.subtitles import subtitles_text
from sttm_cli.settings.fields import parse_budget
from sttm_cli.settings.settings import STDIN

FILED = "A video file, a folder of images, or an http(s) address."

LEAVING = ("exit", "quit")
"""Words with which a person leaves, as in other programs; through a pipe they are questions."""

EXAMPLES = examples(
    "sttm chat talk.mp4 -m llava-onevision-7b",
    "sttm chat talk.mp4 --json < questions.txt > talk.json",
)


@takes(RUN, SOURCE, ANSWERS)
def chat(
    context: typer.Context,
    video: Annotated[str, typer.Argument(metavar="VIDEO", help=FILED)],
    *,
    subtitles: Subtitles = None,
    no_server: NoServer = False,
    keep_alive: KeepAlive = None,
    no_log: NoLog = False,
    no_history: Annotated[
        bool, typer.Option("--no-history", help="Ask each question without the turns before it.")
    ] = False,
    flags: dict[str, Any],
    output: Output,
) -> None:
    """Talk about a video.

    The model stays loaded, and each question is asked with the turns before it. Lines that begin
    with a slash are commands; /help lists them. Ctrl-C stops an answer, Ctrl-D ends. Through a
    pipe, each line is a question and each answer a line.
    """
    settings = settings_from(flags)
    if video == STDIN:
        raise UsageError("VIDEO - cannot be used in chat, whose questions come from stdin")
    if output.as_json and typed_by_a_person():
        raise UsageError(
            "--json cannot be used in a chat on a terminal", "/save FILE.json keeps a conversation"
        )
    before = subtitles_text(subtitles, settings.start, settings.end, warn=warn)
    stays = check_keep_alive(context, keep_alive, no_server=no_server, warn=warn)
    with StageProgress(output) as progress:
        screen = _Screen(output, progress)
        with Asker(settings, screen.show, server=not no_server, keep_alive=stays) as asker:
            talk = Conversation(asker, video, before=before, remembers=not no_history)
            record = Record.of(video, settings, before=before, keeps=not no_log)
            done = _Chat(talk, screen, output, record).run()
    if output.as_json:
        print_json(talk.to_json())
    if not done:
        raise typer.Exit(1)


class _Screen:
    """Prints events while a question is answered; Ctrl-C ends the answer."""

    def __init__(self, output: Output, progress: StageProgress) -> None:
        self._output, self.progress = output, progress
        self._streamed = sys.stdout.isatty() and not output.as_json
        self._personal = typed_by_a_person()
        self._pieces: list[str] = []
        self._pressed: Callable[[], bool] = lambda: False

    def show(self, event: Shown) -> None:
        if isinstance(event, Progressed):
            self.progress(event.stage, event.done, event.of)
            return
        self.progress.stop()
        match event:
            case Warned(line):
                warn(line)
            case Noted(line) if not self._output.quiet:
                say(line)
            case Restarted(why):
                self._write("\n" if self._pieces else "")
                self._pieces = []
                warn(why)
            case TextPiece(text):
                self._pieces.append(text)
                self._write(text)
                if self._pressed():
                    raise Stopped("".join(self._pieces))

    def answer(self, talk: Conversation, question: str) -> Turn:
        """Ask, and print the answer: in pieces on a terminal, otherwise as a line."""
        self._pieces = []
        with stoppable(lambda: bool(self._pieces) and self._personal) as self._pressed:
            turn = talk.ask(question)
        self._write("\n")
        if not self._streamed and not self._output.as_json:
            print_answer(one_line(turn.answer) + "\n")
        return turn

    def _write(self, text: str) -> None:
        if self._streamed:
            print_answer(text)


class _Chat:
    """The loop over lines: answers questions and runs commands."""

    def __init__(self, talk: Conversation, screen: _Screen, output: Output, record: Record) -> None:
        self._talk, self._screen, self._output, self._record = talk, screen, output, record
        self._personal, self._over = typed_by_a_person(), False
        self._commands: dict[str, tuple[Callable[[str], None], str, str]] = {
            "/budget": (self._budget, "B", "keep at most this share or number of video tokens"),
            "/inspect": (self._inspect, "", "token counts and seconds of this video"),
            "/video": (self._video, "OTHER", "talk about another video, from the start"),
            "/save": (self._save, "FILE", "keep the conversation as .md or .json"),
            "/help": (self._help, "", "this list"),
            "/quit": (self._quit, "", "end; so does Ctrl-D"),
        }

    def run(self) -> bool:
        """Run until the lines end; return whether all of them succeeded."""
        done = True
        self._greet()
        words = [name + " " * bool(argument) for name, (_, argument, _) in self._commands.items()]
        for line in lines(words, with_path=("/save", "/video")):
            if line.strip():
                done &= self._carried_out(line.strip())
            if self._over:
                break
        # A person has seen the failures and continued; a script learns of them from the exit code.
        return done or self._personal

    def _carried_out(self, line: str) -> bool:
        try:
            if line in LEAVING and self._personal:
                self._over = True
            elif line.startswith("/"):
                self._command(line)
            else:
                self._answer(line)
        except SttmError as error:
            fail(error.message, error.hint)
            return False
        except KeyboardInterrupt:
            if not self._personal:
                raise
            say("interrupted")
        finally:
            self._screen.progress.stop()
        return True

    def _answer(self, question: str) -> None:
        forgotten = self._talk.forgotten
        turn = self._screen.answer(self._talk, question)
        self._record.add([(turn.question, turn.answer, turn.seconds)], turn.budget)
        if turn.ending == "stopped":
            say("stopped")
        elif cut := cut_off(turn.ending, self._talk.settings.max_new_tokens):
            warn(cut)
        if self._talk.forgotten > forgotten:
            warn(
                f"the model's context is full: of {len(self._talk.turns)} turns the first "
                f"{self._talk.forgotten} are left out from here on"
            )

    def _command(self, line: str) -> None:
        name, _, rest = line.partition(" ")
        if name not in self._commands:
            meant = did_you_mean(name, self._commands)
            raise UsageError(f"{name} is not a command", f"{meant} /help lists them".strip())
        self._commands[name][0](rest.strip())

    def _greet(self) -> None:
        self._screen.progress.stop()
        if not self._output.quiet:
            for note in self._talk.facts["video"]["notes"]:
                say(note)
            say(self._state() + (" · /help lists commands" if self._personal else ""))
            for note in notes_on(self._talk.settings, self._talk.facts["tokens"]["video_full"]):
                say(note)

    def _state(self) -> str:
        tokens = self._talk.facts["tokens"]
        return f"{self._talk.video}: {share(tokens['video_kept'], tokens['video_full'])}"

    def _budget(self, rest: str) -> None:
        if rest:
            self._talk.set_budget(parse_budget("--budget", rest))
            self._screen.progress.stop()
        say(f"budget {self._talk.settings.budget}: {self._state()}")

    def _inspect(self, rest: str) -> None:
        _no_argument("/inspect", rest)
        facts = self._talk.facts
        video, tokens, cache = facts["video"], facts["tokens"], facts["cache"]
        frames = len(video["frame_times_s"])
        say(f"{self._talk.video}: {video['duration_s']:.2f} s, {frames} frames")
        kept = share(tokens["video_kept"], tokens["video_full"])
        spatial = tokens["after_spatial"]
        say(
            f"tokens  {kept}" + ("" if spatial is None else f", {spatial:,} after the spatial step")
        )
        say(f"seconds {spent(facts['seconds'])}")
        if cache["hit"]:
            say(f"cache   hit ({cache['tier']}); computing it took {cache['cold_seconds']:.3f} s")
        else:
            say(f"cache   miss: {cache['miss_reason']}")
        turns = len(self._talk.turns)
        say(f"context room for {tokens['room']:,} tokens after the video; {turns} turns so far")

    def _video(self, rest: str) -> None:
        if not rest:
            raise UsageError("/video names no video", "/video other.mp4")
        if rest == STDIN:
            raise UsageError("/video - cannot be used: questions come from stdin")
        self._talk.open(str(Path(rest).expanduser()) if "://" not in rest else rest)
        self._record = self._record.about(self._talk.video, self._talk.settings)
        self._screen.progress.stop()
        say(self._state())

    def _save(self, rest: str) -> None:
        if not rest:
            raise UsageError("/save names no file", "/save talk.md")
        self._talk.save(Path(rest).expanduser())
        say(f"saved {len(self._talk.turns)} turns in {rest}")

    def _quit(self, rest: str) -> None:
        _no_argument("/quit", rest)
        self._over = True

    def _help(self, rest: str) -> None:
        _no_argument("/help", rest)
        for name, (_, argument, about) in self._commands.items():
            say(f"{name + ' ' + argument:<13} {about}")


@contextmanager
def stoppable(waits: Callable[[], bool]) -> Iterator[Callable[[], bool]]:
    """Yield a function that returns whether Ctrl-C was pressed. A second Ctrl-C, or one while
    nothing `waits` to be kept, interrupts as usual."""
    pressed = False

    def press(number: int, frame: object) -> None:
        nonlocal pressed
        if pressed or not waits():
            raise KeyboardInterrupt
        pressed = True

    before = signal.signal(signal.SIGINT, press)
    try:
        yield lambda: pressed
    finally:
        signal.signal(signal.SIGINT, before)


def _no_argument(name: str, rest: str) -> None:
    if rest:
        raise UsageError(f"{name} takes nothing after it, not {rest!r}")
