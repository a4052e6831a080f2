"""A cache of a group serves its members, each with a process of their own; any other is refused."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext
from pathlib import Path

import diskcache  # noqa: F401
import filelock  # noqa: F401
import pytest

from sttm_cli.store import LocalStore, key_of, pack
from tests.store.made import IDENTITY, kv, restored, same

Act = Callable[[int, int, Path, str], str]
GROUP, STRANGERS = 54_321, 54_322
ANN, BEN, EVE = 54_331, 54_332, 54_333

READABLE = all(
    folder.stat().st_mode & 0o001 for folder in (Path(sys.prefix), *Path(sys.prefix).parents)
)
pytestmark = pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() != 0 or not READABLE,
    reason="only root can act as several users, who must be able to read the environment",
)


@pytest.fixture(scope="module")
def processes() -> ForkServerContext:
    """Processes that begin as forks of one that has imported everything, while it can be read."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context


def acting(user: int, group: int, root: Path, what: str, out: Connection) -> None:
    """Become this user for good, and do it."""
    os.umask(0o077)
    os.setgroups([group])
    os.setgid(user)
    os.setuid(user)
    os.environ["XDG_CACHE_HOME"] = str(root.parent / f"home-{user}")
    seen: list[object] = []
    store = LocalStore(root, warn=lambda line: seen.append(f"warned: {line}"))
    seed = int(what[-1]) if what[-1].isdigit() else 0
    if what.startswith("save"):
        with store.computing(key_of(IDENTITY), on_wait=lambda: seen.append("waits")):
            entry = store.save(IDENTITY, pack(kv(seed)), label={"video": "v"})
            seen.append("saved" if entry else "not")
    elif what.startswith("read"):
        kept = restored(store)
        seen.append("missed" if kept is None else "same" if same(kept, kv(seed)) else "other")
    elif what == "ls":
        for entry in store.entries():
            store.count_use(entry, saved_s=1.0)
            seen.append(f"listed {entry.label['video']}")
    else:
        seen.append(f"removed {len(store.prune(0))}")
    out.send("\n".join(map(str, seen)))


@pytest.fixture
def act(processes: ForkServerContext) -> Act:
    """What a user of this number and group sees and does in a folder."""

    def act(user: int, group: int, root: Path, what: str) -> str:
        home = root.parent / f"home-{user}"
        if not home.exists():
            home.mkdir()
            os.chown(home, user, user)
        here, there = processes.Pipe()
        process = processes.Process(target=acting, args=(user, group, root, what, there))
        process.start()
        there.close()
        said = here.recv()
        process.join(120)
        assert process.exitcode == 0
        return said

    return act


@pytest.fixture
def shared() -> Iterator[Path]:
    """A folder that everybody can reach, in which the group's is."""
    import shutil
    import tempfile

    top = Path(tempfile.mkdtemp(prefix="sttm-group-"))
    top.chmod(0o755)
    root = top / "cache"
    root.mkdir()
    os.chown(root, ANN, GROUP)
    root.chmod(0o2770)
    yield root
    shutil.rmtree(top)


def test_each_member_reads_replaces_lists_and_removes_what_another_stored(
    shared: Path, act: Act
) -> None:
    assert act(ANN, GROUP, shared, "save") == "saved"
    assert act(BEN, GROUP, shared, "read") == "same"
    assert act(BEN, GROUP, shared, "ls") == "listed v"
    assert act(BEN, GROUP, shared, "save1") == "saved"
    assert act(ANN, GROUP, shared, "read1") == "same"
    modes = {(oct(path.stat().st_mode & 0o7777), path.stat().st_gid) for path in shared.rglob("*")}
    assert modes == {("0o2770", GROUP), ("0o660", GROUP)}
    assert not (shared / "index").exists()
    assert act(ANN, GROUP, shared, "prune") == "removed 1"
    assert act(BEN, GROUP, shared, "read") == "missed"


def test_whoever_is_not_a_member_gets_nothing_from_it(shared: Path, act: Act) -> None:
    act(ANN, GROUP, shared, "save")
    said = act(EVE, STRANGERS, shared, "read")
    assert said.endswith("missed")
    assert f"not a member of its group {GROUP}" in said


def test_a_folder_that_is_nearly_a_groups_is_refused_with_the_command_to_run(
    shared: Path, act: Act
) -> None:
    place = f"chmod 2770 {shared}"
    for mode in (0o770, 0o2775, 0o2777, 0o777):
        shared.chmod(mode)
        for user in (ANN, BEN):
            said = act(user, GROUP, shared, "save")
            assert said.endswith("not"), oct(mode)
            assert place in said, oct(mode)
    shared.chmod(0o2770)
    assert act(BEN, GROUP, shared, "save") == "saved"


def test_a_level_of_others_in_a_groups_cache_is_refused_with_the_commands_to_run(
    shared: Path, act: Act
) -> None:
    act(ANN, GROUP, shared, "save")
    os.chown(shared / "kv", ANN, ANN)
    said = act(BEN, GROUP, shared, "read")
    assert said.endswith("missed")
    assert f"belongs to another group: chgrp -R {GROUP} {shared}" in said
    command = said.split("another group: ")[1].splitlines()[0]
    subprocess.run(command, shell=True, check=True)
    assert act(BEN, GROUP, shared, "read") == "same"


def test_a_file_that_a_stranger_planted_is_not_used(shared: Path, act: Act) -> None:
    act(ANN, GROUP, shared, "save")
    (file,) = (shared / "kv").rglob("*.safetensors")
    os.chown(file, EVE, STRANGERS)
    file.chmod(0o664)
    said = act(BEN, GROUP, shared, "read")
    assert "it belongs to another group" in said
    assert said.endswith("missed")
    assert act(BEN, GROUP, shared, "save1") == "saved"
    assert act(ANN, GROUP, shared, "read1") == "same"
