"""Processes that end with the one that started them."""

from __future__ import annotations

import subprocess

from sttm_cli.base.system import tied_command


def test_a_tied_process_ends_by_itself_while_its_stdin_is_open() -> None:
    process = subprocess.Popen(
        tied_command("platform"),
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    assert process.stdin is not None
    assert process.stderr is not None
    with process:
        said = process.stderr.read()
    assert (process.returncode, said) == (0, b"")
