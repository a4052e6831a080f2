"""A Ray cluster of two nodes that share nothing but the cache: other names, homes and copies."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.cli.process import sttm
from tests.installed import install
from tests.library.test_ray import (  # noqa: F401
    _STARTED,
    FEW,
    NODE,
    _ended,
    end_node,
    needs_ray,
    report_of,
    running_cluster,
    start,
    variants,
)
from tests.store.bucket import environment, moto

COUNT = 6
NAMED = """
import os, socket
if name := os.environ.get("NODE_NAME"):
    socket.gethostname = lambda: name
"""
"""A node's own name: both run on this machine."""
BOTH = """
import os, socket, time
from pathlib import Path
import torch
from sttm_cli.merge.groups import chosen, within_budget
from sttm_cli.merge.method import Method

def keep_first(features, count):
    # A video is computed as soon as one is on the other node too.
    if there := os.environ.get("STTM_TEST_BOTH"):
        (Path(there) / socket.gethostname()).touch()
        while len(os.listdir(there)) < 2:
            time.sleep(0.05)
    return chosen(features, torch.arange(count, device=features.device))

METHOD = Method("both", 1, within_budget(keep_first))
"""

pytestmark = [pytest.mark.long, pytest.mark.timeout(600)]


@pytest.fixture
def both(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is installed on all machines; nothing else is the same."""
    entry = "[sttm_cli.methods]\nboth = both:METHOD\n"
    there = install(tmp_path / "site", "both", BOTH, entry)
    (tmp_path / "site" / "sitecustomize.py").write_text(NAMED)
    monkeypatch.setenv("PYTHONPATH", there["PYTHONPATH"])
    # It would be sent to the workers, and be one folder for both here.
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("STTM_CACHE_DIR")
    (tmp_path / "begun").mkdir()


def home(folder: Path, name: str) -> dict[str, str]:
    """The variables of a machine of this name."""
    (folder / name).mkdir(exist_ok=True)
    return {"HOME": str(folder / name), "NODE_NAME": name}


@contextmanager
def two_nodes(folder: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """A cluster of the nodes "first" and "second", with one CPU each."""
    with running_cluster(folder, cpus=1, more=home(folder, "first")) as (address, needed):
        command = [*NODE, "--num-cpus=1", f"--address={address}", "--node-ip-address=127.0.0.1"]
        second = subprocess.Popen(
            command,
            env={**os.environ, **needed, **home(folder, "second")},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        _STARTED.append(second)
        try:
            yield address, needed
        finally:
            end_node(second)


def check_both_compute(folder: Path, cache: str) -> None:
    """A third machine has the two fill the cache: each computes, each video is stored once."""
    variants(folder / "videos", COUNT)
    with two_nodes(folder) as (address, needed):
        on = ("--on", f"ray://{address}", "--workers", "2-2", "--method", "both")
        env = {**needed, **home(folder, "third"), "STTM_TEST_BOTH": str(folder / "begun")}
        process = start(folder / "videos", *on, *FEW, "--cache-dir", cache, "--json", env=env)
        report, err = report_of(process)
    assert (report.get("done"), report.get("failed")) == (COUNT, []), (report, err)
    nodes = {node["node"]: node for node in report["nodes"]}
    assert set(nodes) == {"first", "second"}
    assert min(node["done"] for node in nodes.values()) >= 1
    assert sum(node["done"] for node in nodes.values()) == COUNT
    assert sum(node["bytes"] for node in nodes.values()) == report["bytes"]
    at = ("--cache-dir", cache, "--json")
    checked = sttm("cache", "verify", *at, **home(folder, "third")).json
    assert (checked["checked"], checked["damaged"]) == (COUNT, [])
    listed = sttm("cache", "ls", *at, **home(folder, "third")).json["entries"]
    assert len({entry["key"] for entry in listed}) == COUNT
    for number in (0, COUNT - 1):
        asked = ("ask", folder / "videos" / f"{number:02}.mp4", "how many?", *FEW)
        hit = sttm(*asked, "--method", "both", *at, **home(folder, "third")).json
        cold = sttm(*asked, "--method", "both", "--no-cache", "--json").json
        assert (hit["cache"]["hit"], cold["cache"]["hit"]) == (True, False)
        assert hit["answers"] == cold["answers"]


@needs_ray
@pytest.mark.skipif(
    any(find_spec(name) is None for name in ("obstore", "moto")),
    reason="not installed: pip install 'sttm-cli[cloud]' 'moto[server]'",
)
def test_two_nodes_share_a_bucket_and_keep_copies_of_their_own(
    tmp_path: Path, both: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    with moto() as port:
        for name, value in environment(f"http://127.0.0.1:{port}").items():
            monkeypatch.setenv(name, value)
        check_both_compute(tmp_path, "s3://videos/cache")
    kept = [
        len(list((tmp_path / name / ".cache" / "sttm-tier").rglob("*.safetensors")))
        for name in ("first", "second")
    ]
    assert min(kept) >= 1
    assert sum(kept) == COUNT


@needs_ray
def test_two_nodes_share_a_folder_of_a_group_and_keep_rows_of_their_own(
    tmp_path: Path, both: None
) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o2770)
    check_both_compute(tmp_path, str(shared))
    for name in ("first", "second", "third"):
        assert list((tmp_path / name / ".cache" / "sttm-shared").rglob("*"))
    assert not (shared / "index").exists()
    assert list((shared / "locks").iterdir()) == []
