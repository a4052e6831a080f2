"""Coverage-guided fuzzing of what this package parses itself, with atheris.

`python -m tests.attack.fuzz [--minutes N] [--target T]` gives each target of `fuzz_targets.py` a
process and its share of the time. It ends with 1 where one raises anything but its documented
error, breaks what it promises, takes more than `LONGEST_S` for an input, or more than `MOST_MB`.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import random
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LONGEST_S = 10
"""For one input, on a machine that does other work as well."""
MOST_MB = 1024
"""Of a target's whole process."""
MOST_BYTES = 1 << 16
"""Of an input."""


@dataclass(frozen=True)
class Fuzzed:
    """The inputs that one target was given, and the reason why it failed; "" where it did not."""

    target: str
    tried: int
    problem: str = ""


def fuzz(
    target: str, folder: Path, *, seed: int, seconds: float, most: int | None = None
) -> Fuzzed:
    """Fuzz `target` for `seconds`, or with `most` inputs; what failed is left in `folder`."""
    corpus = folder / target
    corpus.mkdir(parents=True, exist_ok=True)
    command = [
        *(sys.executable, "-m", "tests.attack.fuzz", "--one", target, str(corpus)),
        f"-max_total_time={max(1, round(seconds))}",
        f"-runs={most or -1}",
        # libFuzzer takes 0 as "any".
        f"-seed={seed + 1}",
        f"-max_len={MOST_BYTES}",
        f"-timeout={LONGEST_S}",
        # Few changes at once: what differs much from anything valid ends at the first check.
        "-mutate_depth=2",
        f"-rss_limit_mb={MOST_MB}",
        f"-artifact_prefix={folder}/{target}-",
        "-print_final_stats=1",
    ]
    # A hang that libFuzzer's own clock does not end is ended here.
    patience = seconds + 12 * LONGEST_S
    try:
        ended = subprocess.run(command, capture_output=True, timeout=patience, check=False)
    except subprocess.TimeoutExpired as error:
        return Fuzzed(target, _tried((error.stderr or b"").decode(errors="replace")), "it hangs")
    out, report = ended.stdout.decode(errors="replace"), ended.stderr.decode(errors="replace")
    return Fuzzed(target, _tried(report), _problem(out, report) if ended.returncode else "")


def _tried(report: str) -> int:
    total = re.findall(r"stat::number_of_executed_units:\s*(\d+)", report)
    return int((total or re.findall(r"^#(\d+)\s", report, re.M) or ["0"])[-1])


def _problem(out: str, report: str) -> str:
    """The traceback on stdout, or libFuzzer's reason, and the input that led to it."""
    _, _, traceback = out.partition("=== Uncaught Python exception: ===")
    reason = [line for line in report.splitlines() if "ERROR: libFuzzer" in line]
    lines = [line for line in traceback.splitlines() if line.strip()] or reason
    given = re.findall(r"Test unit written to (\S+)", report)
    shown = [f"input {path}: {Path(path).read_bytes()[:200]!r}" for path in given[-1:]]
    return "\n".join([*(lines or report.splitlines()[-8:]), *shown])


def _one(name: str, corpus: Path, options: list[str]) -> None:
    """Run as the process of one target: never returns."""
    import atheris

    with atheris.instrument_imports(include=["sttm_cli", "tests.attack.fuzz_targets"]):
        from tests.attack import fuzz_targets

        target = {**fuzz_targets.TARGETS, **fuzz_targets.FAULTS}[name]()
    for number, seed in enumerate(target.seeds):
        (corpus / f"seed-{number}").write_bytes(seed)
    _without_a_voice()
    more: dict[str, Any] = {"custom_mutator": _mutated_json} if target.is_json else {}
    atheris.Setup([sys.argv[0], str(corpus), *options], target.run, **more)
    atheris.Fuzz()


def _without_a_voice() -> None:
    """What is fuzzed must not log a line for each input."""
    import logging

    logging.disable(logging.CRITICAL)


VALUES: tuple[Any, ...] = (
    None, True, 0, 1, -1, 2.5, 2**31, 2**40, 2**63, 10**30, 1e308, "", "x", "\0", "\ud800", "../x",
    "9" * 5000, "http://[", "data:video/mp4;base64,AAAA", [], [[]], {}, {"": {}},
)  # fmt: skip


def _mutated_json(data: bytes, most: int, seed: int) -> bytes:
    """One value of a JSON text replaced, doubled or removed, or bytes of it as any other text's."""
    import atheris

    rng = random.Random(seed)
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        value = None
    if value is None or rng.random() < 0.2:
        return bytes(atheris.Mutate(data, most))
    for _ in range(rng.choice((1, 1, 1, 2))):
        value = _changed(value, rng)
    return json.dumps(value).encode()[:most]


def _changed(value: Any, rng: random.Random) -> Any:
    if isinstance(value, dict) and value and rng.random() < 0.85:
        name = rng.choice(list(value))
        if rng.random() < 0.1:
            return {key: each for key, each in value.items() if key != name}
        return {**value, name: _changed(value[name], rng)}
    if isinstance(value, list) and value and rng.random() < 0.85:
        at = rng.randrange(len(value))
        if rng.random() < 0.1:
            return value[:at] + [value[at]] * rng.choice((0, 2, 99)) + value[at + 1 :]
        return [*value[:at], _changed(value[at], rng), *value[at + 1 :]]
    return rng.choice(VALUES)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.attack.fuzz", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0, help="for all targets together")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--target", action="append", help="only this; repeatable")
    parser.add_argument("--corpus", type=Path, help="kept there for the next run")
    given = parser.parse_args()
    if importlib.util.find_spec("atheris") is None:
        parser.error("atheris is not installed: pip install atheris (Linux on x86-64)")
    from tests.attack.fuzz_targets import FAULTS, TARGETS

    unknown = sorted(set(given.target or ()) - set(TARGETS) - set(FAULTS))
    if unknown:
        parser.error(f"there is no target {unknown[0]!r}; use {', '.join(TARGETS)}")
    targets = given.target or list(TARGETS)
    done = []
    with tempfile.TemporaryDirectory(prefix="sttm-fuzz-") as name:
        os.environ["STTM_CACHE_DIR"] = os.environ["XDG_RUNTIME_DIR"] = name
        for target in targets:
            seconds = 60 * given.minutes / len(targets)
            found = fuzz(target, given.corpus or Path(name), seed=given.seed, seconds=seconds)
            print(
                f"{target:<12} {found.tried:>12,} {'failed' if found.problem else ''}", flush=True
            )
            if found.problem:
                print("  " + found.problem.replace("\n", "\n  "), flush=True)
            done.append(found)
    failed = sum(bool(found.problem) for found in done)
    print(f"{sum(found.tried for found in done):,} inputs, {failed} targets failed")
    return 1 if failed else 0


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        _one(sys.argv[2], Path(sys.argv[3]), sys.argv[4:])
    sys.exit(main())
