"""Tables and messages on terminals of 60, 80 and 120 columns: whole columns go, no value is cut."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from sttm_cli.cli import output, tables
from tests.cli.process import sttm_here
from tests.cli.terminal import Terminal
from tests.cli.test_ask import QUESTION, SAMPLE

WIDTHS = (60, 80, 120)
CELLS = [("key", "where", "count", "share"), ("abcdef", "folder/name.mp4", "1,234", "12 %")]


def shown(width: int, *arguments: object) -> list[str]:
    terminal = Terminal(*arguments, COLUMNS=str(width))
    assert terminal.ended() == 0, terminal.screen
    return terminal.screen.splitlines()


@pytest.mark.parametrize("width", [None, 20, 28, 36, 37, 80])
@pytest.mark.parametrize("less", [(), ("share",), ("share", "count")])
def test_a_table_shows_whole_values_at_every_width(
    width: int | None, less: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tables, "columns_of", lambda stream: width)
    head, row = CELLS
    lines = tables.table(head, [row, row], left=("where",), less=less)
    text = "\n".join(lines)
    kept = [cell for name, cell in zip(head, row, strict=True) if name not in less]
    assert all(text.count(cell) == 2 for cell in kept)
    if width is None or width > 36:
        assert lines[0].split() == list(head)
        assert len(lines) == 3
    elif lines[0].split()[0] == "key" and len(lines[0].split()) > 2:
        assert max(map(len, lines)) <= width
    assert all(len(line) <= width or len(line.split()) <= 2 for line in lines if width)


@pytest.mark.parametrize("width", WIDTHS)
def test_the_cache_is_listed_whole_at_every_width(width: int, tmp_path: Path) -> None:
    video = tmp_path / "a folder of some depth" / "a video.mp4"
    video.parent.mkdir()
    shutil.copy(SAMPLE, video)
    keys = [
        sttm_here("ask", video, QUESTION, "--json", *flags).json["cache"]["key"][:12]
        for flags in ((), ("--frames", 4), ("--start", "2"), ("--merge-layer", 0), ("-b", "0.3"))
    ]
    lines = shown(width, "cache", "ls")
    text = "\n".join(lines)
    assert all(text.count(key) == 1 for key in keys)
    assert text.count(str(video)) == 5
    assert "2-8 s" in text
    assert "…" not in text
    unbroken = [line for line in lines if str(video) not in line]
    assert max(map(len, unbroken)) <= width


def test_entries_that_differ_can_be_told_apart() -> None:
    for flags in ((), ("--frames", 4), ("--end", "3"), ("--merge-layer", 0), ("--method", "evs")):
        sttm_here("ask", SAMPLE, QUESTION, *flags)
    head, *rows = sttm_here("cache", "ls").out.splitlines()
    assert {"frames", "range", "method", "layer"} <= set(head.split())
    start, end = head.index("frames") - 2, head.index("tokens") - 2
    assert len({row[start:end] for row in rows}) == 5
    entries = sttm_here("cache", "ls", "--json").json["entries"]
    assert sorted(e["frames"] for e in entries) == [3, 4, 8, 8, 8]


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize(
    ("arguments", "whole"),
    [
        (("models",), ["llava-hf/llava-onevision-qwen2-7b-ov-hf", "qwen3-vl-moe-30b"]),
        (("config", "show"), ["max_new_tokens", "default"]),
        (
            ("inspect", SAMPLE, "--repeat", "1", "--no-show", "-q"),
            ["tokens kept", "after spatial", "thresholds", "from cache", "LLM faster"],
        ),
    ],
    ids=["models", "config", "inspect"],
)
def test_other_tables_are_whole_at_every_width(
    width: int, arguments: tuple[object, ...], whole: list[str]
) -> None:
    lines = shown(width, *arguments)
    text = "\n".join(lines)
    assert all(value in text for value in whole)
    assert "…" not in text
    assert max(map(len, lines)) <= width


@pytest.mark.parametrize("width", WIDTHS)
def test_messages_break_between_words_and_commands_to_copy_not_at_all(width: int) -> None:
    terminal = Terminal("ask", SAMPLE, *["word"] * 20, COLUMNS=str(width))
    assert terminal.ended() == 2
    lines = terminal.screen.splitlines()
    (command,) = [line for line in lines if line.startswith("    sttm ask")]
    assert command.endswith(f'"{" ".join(["word"] * 20)}"')
    rest = [line for line in lines if line != command]
    assert max(map(len, rest)) <= width
    assert set(re.findall(r"w\w*", " ".join(rest))) == {"word"}


@pytest.mark.parametrize("width", WIDTHS)
def test_the_progress_bar_has_room_at_every_width(width: int) -> None:
    terminal = Terminal("ask", SAMPLE, QUESTION, COLUMNS=str(width))
    assert terminal.ended() == 0
    assert re.search("decoding and encoding ━+.* 8/8", terminal.screen)


@pytest.mark.parametrize("width", [12, 20, 40])
def test_lines_of_words_break_between_them_and_lose_none(
    width: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(output, "columns_of", lambda stream: width)
    text = "ok     torch       one two three four a-word-that-is-longer-than-most five"
    output.print_words(f"{text}\nshort", indent=4)
    lines = capsys.readouterr().out.splitlines()
    assert " ".join(lines).split() == [*text.split(), "short"]
    assert lines[-1] == "short"
    assert all(len(line) <= width or len(line.split()) == 1 for line in lines)
    assert all(line.startswith("    ") for line in lines[1:-1])
