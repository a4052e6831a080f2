"""`sttm eval paper` with lmms-eval itself, in its own environment, against our own server."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from platformdirs import user_data_path

import sttm_cli
from sttm_cli.base.errors import SttmError
from sttm_cli.bench.exam import Sheet
from sttm_cli.eval.paper import TASKS, Paper, _measured
from sttm_cli.eval.published import BENCHMARKS
from sttm_cli.eval.served import Served
from sttm_cli.settings.fields import Thresholds
from tests.cli.process import Ended, sttm, sttm_here
from tests.eval.benchmarks import write_benchmarks
from tests.eval.scenes import items, sheets, write_task

BUDGETS = ("1", "0.05")
pytestmark = pytest.mark.timeout(1200)


def paper(home: Path, *flags: object) -> Ended:
    return sttm("eval", "paper", *flags, timeout=1100, HF_HOME=str(home))


def own_task(tmp_path: Path, rows: list[dict[str, Any]]) -> tuple[object, ...]:
    """The flags of the task `scenes` with these items."""
    folder = tmp_path / "task"
    folder.mkdir()
    write_task(folder, rows)
    videos = Path(rows[0]["video"]).parent
    return "--tasks", "scenes", "--include-path", folder, "--allow-path", videos


def kept(suffix: str) -> list[Path]:
    return sorted((user_data_path("sttm") / "eval" / "paper").glob(f"*{suffix}"))


@pytest.mark.long
def test_lmms_eval_scores_as_bench_accuracy_does_on_the_same_items(
    tmp_path: Path, lmms: Path
) -> None:
    folder = tmp_path / "scenes"
    exam = ("--questions", 15, "--frames", 5, "--budgets", ",".join(BUDGETS), "--scenes", folder)
    bench = sttm_here("bench", "accuracy", *exam, "--methods", "sttm", "--json", "-q").json
    rows = items(sheets(folder, bench["videos"], seconds=5))
    assert bench["questions"]["all"] == len(rows)
    flags = own_task(tmp_path, rows)
    done = paper(tmp_path / "hf", *flags, "--budgets", ",".join(BUDGETS), "--json")
    assert done.code == 0, done.err
    ours = [100 * row["accuracy"]["value"] for row in bench["rows"]]
    assert ours[1] < ours[0]
    theirs = done.json["rows"]
    assert [row["accuracy"]["value"] for row in theirs] == pytest.approx(ours)
    assert [100 * row["lmms_eval"]["score"] for row in theirs] == pytest.approx(ours)
    assert [row["items"] for row in theirs] == [len(rows)] * 2
    full, less = (row["tokens"] for row in theirs)
    assert full["kept"] == full["full"] == less["full"]
    assert less["kept"] <= 0.05 * less["full"]
    for row in theirs:
        # Each video is prepared once; the other questions about it find it so.
        assert row["cache"]["hits"] == row["cache"]["questions"] - row["videos"]
        assert row["cache"]["saved_s"] > 0
        assert row["first_token_s"]["cached"] > 0
        assert row["first_token_s"]["computed"] > 0
        assert row["published"] is None


@pytest.mark.long
def test_thresholds_given_by_hand_are_served_and_shown_beside_a_budget(
    tmp_path: Path, lmms: Path, scenes: list[Sheet]
) -> None:
    rows = items(scenes)[:2]
    flags = (*own_task(tmp_path, rows), "--budgets", "1", "--thresholds", "0.5/0.50")
    chart = tmp_path / "chart.svg"
    done = paper(tmp_path / "hf", *flags, "--json", "--plot", chart)
    assert done.code == 0, done.err
    assert "serving tiny at thresholds 0.5/0.5" in done.err
    full, less = done.json["rows"]
    assert (full["budget"], full["thresholds"]) == (1.0, None)
    assert (less["budget"], less["thresholds"]) == (None, [0.5, 0.5])
    with sttm_cli.VideoQA(model="tiny", budget=1, method="sttm:0.5/0.5", fps=1) as qa:
        kept = [qa.ask(row["video"], row["question"]).tokens.video_kept for row in rows]
    assert less["tokens"]["kept"] == sum(kept) / 2 < full["tokens"]["kept"]
    assert "thresholds by hand" in chart.read_text()
    again = paper(tmp_path / "hf", *flags)
    assert "serving" not in again.err
    assert "0.5/0.5" in again.out
    assert "of which no rows are published" in again.out


@pytest.mark.long
def test_every_benchmark_is_read_in_its_own_format_and_asked(
    tmp_path: Path, lmms: Path, scenes: list[Sheet]
) -> None:
    home = tmp_path / "hf"
    write_benchmarks(home, lmms, scenes)
    chart = tmp_path / "chart.svg"
    done = paper(home, "--limit", 2, "--budgets", "0.3", "--plot", chart, "--json")
    assert done.code == 0, done.err
    rows = done.json["rows"]
    assert [row["task"] for row in rows] == [benchmark.task for benchmark in BENCHMARKS]
    assert [(row["items"], row["kept"]) for row in rows] == [(2, False)] * 6
    assert all(row["accuracy"] is not None for row in rows)
    assert all(row["tokens"]["kept"] <= 0.3 * row["tokens"]["full"] for row in rows)
    # Two videos, which have the same bytes everywhere, are computed once each.
    assert sum(row["cache"]["hits"] for row in rows) == 12 - 2
    assert done.json["averages"][0]["budget"] == 0.3
    assert chart.exists()
    again = paper(home, "--limit", 2, "--budgets", "0.3")
    assert again.code == 0
    assert "serving" not in again.err
    assert "LongVideoBench" in again.out


@pytest.mark.long
def test_killed_in_the_middle_it_leaves_nothing_running_and_goes_on_there(
    tmp_path: Path, lmms: Path, scenes: list[Sheet]
) -> None:
    rows = items(scenes)
    flags = [*own_task(tmp_path, rows), "--budgets", "0.3,0.05", "-m", "tiny", "--json"]
    command = [sys.executable, "-m", "sttm_cli", "eval", "paper", *map(str, flags)]
    env = {**os.environ, "HF_HOME": str(tmp_path / "hf")}
    process = subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL)
    try:
        waited(lambda: sum(p.read_bytes().count(b'{"key"') for p in kept(".journal")) > 2)
        below = psutil.Process(process.pid).children(recursive=True)
        assert below
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    waited(lambda: not any(map(lives, below)))
    (journal,) = kept(".journal")
    mark_first(journal)
    done = sttm(*command[3:], timeout=1100, HF_HOME=str(tmp_path / "hf"))
    assert done.code == 0, done.err
    answers = [item["answer"] for path in kept(".json") for item in stored(path)]
    assert answers.count("from the journal") == 1
    assert len(answers) == 2 * len(rows)
    assert kept(".journal") == kept(".log") == []


@pytest.mark.long
@pytest.mark.parametrize("task", ["videomme", "vnbench"])
def test_killed_in_the_middle_of_a_benchmark_in_its_own_format_it_goes_on_at_both_budgets(
    tmp_path: Path, lmms: Path, scenes: list[Sheet], task: str
) -> None:
    """Of parquet and of VNBench's JSON, at the second budget: the first one is kept, the second
    one's replies are taken from the journal, and only what is missing is asked."""
    home = tmp_path / "hf"
    write_benchmarks(home, lmms, scenes)
    flags = ["--tasks", task, "--budgets", "0.3,0.05", "-m", "tiny", "--json"]
    command = [sys.executable, "-m", "sttm_cli", "eval", "paper", *flags]
    below = killed(command, home, lambda: len(kept(".json")) == 1 and replies() > 0)
    assert below
    waited(lambda: not any(map(lives, below)))
    (first,), (journal,) = kept(".json"), kept(".journal")
    answered, before = replies(), first.read_bytes()
    rewrite(journal, lambda line: line["reply"]["choices"][0]["message"].update(content="kept"))
    done = sttm(*command[3:], timeout=1100, HF_HOME=str(home))
    assert done.code == 0, done.err
    count = len(scenes) * (4 if task == "vnbench" else 1)
    rows = done.json["rows"]
    assert [(row["budget"], row["items"], row["kept"]) for row in rows] == [
        (0.3, count, True),
        (0.05, count, False),
    ]
    assert "at budget 0.05" in done.err
    assert "at budget 0.3" not in done.err
    assert first.read_bytes() == before
    (second,) = [path for path in kept(".json") if path != first]
    answers = [item["answer"] for item in stored(second)]
    assert answers.count("kept") == answered
    assert all(item["served"] for item in stored(second))
    assert kept(".journal") == kept(".log") == []


def killed(command: list[str], home: Path, when: Callable[[], bool]) -> list[psutil.Process]:
    """Run a command until `when` and kill it; gives the processes that it had started."""
    env = {**os.environ, "HF_HOME": str(home)}
    process = subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL)
    try:
        waited(lambda: when() or process.poll() is not None)
        assert process.poll() is None, "it ended before it could be killed"
        return psutil.Process(process.pid).children(recursive=True)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()


def replies() -> int:
    return sum(path.read_bytes().count(b'{"key"') for path in kept(".journal"))


def rewrite(journal: Path, change: Callable[[dict[str, Any]], object]) -> None:
    lines = [json.loads(line) for line in journal.read_bytes().split(b"\n") if line]
    for line in lines:
        change(line)
    journal.write_bytes(b"".join(json.dumps(line).encode() + b"\n" for line in lines))


def lives(process: psutil.Process) -> bool:
    """Whether a process runs; one that has ended may wait for its parent."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def waited(happened: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 600
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def mark_first(journal: Path) -> None:
    """Make the first reply that is kept another, and cut the last one off."""
    lines = [line for line in journal.read_bytes().split(b"\n") if line]
    first = json.loads(lines[0])
    first["reply"]["choices"][0]["message"]["content"] = "from the journal"
    journal.write_bytes(b"\n".join([json.dumps(first).encode(), *lines[1:]])[:-9])


def stored(path: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(path.read_text())["items"]
    return found


@pytest.mark.long
def test_what_fails_is_said_and_not_kept_and_the_rest_goes_on(
    tmp_path: Path, lmms: Path, scenes: list[Sheet]
) -> None:
    forbidden = tmp_path / "else#where%41" / "a.mp4"
    forbidden.parent.mkdir()
    forbidden.write_bytes(scenes[0].path.read_bytes())
    rows = [*items(scenes)[:2], {**items(scenes)[0], "video": str(forbidden)}]
    flags = own_task(tmp_path, rows)
    done = paper(tmp_path / "hf", *flags, "--tasks", "vnbench,scenes", "--budgets", "0.3")
    assert done.code == 1
    assert "VNBench at 0.3: VNBench's annotations are missing" in done.err
    assert "1 of 3 questions were not answered, about a.mp4" in done.err
    assert "this server may not read that file" in done.err
    assert kept(".json") == []
    # With the folder named, only the one question is left to ask.
    allowed = paper(tmp_path / "hf", *flags, "--allow-path", forbidden.parent, "--budgets", "0.3")
    assert allowed.code == 0, allowed.err
    assert len(kept(".json")) == 1


def test_an_lmms_eval_that_ends_without_a_result_is_quoted(tmp_path: Path) -> None:
    # In this environment there is none.
    with sttm_cli.VideoQA(model="tiny", fps=1) as qa:
        benchmark, places = BENCHMARKS[1], {"data": tmp_path, "kept": tmp_path}
        work = Paper(qa.settings, qa.model_plan, (benchmark,), (0.3,), **places)
    served = Served("http://127.0.0.1:9", "key", "tiny")
    here = Path(sys.executable)
    with pytest.raises(SttmError, match=r"without a result for videomme: ModuleNotFoundError"):
        _measured(work, benchmark, 0.3, here, served, lambda *about: None)
    (log,) = tmp_path.glob("*.log")
    assert "Traceback" in log.read_text()


def test_a_measurement_is_kept_under_all_that_shapes_it(tmp_path: Path) -> None:
    changes: list[dict[str, Any]] = [
        {}, {"attention_sizes": "on"}, {"system": "answer in one word"}, {"merge_layer": 0},
        {"method": "tome"}, {"kv_dtype": "int8"}, {"decoder": "av"},
    ]  # fmt: skip
    places = set()
    for change in changes:
        with sttm_cli.VideoQA(model="tiny", **change) as qa:
            work = Paper(qa.settings, qa.model_plan, BENCHMARKS, (0.3,), tmp_path, tmp_path)
            places.add(work.place(BENCHMARKS[1], 0.3))
    pairs = [Thresholds(0.85, 0.6), Thresholds(0.85, 0.65)]
    places |= {work.place(BENCHMARKS[1], pair) for pair in pairs}
    assert len(places) == len(changes) + 2
    assert {place.parent for place in places} == {tmp_path}


@pytest.mark.long
def test_lmms_eval_knows_the_model_sttm(tmp_path: Path, lmms: Path, scenes: list[Sheet]) -> None:
    rows = items(scenes)
    flags = own_task(tmp_path, rows)
    env = {**os.environ, "HF_HOME": str(tmp_path / "hf"), "XDG_RUNTIME_DIR": str(tmp_path)}
    command = [lmms, "-P", "-m", "lmms_eval", "--model", "sttm", "--tasks", "scenes"]
    command += ["--model_args", "model=tiny,budget=0.05,frames=8", "--include_path", flags[3]]
    command += ["--output_path", tmp_path / "out", "--limit", "4"]
    done = subprocess.run(list(map(str, command)), env=env, capture_output=True, timeout=500)
    assert done.returncode == 0, done.stderr[-2000:]
    (found,) = (tmp_path / "out").rglob("*_results.json")
    score = json.loads(found.read_text())["results"]["scenes"]["scenes,none"]
    asked = "".join(f"{row['question']}\n" for row in rows[:4])
    told = [
        sttm_here("ask", row["video"], row["question"], "-b", "0.05", "-q").out.strip()
        for row in rows[:4]
    ]
    right = [one == row["answer"] for one, row in zip(told, rows, strict=False)]
    assert score == sum(right) / 4, (asked, done.stderr[-2000:])


def test_the_task_of_vnbench_is_in_the_package() -> None:
    assert {path.name for path in (TASKS / "vnbench").iterdir()} >= {"vnbench.yaml", "utils.py"}
