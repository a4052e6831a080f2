"""A bounded part of the attacks, the same cases each time; docs/security.md tells of the whole."""

from __future__ import annotations

from pathlib import Path

import pytest

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
