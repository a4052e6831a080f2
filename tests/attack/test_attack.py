"""A bounded part of the attacks, the same cases each time; docs/security.md tells of the whole."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.attack.fuzz import fuzz
from tests.attack.runner import run

CASES = {
    "videos": 50,
    "artifacts": 40,
    "rows": 40,
    "checkpoints": 20,
    "requests": 100,
    "swaps": 18,
    "kills": 10,
    "disks": 10,
}
"""About two minutes in all, on two cores that have nothing else to do."""


@pytest.mark.parametrize("group", CASES)
def test_no_case_gives_a_wrong_answer_a_loss_a_crash_or_breaks_a_bound(
    group: str, tmp_path: Path
) -> None:
    if group in ("checkpoints", "requests"):
        pytest.importorskip(f"tests.attack.{group}")
    count = run(group, tmp_path, seed=1, most=CASES[group])
    assert count.failed == []
    assert count.tried == CASES[group]


def test_no_parser_fails_on_an_input_that_fuzzing_makes(tmp_path: Path) -> None:
    pytest.importorskip("atheris", reason="atheris has no wheel for this Python and machine")
    from tests.attack.fuzz_targets import TARGETS

    with ThreadPoolExecutor(2) as pool:
        tried = pool.map(lambda name: fuzz(name, tmp_path, seed=1, seconds=20, most=800), TARGETS)
        done = list(tried)
    assert [found for found in done if found.problem] == []
    assert min(found.tried for found in done) > 100


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


@pytest.mark.parametrize(("target", "code"), [("packets", 0), ("raises", 1), ("none", 2)])
def test_the_exit_code_of_fuzzing_tells_whether_something_failed(target: str, code: int) -> None:
    pytest.importorskip("atheris", reason="atheris has no wheel for this Python and machine")
    command = [sys.executable, "-m", "tests.attack.fuzz", "--minutes", "0.05", "--target", target]
    assert subprocess.run(command, capture_output=True, check=False).returncode == code
