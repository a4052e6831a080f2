"""What the package's source says to users: the first words of every error and warning."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import sttm_cli
from sttm_cli.base import errors

PACKAGE = Path(sttm_cli.__file__).parent
ERRORS = [e for e in vars(errors).values() if isinstance(e, type) and issubclass(e, Exception)]
WARNING = {"warn", "_warn"}
GAP = "…"


def warned() -> set[str]:
    """The messages of all warnings; what is filled in reads `…`."""
    return {text for call, text in _messages() if _name(call.func) in WARNING}


def unhelpful() -> set[str]:
    """The messages of errors that come without a hint what to do."""
    names = {error.__name__ for error in ERRORS}
    return {text for call, text in _messages() if _name(call.func) in names and not _hint(call)}


def _messages() -> Iterator[tuple[ast.Call, str]]:
    calls = (node for node in _nodes() if isinstance(node, ast.Call) and node.args)
    for call in calls:
        text = _text(call.args[0])
        if text and says_something(text):
            yield call, text


def _hint(call: ast.Call) -> bool:
    """Whether a call that makes an error gives it a second text."""
    given = [*call.args[1:], *(word.value for word in call.keywords if word.arg == "hint")]
    return any(not (isinstance(g, ast.Constant) and not g.value) for g in given)


def says_something(text: str) -> bool:
    """Whether a message has words of its own, and not only what is filled in."""
    return len(re.findall(r"[\w-]{2,}", text.replace(GAP, " "))) > 1


def covers(quoted: str, text: str) -> bool:
    """Whether a message as a document quotes it stands for this one; `…` is anything."""
    return re.fullmatch(re.escape(quoted).replace(GAP, ".+"), text, re.DOTALL) is not None


def written() -> set[str]:
    """Every text in the source, in the same way."""
    return {text for node in _nodes() if (text := _text(node))}


def _nodes() -> Iterator[ast.AST]:
    for path in sorted(PACKAGE.rglob("*.py")):
        yield from ast.walk(ast.parse(path.read_text(encoding="utf-8")))


def _name(function: ast.expr) -> str:
    return str(getattr(function, "id", None) or getattr(function, "attr", ""))


def _text(node: ast.AST) -> str | None:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        parts = (v.value if isinstance(v, ast.Constant) else GAP for v in node.values)
        return re.sub(rf"{GAP}(\s*{GAP})+", GAP, "".join(str(part) for part in parts))
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        left, right = _text(node.left), _text(node.right)
        return f"{left or GAP}{right or GAP}" if left or right else None
    return None
