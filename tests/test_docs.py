"""The documents say what the program does."""

from __future__ import annotations

import re
import shlex
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from sttm_cli.settings.settings import Settings
from tests.cli.process import sttm_here
from tests.messages import ERRORS, covers, says_something, unhelpful, warned, written
from tests.reference_docs import (
    PAGE,
    commands,
    examples,
    groups_of,
    heading,
    is_common,
    is_shared,
    page,
)

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
TROUBLE = ROOT / "docs" / "troubleshooting.md"
COMMANDS = list(commands())


def test_every_command_and_flag_is_documented_as_its_help_says() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "run: python -m tests.reference_docs"


@pytest.mark.parametrize(("name", "command"), COMMANDS, ids=[name for name, _ in COMMANDS])
def test_every_command_and_flag_says_what_it_does(name: str, command: Any) -> None:
    title = heading(name, command)
    section = PAGE.read_text(encoding="utf-8").split(f"\n## {title}\n")[1].split("\n## ")[0]
    assert command.help.strip()
    for option in command.params:
        assert (option.help or "").strip(), option.name
        if option.param_type_name == "option" and not (
            option.name == "help" or is_shared(option) or is_common(option)
        ):
            assert all(f"`{name}`" in section for name in option.opts), option.name


def test_a_command_names_the_groups_of_its_shared_flags_and_what_it_lacks_of_them() -> None:
    known = dict(COMMANDS)
    assert groups_of(known["sttm ask"]) == (
        " Shared: **Model**; **Frames**; **Cache**; **Answer**; `--subtitles`, `--no-server`, "
        "`--keep-alive`, `--no-log`."
    )
    assert "**Model** without `--budget`; **Frames**" in groups_of(known["sttm inspect"])
    assert groups_of(known["sttm cache ls"]) == (
        " Shared: `--cache-dir`, `--cache-tier`, `--max-bytes`."
    )
    assert groups_of(known["sttm models"]) == ""


@pytest.mark.parametrize(("name", "command"), COMMANDS, ids=[name for name, _ in COMMANDS])
def test_help_breaks_no_sentence(name: str, command: Any) -> None:
    assert all("\n" not in paragraph for paragraph in command.help.split("\n\n"))


@pytest.mark.parametrize("name", ["sttm", *(name for name, _ in COMMANDS)])
def test_help_fits_80_columns_of_a_plain_terminal_and_cuts_nothing_off(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "dumb")
    shown = sttm_here(*name.split()[1:], "--help").out
    assert "Usage:" in shown
    assert max(map(len, shown.splitlines())) <= 80
    assert "…" not in shown
    assert "\x1b" not in shown


@pytest.mark.parametrize(("name", "command"), COMMANDS, ids=[name for name, _ in COMMANDS])
def test_the_examples_below_a_help_are_commands_that_can_be_given(name: str, command: Any) -> None:
    for example in examples(command):
        assert example.startswith(f"{name} ")
        typed = shlex.split(re.split(" [<>] ", example)[0])
        command.make_context(name, typed[len(name.split()) :])


def test_every_variable_of_the_environment_is_documented() -> None:
    sources = (path.read_text(encoding="utf-8") for path in (ROOT / "sttm_cli").rglob("*.py"))
    read = {name for text in sources for name in re.findall(r"\bSTTM_[A-Z_]+\b", text)}
    assert len(read) > 4
    assert [name for name in sorted(read) if f"`{name}`" not in page()] == []


def test_every_setting_is_named_in_the_page_on_python() -> None:
    text = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
    assert [f.name for f in fields(Settings) if f"`{f.name}`" not in text] == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda p: p.name)
def test_links_between_documents_lead_somewhere(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    for target, _, anchor in re.findall(r"\]\(([^)#\s]*)(#([^)]+))?\)", text):
        if not target.startswith("http"):
            page = document.parent / target if target else document
            assert page.exists(), target
            assert not anchor or anchor in anchors(page), f"{target}#{anchor}"


def anchors(page: Path) -> set[str]:
    """What a link may name in a page, as GitHub makes it from the headings."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_readme_names_every_document() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert [p.name for p in (ROOT / "docs").glob("*.md") if p.name not in readme] == []


def quoted_messages() -> list[str]:
    """The messages at the beginning of the lines of the troubleshooting page's lists."""
    page = TROUBLE.read_text(encoding="utf-8")
    rows = re.findall(r"^- (`.*?`): (?=[A-Z\[])", page, flags=re.MULTILINE)
    assert len(rows) > 20
    return [message for cell in rows for message in re.findall(r"`([^`]+)`", cell)]


def test_every_kind_of_error_is_in_the_troubleshooting_page_with_its_exit_code() -> None:
    page = TROUBLE.read_text(encoding="utf-8")
    assert len(ERRORS) > 6
    for error in ERRORS:
        assert f"- `{error.kind}` ({error.exit_code}" in page, error.__name__


def test_every_message_quoted_in_the_troubleshooting_page_is_in_the_source() -> None:
    texts = written()
    for message in quoted_messages():
        assert says_something(message), message
        assert any(covers(message, text) for text in texts), message


def test_every_warning_and_every_error_without_a_hint_is_in_the_troubleshooting_page() -> None:
    quoted = quoted_messages()
    assert len(warned()) > 15
    left = {text for text in warned() | unhelpful() if not any(covers(q, text) for q in quoted)}
    assert left == set(), "give it a hint what to do, or say so in docs/troubleshooting.md"
