"""What the documents say that commands and code print is what they print."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from sttm_cli.base.device import resolve_device
from tests.reference_docs import PAGE, commands, heading
from tests.store.bucket import environment, moto
from tests.transcripts import BLOCK, ROOT, replayed

DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PAGES = [page for page in DOCUMENTS if BLOCK.search(page.read_text(encoding="utf-8"))]


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A server of the bucket that the pages name."""
    pytest.importorskip("obstore", reason="the extra 'cloud' is not installed")
    pytest.importorskip("moto", reason="moto, a server for tests, is not installed")
    with moto() as port:
        for name, value in environment(f"http://127.0.0.1:{port}").items():
            monkeypatch.setenv(name, value)
        yield


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_page_says_what_its_commands_print(page: Path, request: pytest.FixtureRequest) -> None:
    if resolve_device("auto") != "cpu":
        pytest.skip("the pages show what a CPU computes")
    text = page.read_text(encoding="utf-8")
    if "s3://" in text:
        request.getfixturevalue("bucket")
    now = replayed(text)
    again = f"look at it, then: python -m tests.transcripts {page.relative_to(ROOT)}"
    assert now.text == text, again
    assert list(now.pictures) == [], again


@pytest.mark.parametrize("title", [heading(name, command) for name, command in commands()])
def test_every_command_is_shown_with_what_it_prints(title: str) -> None:
    section = PAGE.read_text(encoding="utf-8").split(f"\n## {title}\n")[1].split("\n## ")[0]
    assert "([shown](" in section
