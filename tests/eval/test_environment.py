"""lmms-eval's environment: named, made once, said before, made again where it is not whole."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from sttm_cli.base.errors import SttmError
from sttm_cli.eval import environment
from sttm_cli.eval.environment import lmms_python


class Commands:
    """Takes the commands instead of running them; `failing`: a word of the one that fails."""

    def __init__(self, failing: str = "") -> None:
        self.given: list[list[str]] = []
        self._failing = failing

    def __call__(self, command: Sequence[str]) -> subprocess.CompletedProcess[str]:
        self.given.append(list(command))
        if "venv" in command:
            packages = Path(command[-1], "lib", "python3", "site-packages")
            packages.mkdir(parents=True)
            Path(command[-1], "bin").mkdir()
            Path(command[-1], "bin", "python").touch()
        failed = bool(self._failing) and self._failing in command
        said = "ERROR: no index\nhint: try again" if failed else ""
        return subprocess.CompletedProcess(command, int(failed), "", said)


def taken(monkeypatch: pytest.MonkeyPatch, *, uv: str | None, failing: str = "") -> Commands:
    commands = Commands(failing)
    monkeypatch.setattr(environment, "_run", commands)
    monkeypatch.setattr(environment.shutil, "which", lambda name: uv)
    return commands


@pytest.mark.parametrize("uv", [None, "/bin/uv"])
def test_it_is_made_once_with_what_is_there_and_said_before(
    monkeypatch: pytest.MonkeyPatch, uv: str | None
) -> None:
    commands, said = taken(monkeypatch, uv=uv), []
    python = lmms_python(lambda line: said.append((line, len(commands.given))))
    ((line, before),) = said
    assert before == 0
    assert str(python.parents[1]) in line
    assert ("by uv" in line) == bool(uv)
    assert all((command[0] == uv) == bool(uv) for command in commands.given[:-1])
    bare = next(command for command in commands.given if "--no-deps" in command)
    assert bare[-1] == "lmms-eval==0.7.3"
    # Nothing of this environment gets a second version there.
    constraints = (python.parents[1] / "constraints.txt").read_text()
    assert "\ntorch==" in constraints
    assert "sttm" not in constraints
    (below,) = python.parents[1].rglob("sttm_below.pth")
    assert "site-packages" in below.read_text()
    count = len(commands.given)
    assert lmms_python(lambda line: said.append((line, 0))) == python
    assert (len(commands.given), len(said)) == (count, 1)


def test_one_that_is_not_whole_is_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as broken:
        taken(broken, uv=None, failing="--no-deps")
        with pytest.raises(SttmError, match="lmms-eval cannot be installed: ERROR: no index"):
            lmms_python(lambda line: None)
    commands = taken(monkeypatch, uv=None)
    python = lmms_python(lambda line: None)
    assert commands.given
    assert (python.parents[1] / "complete").exists()


def test_a_named_one_must_have_lmms_eval(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("STTM_LMMS_VENV", str(tmp_path))
    with pytest.raises(SttmError, match="is not a virtual environment"):
        lmms_python(lambda line: None)
    subprocess.run(["python3", "-m", "venv", "--without-pip", tmp_path], check=True)
    with pytest.raises(SttmError, match="cannot import lmms-eval"):
        lmms_python(lambda line: None)
