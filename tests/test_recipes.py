"""The scripts of docs/many-machines.md, run as they stand there with folders of the test's own."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.library.test_ray import variants
from tests.transcripts import ROOT

COUNT = 7
PAGE = ROOT / "docs" / "many-machines.md"
pytestmark = [pytest.mark.long, pytest.mark.timeout(600)]


def script(title: str, replaced: dict[str, str]) -> str:
    """The first script below this title, with other folders and names in it."""
    section = PAGE.read_text(encoding="utf-8").split(f"\n## {title}\n")[1].split("\n## ")[0]
    text = section.split("```sh\n")[1].split("```")[0]
    for old, new in replaced.items():
        assert old in text
        text = text.replace(old, new)
    return text


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in which commands run that find `sttm`, and an `srun` that starts one task."""
    programs = tmp_path / "bin"
    programs.mkdir()
    python = shlex.join([sys.executable, "-m", "sttm_cli"])
    for name, what in (("sttm", f'{python} "$@"'), ("srun", '"$@"')):
        (programs / name).write_text(f"#!/bin/sh\nexec {what}\n")
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, paths)))
    monkeypatch.delenv("STTM_CACHE_DIR")
    monkeypatch.setenv("STTM_FRAMES", "2")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "rows"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_commands_of_a_shared_folder_make_one_that_is_used(machine: Path) -> None:
    cache = machine / "sttm"
    group = str(os.getgid())
    made = script("A shared folder", {"/data/sttm": str(cache), "chgrp team": f"chgrp {group}"})
    asked = f"{made}sttm precompute {ROOT / 'docs' / 'sample.mp4'} --json\n"
    done = subprocess.run(["bash", "-ec", asked], text=True, capture_output=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["done"] == 1
    assert "warning" not in done.stderr
    modes = {(path.is_dir(), oct(path.stat().st_mode & 0o7777)) for path in cache.rglob("*")}
    assert modes == {(True, "0o2770"), (False, "0o660")}
    assert len(list(cache.rglob("*.safetensors"))) == 1
    assert list((machine / "rows" / "sttm-shared").rglob("*"))


def reports(file: Path, tasks: list[int]) -> list[dict[str, Any]]:
    """What these tasks of the array report, run at the same time."""
    running = [
        subprocess.Popen(
            ["bash", str(file)],
            env={**os.environ, "SLURM_ARRAY_TASK_ID": str(task)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for task in tasks
    ]
    for task in running:
        _, err = task.communicate()
        assert task.returncode == 0, err
    return [json.loads(Path(f"shard-{task}.json").read_text()) for task in tasks]


def test_the_tasks_of_a_slurm_array_prepare_each_video_once(machine: Path) -> None:
    variants(machine / "clips", COUNT)
    folders = {"/data/clips": str(machine / "clips"), "/shared/sttm": str(machine / "cache")}
    fewer = {"--array=1-8": "--array=1-3", '/8"': '/3"'}
    text = script("SLURM", {**folders, **fewer, " -m llava-onevision-7b": ""})
    file = machine / "array.sh"
    file.write_text(text)
    said = reports(file, [1, 2, 3])
    assert sum(report["done"] for report in said) == COUNT
    assert sum(report["skipped"] for report in said) == 0
    assert len(list((machine / "cache").rglob("*.safetensors"))) == COUNT
    # One that is queued again has nothing left to do, nor has one without --shard.
    (again,) = reports(file, [3])
    assert (again["done"], again["skipped"]) == (0, said[2]["done"])
    file.write_text(re.sub(r'--shard "[^"]*"', "", text))
    (whole,) = reports(file, [1])
    assert (whole["done"], whole["skipped"]) == (0, COUNT)
