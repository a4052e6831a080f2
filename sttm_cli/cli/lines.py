"""Input lines, typed by a person or read from a pipe."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from prompt_toolkit.completion import CompleteEvent, Completer, Completion
    from prompt_toolkit.document import Document
    from prompt_toolkit.history import History


def typed_by_a_person() -> bool:
    """Return whether lines come from a terminal, with another terminal for prompts."""
    return sys.stdin.isatty() and sys.stderr.isatty()


def lines(commands: Sequence[str], with_path: Sequence[str]) -> Iterator[str]:
    """Yield lines until the end of input; on a terminal with history and with completion of
    `commands` and of the path after those in `with_path`."""
    if not typed_by_a_person():
        yield from iter(sys.stdin.readline, "")
        return
    from prompt_toolkit import PromptSession
    from prompt_toolkit.output import create_output
    from prompt_toolkit.shortcuts import CompleteStyle

    session: PromptSession[str] = PromptSession(
        history=_history(),
        completer=_completer(commands, with_path),
        # No menu below a question; Tab opens one.
        complete_while_typing=False,
        complete_style=CompleteStyle.READLINE_LIKE,
        # stdout is reserved for answers.
        output=create_output(stdout=sys.stderr),
    )
    while True:
        try:
            yield session.prompt("> ")
        except KeyboardInterrupt:
            # Ctrl-C discards the line, as in a shell.
            continue
        except EOFError:
            return


def _history() -> History:
    """Return the lines of earlier sessions, from the user's state folder; only those of this
    session if that is not writable."""
    from platformdirs import user_state_path
    from prompt_toolkit.history import FileHistory, InMemoryHistory

    path = user_state_path("sttm") / "chat-history"
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        path.touch(mode=0o600)
    except OSError:
        return InMemoryHistory()
    return FileHistory(path)


def _completer(commands: Sequence[str], with_path: Sequence[str]) -> Completer:
    from prompt_toolkit.completion import Completer, Completion, PathCompleter
    from prompt_toolkit.document import Document

    paths = PathCompleter(expanduser=True)

    class Commands(Completer):
        def get_completions(self, document: Document, event: CompleteEvent) -> Iterable[Completion]:
            command, space, rest = document.text_before_cursor.partition(" ")
            if space and command in with_path:
                yield from paths.get_completions(Document(rest, len(rest)), event)
            elif not space and command.startswith("/"):
                for name in commands:
                    if name.startswith(command):
                        yield Completion(name, start_position=-len(command))

    return Commands()
