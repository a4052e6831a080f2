"""Child process that renders chat templates, which are programs from a model's authors.

A template that loops forever or exhausts the memory ends this process only. Input: jobs, a JSON
line each: {"template", "messages", "variables"}. Output: for each job {"text"} or {"error"}. A job
that takes more processor time than `CPU_S` ends the process.
"""

from __future__ import annotations

import json
import signal
import sys
import time
from collections.abc import Callable
from datetime import datetime
from functools import cache
from typing import Any

import jinja2
from jinja2.ext import Extension, loopcontrols
from jinja2.nodes import CallBlock, Node
from jinja2.parser import Parser
from jinja2.runtime import Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment

CPU_S = 5
MEMORY_BYTES = 512 << 20
LONGEST = 1 << 20
"""Maximum characters of a prompt, in addition to four times those of the job."""


def main() -> None:
    # Ctrl-C reaches the whole process group; the parent ends its children.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    allow_seconds = _bounds()
    for line in sys.stdin.buffer:
        allow_seconds()
        try:
            job = json.loads(line)
            answer = {"text": _bounded(_rendered(**job), len(line))}
        except MemoryError:
            answer = {"error": "it takes too much memory"}
        except Exception as error:
            reason = str(error).strip().splitlines() or [type(error).__name__]
            answer = {"error": reason[0][:200]}
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


def _bounds() -> Callable[[], None]:
    """Limit the memory; return a function that limits the processor time of the next job."""
    try:
        import resource
    except ImportError:
        # Windows has no such limits; only the parent's timeout applies.
        return lambda: None

    def bound(kind: int, value: int) -> None:
        most = resource.getrlimit(kind)[1]
        value = value if most == resource.RLIM_INFINITY else min(value, most)
        resource.setrlimit(kind, (value, most))

    bound(resource.RLIMIT_DATA, MEMORY_BYTES)
    bound(resource.RLIMIT_CORE, 0)
    return lambda: bound(resource.RLIMIT_CPU, int(time.process_time()) + CPU_S + 1)


def _bounded(text: str, given: int) -> str:
    if len(text) > LONGEST + 4 * given:
        raise ValueError(f"it makes a prompt of {len(text)} characters")
    return text


def _rendered(template: str, messages: Any, variables: dict[str, Any]) -> str:
    return _compiled(template).render(
        messages=messages, tools=None, documents=None, add_generation_prompt=True, **variables
    )


@cache
def _compiled(template: str) -> jinja2.Template:
    """Compile the template in the environment of transformers' `apply_chat_template`."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise
    environment.globals["strftime_now"] = lambda style: datetime.now().strftime(style)
    environment.globals["dict"] = _Dict()
    environment.globals["namespace"] = _Namespace
    return environment.from_string(template)


class _Generation(Extension):
    """`{% generation %}`, which marks the assistant's text for training and has no effect here."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return CallBlock(self.call_method("_passed_through"), [], [], body).set_lineno(line)

    def _passed_through(self, caller: Macro) -> str:
        return str(caller())


class _Dict:
    """`dict` without the methods that could break out of the sandbox."""

    def __call__(self, *args: Any, **values: Any) -> dict[Any, Any]:
        return dict(*args, **values)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args)


class _Namespace(jinja2.utils.Namespace):
    """`namespace` without names that start with an underscore."""

    def __init__(*given: Any, **values: Any) -> None:
        # A template may use `self` as a name.
        self, *rest = given
        values = dict(*rest, **values)
        for name in values:
            _check_name(name)
        jinja2.utils.Namespace.__init__(self, values)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)


def _check_name(name: str) -> None:
    if str(name).startswith("_"):
        raise jinja2.exceptions.SecurityError(f"{name!r} cannot be stored in a namespace")


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # Jinja's filter also escapes HTML characters.
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _raise(message: str) -> None:
    raise jinja2.TemplateError(message)


if __name__ == "__main__":
    main()
