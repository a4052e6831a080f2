"""Whatever a name, a label, an answer or a server says: nothing of it steers the terminal."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import pytest

from sttm_cli.cli.output import STEERING
from sttm_cli.store import LocalStore, pack
from tests.cli.hostile_events import HOSTILE
from tests.cli.process import sttm_here
from tests.cli.terminal import CTRL_D, Terminal
from tests.store.made import IDENTITY, kv

ROOT = Path(__file__).parents[2]
SAMPLE = ROOT / "docs" / "sample.mp4"
OWN = re.compile(r"\x1b\[[0-9;?]*[mhlKJABCDG]|[\r\b]|\x1b[=>]")
"""What rich and prompt_toolkit themselves send: colours, the cursor within its line, modes."""


def assert_unsteered(terminal: Terminal) -> None:
    shown = OWN.sub("", terminal.raw.decode("utf-8", "surrogateescape"))
    assert [found[0] for found in STEERING.finditer(shown)] == []


def test_an_answer_and_a_servers_words_are_filtered() -> None:
    terminal = Terminal(
        "ask", SAMPLE, "what?", "--debug", module="tests.cli.hostile_events", PYTHONPATH=str(ROOT)
    )
    assert terminal.ended() == 0
    assert_unsteered(terminal)
    for word in ("warned", "noted", "restarted", "\tanswer", "note"):
        assert word in terminal.screen


def test_a_chat_is_filtered() -> None:
    terminal = Terminal("chat", SAMPLE, module="tests.cli.hostile_events", PYTHONPATH=str(ROOT))
    terminal.expect("/help lists commands")
    terminal.expect(">")
    terminal.send("what?\r")
    terminal.expect("answer")
    terminal.expect(">")
    terminal.send(CTRL_D)
    assert terminal.ended() == 0
    assert_unsteered(terminal)


def test_labels_and_names_of_files_are_filtered(tmp_path: Path) -> None:
    with LocalStore(Path(os.environ["STTM_CACHE_DIR"]), warn=print) as store:
        label = {"video": f"/x/{HOSTILE}\n.mp4", "model": HOSTILE, "budget": HOSTILE}
        assert store.save(IDENTITY, pack(kv()), label=label)
        damaged = store.save({**IDENTITY, "a": 1}, pack(kv()), label=label)
    for command in (("cache", "ls"), ("cache", "ls", "--json"), ("cache", "show", damaged.key[:8])):
        terminal = Terminal(*command)
        assert terminal.ended() == 0
        assert_unsteered(terminal)
    Path(damaged.location).rename(Path(damaged.location).with_name(f"{HOSTILE}.safetensors"))
    terminal = Terminal("cache", "verify")
    terminal.ended()
    assert_unsteered(terminal)


def test_names_with_line_feeds_take_one_line_each_in_precompute(tmp_path: Path) -> None:
    names = [f"{HOSTILE}.mp4", "one\n[2-2] two: skipped.mp4", "\x1b[2Jgone.mp4"]
    for name in names[:2]:
        shutil.copy(SAMPLE, tmp_path / name)
    (tmp_path / names[2]).write_bytes(b"none")
    ended = sttm_here("precompute", tmp_path)
    assert ended.code == 1
    assert len([line for line in ended.err.splitlines() if line.startswith("[")]) == 3
    assert STEERING.findall(ended.err) == []
    terminal = Terminal("precompute", tmp_path, "--refresh")
    assert terminal.ended() == 1
    assert_unsteered(terminal)


def test_an_answer_is_one_line_for_every_way_to_count_lines(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from sttm_cli.cli.asker import Asker
    from tests.cli import hostile_events

    monkeypatch.setattr(Asker, "ask", hostile_events.ask)
    ended = sttm_here("ask", SAMPLE, "one?", "two?", "-q")
    assert len(ended.out.splitlines()) == 2
    assert "\tanswer" in ended.out


def test_json_comes_back_as_it_was_and_steers_nothing() -> None:
    with LocalStore(Path(os.environ["STTM_CACHE_DIR"]), warn=print) as store:
        assert store.save(IDENTITY, pack(kv()), label={"video": HOSTILE})
    ended = sttm_here("cache", "ls", "--json")
    assert STEERING.findall(ended.out) == []
    assert ended.json["entries"][0]["video"] == HOSTILE


def test_everything_is_printed_in_one_place() -> None:
    other = re.compile(r"(?<![\w.])print\(|typer\.echo|click\.echo|std(out|err)\.write|Console\(")
    files = [path for path in (ROOT / "sttm_cli" / "cli").glob("*.py") if path.name != "output.py"]
    assert [path.name for path in files if other.search(path.read_text(encoding="utf-8"))] == []
