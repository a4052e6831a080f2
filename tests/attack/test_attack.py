"""A bounded part of the attacks, the same cases each time; docs/security.md tells of the whole."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from tests.attack import runner
from tests.attack.fuzz import fuzz
from tests.attack.runner import run
from tests.attack.videos import differs
from tests.cli.process import Ended

CASES = {
    "videos": 50,
    "artifacts": 40,
    "rows": 40,
    "checkpoints": 20,
    "requests": 100,
    "swaps": 18,
    "kills": 10,
    "disks": 10,
    "pages": 150,
    "folders": 40,
}
"""About two minutes in all, on two cores that have nothing else to do."""


@pytest.mark.long
@pytest.mark.parametrize("group", CASES)
def test_no_case_gives_a_wrong_answer_a_loss_a_crash_or_breaks_a_bound(
    group: str, tmp_path: Path
) -> None:
    count = run(group, tmp_path, seed=1, most=CASES[group])
    assert count.failed == []
    assert count.tried == CASES[group]


@pytest.mark.parametrize(
    ("fault", "tried", "reason"),
    [
        ("hangs", 3, "no end after"),
        ("grows", 3, "of memory"),
        ("dies", 3, "exit code -9"),
        ("raises", 2, "ZeroDivisionError"),
        ("missing", 1, "ModuleNotFoundError"),
    ],
)
def test_a_group_that_hangs_grows_dies_or_is_missing_has_failed(
    fault: str, tried: int, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(runner.GROUPS, fault, f"faults:{fault}" if tried > 1 else fault)
    monkeypatch.setitem(runner.MOST_MB, fault, 512)
    # Of those that end their process, the third case is tried by another one.
    count = run(fault, tmp_path, seed=1, most=3, longest_s=5)
    assert count.tried == tried
    assert reason in count.failed[0].problem
    left = [process.cmdline() for process in psutil.Process().children(recursive=True)]
    assert [command for command in left if "spawn_main" in " ".join(command)] == []


def test_the_counts_so_far_are_printed_at_sigterm() -> None:
    command = [sys.executable, "-m", "tests.attack", "--group", "rows"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.stdout.readline()
        time.sleep(1)
        process.terminate()
        out = process.stdout.read()
    assert process.returncode == 143
    assert re.search(r"^rows +\d+ +0 ", out, re.M)
    assert re.search(r"^\d+ cases, 0 failed$", out, re.M)


@pytest.mark.long
def test_no_parser_fails_on_an_input_that_fuzzing_makes(tmp_path: Path) -> None:
    pytest.importorskip("atheris", reason="atheris has no wheel for this Python and machine")
    from tests.attack.fuzz_targets import TARGETS

    with ThreadPoolExecutor(2) as pool:
        tried = pool.map(lambda name: fuzz(name, tmp_path, seed=1, seconds=20, most=800), TARGETS)
        done = list(tried)
    assert [found for found in done if found.problem] == []
    assert min(found.tried for found in done) > 100


@pytest.mark.long
def test_fuzzing_reports_what_raises_hangs_or_takes_memory(tmp_path: Path) -> None:
    pytest.importorskip("atheris", reason="atheris has no wheel for this Python and machine")
    for fault, reason in {
        "raises": "ZeroDivisionError",
        "hangs": "timeout",
        "grows": "out-of-memory",
    }.items():
        found = fuzz(fault, tmp_path, seed=1, seconds=40)
        assert reason in found.problem
        assert "input" in found.problem


@pytest.mark.long
@pytest.mark.parametrize(("target", "code"), [("packets", 0), ("raises", 1), ("none", 2)])
def test_the_exit_code_of_fuzzing_tells_whether_something_failed(target: str, code: int) -> None:
    pytest.importorskip("atheris", reason="atheris has no wheel for this Python and machine")
    command = [sys.executable, "-m", "tests.attack.fuzz", "--minutes", "0.05", "--target", target]
    assert subprocess.run(command, capture_output=True, check=False).returncode == code


def test_a_second_answer_that_is_not_the_first_ones_is_a_failure() -> None:
    def ended(answer: str, *, hit: bool = True, code: int = 0, err: str = "") -> Ended:
        video = {"digest": "d", "duration_s": 1.0, "frame_times_s": [0.0]}
        report = {"answers": [{"answer": answer}], "tokens": {}, "video": video}
        return Ended(code, json.dumps({**report, "cache": {"hit": hit}}), err)

    cold = ended("two", hit=False)
    assert differs(cold, ended("two")) == ""
    assert "another answer" in differs(cold, ended("three"))
    assert "was not stored" in differs(cold, ended("two", hit=False))
    assert differs(ended("two", err="it is not stored"), ended("two", hit=False)) == ""
    assert "exit code 3 after 0" in differs(cold, ended("", code=3))
    assert differs(ended("", code=3), ended("", code=3)) == ""
