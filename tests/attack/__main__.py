"""`python -m tests.attack`: all groups, with a seed; ends with 1 if a case failed."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
from pathlib import Path

from tests.attack.asking import Tried
from tests.attack.runner import GROUPS, Count, run


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.attack", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0, help="for all groups together")
    parser.add_argument("--seed", type=int, default=0, help="the same cases in the same order")
    parser.add_argument(
        "--group", choices=list(GROUPS), action="append", help="only this; repeatable"
    )
    parser.add_argument("--cases", type=int, help="at most so many of each group")
    given = parser.parse_args()
    groups = given.group or list(GROUPS)
    counts: list[Count] = []
    signal.signal(signal.SIGTERM, _ended)
    print(
        f"seed {given.seed}\n{'group':<12} {'tried':>7} {'failed':>7} {'time':>10} {'memory':>11}",
        flush=True,
    )
    try:
        _all(groups, given, counts)
    finally:
        tried, failed = sum(c.tried for c in counts), sum(len(c.failed) for c in counts)
        print(f"{tried:,} cases, {failed:,} failed", flush=True)
    return 1 if failed else 0


def _ended(number: int, frame: object) -> None:
    sys.exit(128 + number)


def _all(groups: list[str], given: argparse.Namespace, counts: list[Count]) -> None:
    """Run each group; its count is in `counts` from its begin, its line is printed at its end."""
    for group in groups:
        counts.append(Count(group))
        with tempfile.TemporaryDirectory(prefix="sttm-attack-") as name:
            # Nothing of the user's own is read, written or asked.
            os.environ["STTM_CACHE_DIR"] = f"{name}/own-cache"
            os.environ["XDG_RUNTIME_DIR"] = name
            os.environ["XDG_CONFIG_HOME"] = name
            os.environ["HF_HUB_OFFLINE"] = "1"
            try:
                run(
                    group,
                    Path(name),
                    seed=given.seed,
                    most=given.cases,
                    seconds=60 * given.minutes / len(groups),
                    on_failed=show,
                    count=counts[-1],
                )
            finally:
                print(counts[-1].line, flush=True)


def show(tried: Tried) -> None:
    print(f"  failed: {tried.name}: {tried.problem.strip()[-400:]!r}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
