"""`python -m tests.attack`: all groups, with a seed; ends with 1 if a case failed."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path

from tests.attack.asking import Tried
from tests.attack.runner import GROUPS, run


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
    counts = []
    print(f"seed {given.seed}\n{'group':<12} {'tried':>7} {'failed':>7}", flush=True)
    for group in groups:
        with tempfile.TemporaryDirectory(prefix="sttm-attack-") as name:
            # Nothing of the user's own is read, written or asked.
            os.environ["STTM_CACHE_DIR"] = f"{name}/own-cache"
            os.environ["XDG_RUNTIME_DIR"] = name
            os.environ["XDG_CONFIG_HOME"] = name
            os.environ["HF_HUB_OFFLINE"] = "1"
            count = run(
                group,
                Path(name),
                seed=given.seed,
                most=given.cases,
                seconds=60 * given.minutes / len(groups),
                on_failed=show,
            )
        counts.append(count)
        print(count.line, flush=True)
    tried, failed = sum(c.tried for c in counts), sum(len(c.failed) for c in counts)
    print(f"{tried:,} cases, {failed:,} failed")
    return 1 if failed else 0


def show(tried: Tried) -> None:
    print(f"  failed: {tried.name}: {tried.problem.strip()[-400:]!r}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
