"""A library prepared by a Ray cluster: real processes, started here, some of them killed."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psutil
import pytest
from PIL import Image

from sttm_cli.base.errors import SttmError, UsageError
from sttm_cli.library import runners
from sttm_cli.library.runners import check_runner
from sttm_cli.settings.settings import Settings
from tests.cli.process import sttm, sttm_here
from tests.installed import install

SAMPLE = Path(__file__).parents[2] / "docs" / "sample.mp4"
FEW = ("--frames", "2")
RAY = ("--on", "ray", "--workers", "2")

NODE = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block"]
NODE += ["--object-store-memory=80000000"]
PATIENCE_S = 540
"""On a machine that is busy with other work a cluster takes minutes to start."""
pytestmark = pytest.mark.timeout(600)

needs_ray = pytest.mark.skipif(
    find_spec("ray") is None or find_spec("pyarrow") is None,
    reason="the extra is not installed: pip install 'sttm-cli[ray]'",
)

DEADLY = """
import os, signal
from sttm_cli.merge.groups import chosen, within_budget
from sttm_cli.merge.method import Method
import torch

def keep_first(features, count):
    if features.shape[0] == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return chosen(features, torch.arange(count, device=features.device))

METHOD = Method("deadly", 1, within_budget(keep_first))
"""


def variants(folder: Path, count: int) -> list[Path]:
    """Videos with the same frames and different bytes."""
    folder.mkdir()
    paths = [folder / f"{number:02}.mp4" for number in range(count)]
    for number, path in enumerate(paths):
        path.write_bytes(SAMPLE.read_bytes() + b"\0" * number)
    return paths


def start(*arguments: object, env: dict[str, str] | None = None) -> subprocess.Popen[str]:
    """The command as a terminal starts it: in a process group of its own."""
    process = subprocess.Popen(
        [sys.executable, "-m", "sttm_cli", "precompute", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **(env or {})},
        start_new_session=True,
    )
    _STARTED.append(process)
    return process


_STARTED: list[subprocess.Popen[Any]] = []


@pytest.fixture(autouse=True)
def _ended() -> Iterator[None]:
    """Nothing that a test started outlives it: Ray's processes end with the command."""
    yield
    while _STARTED:
        if (process := _STARTED.pop()).poll() is None:
            process.kill()
            process.wait()


def report_of(process: subprocess.Popen[str]) -> tuple[dict[str, Any], str]:
    """The report on stdout, which is all of it, and stderr."""
    out, err = process.communicate(timeout=PATIENCE_S)
    assert out, err
    report: dict[str, Any] = json.loads(out)
    return report, err


def check_stored_once(count: int) -> None:
    """Every video is in the cache, once and whole."""
    kept = list(Path(os.environ["STTM_CACHE_DIR"]).rglob("*.safetensors"))
    assert len(kept) == count
    assert not list(Path(os.environ["STTM_CACHE_DIR"]).rglob("*.part"))
    assert sttm_here("cache", "verify").code == 0


def keys_in(cache: Path) -> set[str]:
    """The keys of what is stored."""
    return {path.stem for path in cache.rglob("*.safetensors")}


def check_as_alone(videos: list[Path], *flags: str, env: dict[str, str] | None = None) -> None:
    """The cache holds what one process alone stores in an empty one, and gives the answers that
    are given without a cache."""
    shared, cold = Path(os.environ["STTM_CACHE_DIR"]), videos[0].parent.parent / "cold"
    alone = {**(env or {}), "STTM_CACHE_DIR": str(cold)}
    assert sttm("precompute", *videos, *flags, "--json", **alone).json["done"] == len(videos)
    assert keys_in(shared) == keys_in(cold)
    for video in (videos[0], videos[-1]):
        ask = ("ask", video, "how many?", "what happens?", *flags, "--json")
        hit, computed = sttm(*ask, **(env or {})).json, sttm(*ask, "--no-cache", **(env or {})).json
        assert (hit["cache"]["hit"], computed["cache"]["hit"]) == (True, False)
        assert hit["answers"] == computed["answers"]


def workers_of(process: subprocess.Popen[str]) -> Iterator[psutil.Process]:
    """The cluster's processes that prepare videos."""
    for child in psutil.Process(process.pid).children(recursive=True):
        try:
            if "MapWorker" in " ".join(child.cmdline()):
                yield child
        except psutil.Error:
            continue


def free_port() -> int:
    """A port on which nobody listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@contextmanager
def running_cluster(
    folder: Path, *, cpus: int = 2, more: dict[str, str] | None = None
) -> Iterator[tuple[str, dict[str, str]]]:
    """A cluster as `ray start --head` makes it, its address, and the variables that it needs.

    `cpus` and `more`: CPUs and variables of this node.
    """
    port, other = free_port(), free_port()
    (folder / "token").touch(mode=0o600)
    (folder / "token").write_text(secrets.token_hex(32))
    short = tempfile.mkdtemp(prefix="sttm-", dir="/tmp")
    environment = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(folder / "token")}
    command = [*NODE, f"--num-cpus={cpus}", "--head", "--disable-usage-stats"]
    command += [f"--port={port}", f"--temp-dir={short}", "--node-ip-address=127.0.0.1"]
    command += ["--include-dashboard=false"]
    if find_spec("grpc"):
        # Only then there is such a server, on a fixed port.
        command += [f"--ray-client-server-port={other}"]
    head = subprocess.Popen(
        command,
        env={**os.environ, **environment, **(more or {})},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    _STARTED.append(head)
    try:
        while head.poll() is None:
            with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                break
            time.sleep(0.2)
        assert head.poll() is None, "ray start ended"
        yield f"127.0.0.1:{port}", environment
    finally:
        end_node(head)
        shutil.rmtree(short, ignore_errors=True)


def end_node(node: subprocess.Popen[bytes]) -> None:
    """End what `ray start --block` started."""
    if node.poll() is not None:
        return
    # Asked to end, Ray would first wait for half a minute.
    for process in [*psutil.Process(node.pid).children(recursive=True), node]:
        with suppress(psutil.NoSuchProcess):
            process.kill()


@pytest.mark.long
@needs_ray
def test_a_cluster_prepares_a_library_and_does_only_what_is_missing_the_next_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    videos = variants(tmp_path / "videos", 3)
    odd = Path(os.fsdecode(os.fsencode(tmp_path) + b"/videos/caf\xe9.mp4"))
    shutil.copy(videos[0], odd)
    (tmp_path / "videos" / "broken.mp4").write_text("no video")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("STTM_CACHE_DIR", "cache")
    report, err = report_of(start("videos", *RAY, *FEW, "--json"))
    assert (report["done"], report["skipped"]) == (3, 1), err
    # Where both workers take the twins at once, one of them waits and then finds the entry.
    assert report["skipped_same_bytes"] <= 1
    (failed,) = report["failed"]
    assert failed["path"] == "videos/broken.mp4"
    assert failed["error"].startswith("videos/broken.mp4 is not a video")
    (node,) = report["nodes"]
    assert (node["done"], node["skipped"], node["failed"]) == (3, 1, 1)
    assert node["bytes"] == report["bytes"] > 0
    # Nothing but this program speaks.
    lines = err.splitlines()
    assert lines[0].startswith("Ray: 2 workers on 1 node with ")
    assert len(lines) in (7, 8), err
    check_stored_once(3)
    local = sttm_here("precompute", "videos", *FEW, "--json").json
    assert (local["done"], local["skipped"]) == (0, 4)
    videos[1].write_bytes(SAMPLE.read_bytes() + b"another")
    with running_cluster(tmp_path) as (address, environment):
        on = ("--on", f"ray://{address}", "--workers", "1-2")
        again, err = report_of(start("videos", *on, *FEW, "--json", env=environment))
        assert (again["done"], again["skipped"]) == (1, 3), err


@pytest.mark.long
@needs_ray
def test_the_videos_of_killed_workers_are_done_by_others_and_a_deadly_one_fails_alone(
    tmp_path: Path,
) -> None:
    videos = variants(tmp_path / "videos", 40)
    Image.new("RGB", (64, 64), "red").save(tmp_path / "videos" / "deadly.gif")
    entry = "[sttm_cli.methods]\ndeadly = deadly:METHOD\n"
    there = install(tmp_path / "site", "deadly", DEADLY, entry)
    process = start(tmp_path / "videos", *RAY, *FEW, "--method", "deadly", "--json", env=there)
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("[3/"):
            break
    next(workers_of(process)).send_signal(signal.SIGKILL)
    report, err = report_of(process)
    # A video may be stored by a worker that was killed before it said so.
    assert report["done"] + report["skipped"] == 40, err
    assert report["skipped"] <= 1
    (failed,) = report["failed"]
    assert failed["path"] == str(tmp_path / "videos" / "deadly.gif")
    assert "3 workers ended while they worked on it" in failed["error"]
    check_stored_once(40)
    check_as_alone(videos, *FEW, "--method", "deadly", env=there)


@pytest.mark.long
@needs_ray
def test_two_clusters_at_once_store_each_video_once(tmp_path: Path) -> None:
    videos = variants(tmp_path / "videos", 8)
    both = [start(tmp_path / "videos", "--on", "ray", *FEW, "--json") for _ in range(2)]
    reports = [report_of(process)[0] for process in both]
    assert sum(report["done"] for report in reports) == 8
    assert sum(report["skipped"] for report in reports) == 8
    check_stored_once(8)
    check_as_alone(videos, *FEW)


@pytest.mark.long
@needs_ray
def test_ctrl_c_ends_the_cluster_and_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    short = Path("/tmp") / f"sttm-test-{os.getpid()}"
    short.mkdir()
    monkeypatch.setenv("TMPDIR", str(short))
    try:
        variants(tmp_path / "videos", 30)
        process = start(tmp_path / "videos", *RAY, *FEW)
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith("[2/"):
                break
        family = psutil.Process(process.pid).children(recursive=True)
        # As a terminal does it: to all processes of the group.
        os.killpg(process.pid, signal.SIGINT)
        _, err = process.communicate(timeout=PATIENCE_S)
        assert process.returncode == 130, err
        assert "done before it was interrupted" in err
        assert "Traceback" not in err
        _, alive = psutil.wait_procs(family, timeout=120)
        assert alive == []
        assert list(short.iterdir()) == []
    finally:
        shutil.rmtree(short, ignore_errors=True)
    again = sttm_here("precompute", tmp_path / "videos", *FEW, "--json").json
    assert again["skipped"] >= 2
    check_stored_once(30)


# ---- without a cluster


def test_without_ray_the_hint_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runners, "find_spec", lambda name: None)
    with pytest.raises(SttmError, match="not installed: ray") as raised:
        check_runner("ray://head:6379")
    assert raised.value.hint == "python -m pip install 'ray[data]'"
    check_runner("local")


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--workers", "2"], "--workers and --on local"),
        (["--on", "ray", "--workers", "3-2"], "--workers '3-2'"),
        (["--on", "ray", "--workers", "0"], "--workers '0'"),
        (["--on", "ray", "--device", "cuda:1"], "--device cuda:1 and --on ray"),
        (["--on", "local://x"], "--on 'local://x'"),
    ],
)
def test_what_cannot_be_combined_is_a_usage_error(
    flags: list[str], named: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runners, "find_spec", lambda name: name)
    ended = sttm_here("precompute", SAMPLE, *FEW, *flags)
    assert ended.code == 2, ended.err
    assert named in ended.err


@needs_ray
def test_a_cluster_that_is_not_there_is_an_error_at_once() -> None:
    from sttm_cli.library.ray_cluster import connected

    with (
        pytest.raises(SttmError, match=r"cluster at 127\.0\.0\.1:1 cannot be reached") as raised,
        connected("127.0.0.1:1", workers=None, debug=False),
    ):
        pass
    assert "6379" in raised.value.hint
    with (
        pytest.raises(UsageError, match="cannot be used"),
        connected("ray://head:10001", workers=None, debug=False),
    ):
        pass


@pytest.fixture
def order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """An order for a worker in this process."""
    pytest.importorskip("pyarrow", reason="pip install 'sttm-cli[ray]'")
    from sttm_cli.library.ray import _order
    from sttm_cli.runtime.session import VideoQA

    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.setenv("STTM_BUDGET", "0.4")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hidden")
    from dataclasses import replace

    settings = Settings(frames=2, cache_dir=tmp_path / "cache")
    with VideoQA(settings) as qa, qa.store.sign() as sign:
        assert sign
        yield replace(_order(qa, sign), scratch=str(tmp_path))


def prepared(worker: Any, *videos: Path) -> list[dict[str, Any]]:
    import pyarrow as pa

    rows = [{"number": n, "video": os.fsencode(video)} for n, video in enumerate(videos)]
    found: list[dict[str, Any]] = worker(pa.Table.from_pylist(rows)).to_pylist()
    return found


def test_a_row_has_all_that_is_known_of_a_video_and_is_given_again(order: Any) -> None:
    from sttm_cli.library.ray_worker import Ledger, Worker

    ledger = Ledger(1 << 30)
    (row, missing) = prepared(Worker(order, ledger), SAMPLE, Path("/nowhere.mp4"))
    assert row["outcome"] == "computed"
    assert row["path"] == str(SAMPLE)
    assert row["node"]
    assert len(row["digest"]) == len(row["key"]) == 64
    assert row["bytes"] > 0
    assert json.loads(row["seconds"])["decode"] > 0
    assert "torch" in json.loads(row["versions"])
    assert (missing["outcome"], missing["error"]) == ("failed", "there is no file /nowhere.mp4")
    # Another worker of the run is given the same block after this one was killed.
    (again,) = prepared(Worker(order, ledger), SAMPLE)
    assert again == row
    (later,) = prepared(Worker(order, Ledger(1 << 30)), SAMPLE)
    assert (later["outcome"], later["key"], later["digest"]) == (
        "skipped",
        row["key"],
        row["digest"],
    )


def test_settings_and_environment_reach_a_worker_and_secrets_do_not(order: Any) -> None:
    assert order.settings.frames == 2
    assert Path(order.settings.cache_dir).is_absolute()
    assert order.environment["STTM_BUDGET"] == "0.4"
    assert not [name for name in order.environment if "SECRET" in name]


def test_workers_stop_together_before_the_bound(order: Any, tmp_path: Path) -> None:
    from sttm_cli.library.ray_worker import Ledger, Worker

    videos = variants(tmp_path / "videos", 3)
    ledger = Ledger(450_000)
    one, other = Worker(order, ledger), Worker(order, ledger)
    (first, second) = prepared(one, *videos[:2])
    assert (first["outcome"], second["outcome"]) == ("computed", "computed")
    import pyarrow as pa

    row = [{"number": 2, "video": os.fsencode(videos[2])}]
    (third,) = other(pa.Table.from_pylist(row)).to_pylist()
    assert third["outcome"] == "stopped"
    assert "--max-bytes" in third["reason"]


def test_a_node_with_another_cache_or_version_can_do_nothing(order: Any, tmp_path: Path) -> None:
    from dataclasses import replace

    from sttm_cli.library.ray_worker import Ledger, Worker

    elsewhere = replace(order, settings=replace(order.settings, cache_dir=tmp_path / "another"))
    (row,) = prepared(Worker(elsewhere, Ledger(1 << 30)), SAMPLE)
    assert (row["outcome"], row["reason"]) == ("unable", "cache")
    assert "is not the cache of the machine that asks" in row["error"]
    older = replace(order, version="0.0.1")
    (row,) = prepared(Worker(older, Ledger(1 << 30)), SAMPLE)
    assert row["outcome"] == "unable"
    assert "0.0.1" in row["error"]
