"""What the documents say that commands and code print, run again.

`python -m tests.transcripts [PAGE...]` writes into the pages what is printed now.

In a ```text block a line `$ COMMAND` is run, and what stands below it up to the next one is what
it prints, stdout and stderr together; lines that begin with `> ` are typed in a chat, `&` leaves a
server behind, and a line `...` stands for any lines. A ```python block is run, and the ```text
block below it is what it prints. A block after `<!-- not run -->` is left alone. All of a page runs
in one process and one folder, which holds docs/sample.mp4, with an empty cache. A picture that a
command writes there is the one of that name in docs/.

Figures that differ from run to run and from machine to machine do not count: see `VARYING`.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

from PIL import Image, ImageChops, ImageStat

ROOT = Path(__file__).parents[1]
HOME = "/home/me"
"""What the pages call the folder of the user who types all this."""

BLOCK = re.compile(
    r"(?P<skip><!-- not run -->\n)?"
    r"(?:^```text\n(?P<shell>\$ .*?)^```$"
    r"|^```python\n(?P<code>.*?)^```$(?:\n\n^```text\n(?!\$ )(?P<printed>.*?)^```$)?)",
    flags=re.DOTALL | re.MULTILINE,
)
COMMAND = re.compile(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", flags=re.MULTILINE)
KEY = re.compile(r"\b[0-9a-f]{12}(?=[0-9a-f]{52}\b|\b)")
ONE_COMMAND = re.compile(r"(?:[A-Z_]+=\S+ )*sttm ")

VARYING = (
    (r"\d[\d,]*(\.\d+)? ?(kB|MB|GB)\b", "SIZE"),
    (r"\d[\d,]*(\.\d+)? s\b", "SECONDS"),
    # Seconds and cosines in tables, gains, versions.
    (r"\b\d+\.\d{3,}|\b\d+\.\d+x|\b\d+\.\d+\.\d+(\+\w+)?", "#"),
    (r"\b[0-9a-f]{12}\b|\b[0-9a-f]{64}\b", "KEY"),
    (r"\b\d{4}-\d\d-\d\d \d\d:\d\d\b", "WHEN"),
    (r"process \d+", "process #"),
    (r"\b\d{6,}\b", "#"),
    # What `sttm doctor` finds on a machine: only what it looks at is the same everywhere.
    (r"^(?:ok|note|BROKEN)  +(\w+(?: \w+)*)  .*", r"\1"),
    (r"[ \t]+", " "),
    (r" $", ""),
)


@dataclass(frozen=True)
class Replayed:
    """A page with what is printed now, where that is not what it says, and the pictures that are
    not those in docs/, by name."""

    text: str
    pictures: dict[str, Image.Image]


def replayed(page: str) -> Replayed:
    """Run all that a page shows."""
    with _shell() as shell:
        text = BLOCK.sub(lambda block: _block(block, shell), page)
        return Replayed(text, dict(_other_pictures()))


def _other_pictures() -> Iterator[tuple[str, Image.Image]]:
    for path in Path().glob("*.png"):
        # A palette is a third of the bytes.
        made = Image.open(path).convert("RGB").quantize(256)
        shown = ROOT / "docs" / path.name
        if not (shown.exists() and _look_alike(made, Image.open(shown))):
            yield path.name, made


def _look_alike(one: Image.Image, other: Image.Image) -> bool:
    if one.size != other.size:
        return False
    difference = ImageChops.difference(one.convert("RGB"), other.convert("RGB"))
    return max(ImageStat.Stat(difference).mean) < 1.0


def commands_shown(page: str) -> list[str]:
    """The commands of a page whose output stands below them, without `$ sttm `."""
    blocks = [b["shell"] for b in BLOCK.finditer(page) if b["shell"] and not b["skip"]]
    lines = [line for block in blocks for line, _ in COMMAND.findall(block)]
    return [line[found.end() :] for line in lines if (found := ONE_COMMAND.match(line))]


def _block(block: re.Match[str], shell: _Shell) -> str:
    if block["skip"]:
        return block[0]
    if block["shell"]:
        return (
            "```text\n" + COMMAND.sub(lambda found: _command(found, shell), block["shell"]) + "```"
        )
    printed = shell.python(block["code"])
    if block["printed"] is None or _agree(block["printed"], printed):
        return block[0]
    return block[0].replace(f"```text\n{block['printed']}```", f"```text\n{printed}```")


def _command(found: re.Match[str], shell: _Shell) -> str:
    line, said = found.groups()
    printed = shell.run(line, re.findall(r"^> (.*)$", said, flags=re.MULTILINE))
    figures = line.startswith("sttm bench")
    if not _agree(said, printed, figures=figures):
        return f"$ {line}\n{printed}"
    shell.keys |= zip(KEY.findall(said), KEY.findall(printed), strict=False)
    return found[0]


def _agree(said: str, printed: str, *, figures: bool = False) -> bool:
    """Whether they say the same; of a benchmark no `figures` are."""
    said, printed = _plain(said), _plain(printed)
    if figures:
        said, printed = (re.sub(r"\b\d[\d.,]*", "#", text) for text in (said, printed))
    parts = re.split(r"^\.\.\.\n", said, flags=re.MULTILINE)
    return re.fullmatch(r"(?s:.*)".join(map(re.escape, parts)), printed) is not None


def _plain(text: str) -> str:
    for pattern, replacement in VARYING:
        text = re.sub(pattern, replacement, text, flags=re.MULTILINE)
    return text


class _Shell:
    """Runs a page's commands and code, one after the other."""

    def __init__(self, root: str) -> None:
        self._root = root
        # Keys of cache entries as the page has them -> as they are with these libraries.
        self.keys: dict[str, str] = {}
        self._names: dict[str, Any] = {}
        self._servers: list[subprocess.Popen[str]] = []

    def python(self, code: str) -> str:
        with contextlib.redirect_stdout(io.StringIO()) as out:
            exec(compile(code, "a page", "exec"), self._names)
        return out.getvalue()

    def run(self, line: str, typed: list[str]) -> str:
        """What the command prints, with the user's folder under its name on the pages."""
        if line.endswith(" &"):
            printed = self._serve(line[:-2])
        elif ONE_COMMAND.match(line):
            printed = _sttm(KEY.sub(lambda key: self.keys.get(key[0], key[0]), line), typed)
        else:
            done = subprocess.run(["bash", "-c", line], text=True, capture_output=True, check=True)
            printed = done.stdout + done.stderr
        printed = printed.replace(f"{self._root}{HOME}", HOME)
        return re.sub(r" +$", "", printed, flags=re.MULTILINE)

    def _serve(self, line: str) -> str:
        server = subprocess.Popen(
            [sys.executable, "-m", "sttm_cli", *shlex.split(line)[1:]],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._servers.append(server)
        said = ""
        for printed in server.stdout or ():
            said += printed
            if printed.startswith("serving"):
                break
        return said

    def close(self) -> None:
        for server in self._servers:
            server.terminate()
            server.communicate()


def _sttm(line: str, typed: list[str]) -> str:
    """Run one command in this process, as if a person typed the lines."""
    from sttm_cli.cli import main

    words = shlex.split(line)
    begin = words.index("sttm")
    out = io.StringIO()
    with (
        mock.patch.dict(os.environ, dict(word.split("=", 1) for word in words[:begin])),
        mock.patch.object(sys, "argv", words[begin:]),
        mock.patch.object(sys, "stdin", _Typed("".join(f"{line}\n" for line in typed))),
        mock.patch("sttm_cli.cli.chat.typed_by_a_person", return_value=bool(typed)),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(out),
        contextlib.suppress(SystemExit),
    ):
        main()
    return out.getvalue()


class _Typed(io.StringIO):
    """Lines of stdin that are seen when they are read, as on a terminal."""

    def readline(self, size: int | None = -1, /) -> str:
        line = super().readline(-1 if size is None else size)
        sys.stdout.write(f"> {line}" if line else "")
        return line


@contextlib.contextmanager
def _shell() -> Iterator[_Shell]:
    """A shell of a user whose home is empty."""
    with tempfile.TemporaryDirectory() as root:
        home = Path(root + HOME)
        (home / "docs").mkdir(parents=True)
        shutil.copy(ROOT / "docs" / "sample.mp4", home / "docs")
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("STTM_", "XDG_", "HF_"))}
        places = {
            "HOME": str(home),
            "XDG_CACHE_HOME": str(home / ".cache"),
            "XDG_CONFIG_HOME": str(home / ".config"),
            "XDG_RUNTIME_DIR": root,
            "HF_HUB_OFFLINE": "1",
            "PYTHONPATH": str(ROOT),
        }
        shell = _Shell(root)
        with (
            mock.patch.dict(os.environ, {**kept, **places}, clear=True),
            mock.patch(
                "huggingface_hub.constants.HF_HUB_CACHE", str(home / ".cache/huggingface/hub")
            ),
            contextlib.chdir(home),
            contextlib.closing(shell),
        ):
            yield shell


if __name__ == "__main__":
    for name in sys.argv[1:] or ["README.md", *map(str, (ROOT / "docs").glob("*.md"))]:
        page = ROOT / name
        now = replayed(page.read_text(encoding="utf-8"))
        page.write_text(now.text, encoding="utf-8")
        for picture, image in now.pictures.items():
            image.save(ROOT / "docs" / picture, optimize=True)
