"""`sttm models pull` from a hub on this machine: whole, resumed, and refused before the weights."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.cli.process import Ended

COMMIT, LARGE = "1" * 40, "tokenizer.model"


class Hub(ThreadingHTTPServer):
    """One model, the files of `folder`; the first `broken` answers with LARGE end half-way."""

    def __init__(self, folder: Path, broken: int = 0) -> None:
        super().__init__(("127.0.0.1", 0), _Files)
        self.folder, self.broken = folder, broken
        self.ranges: list[str] = []
        self.sent: list[str] = []


class _Files(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._file(body=False)

    def do_GET(self) -> None:
        if self.path.startswith("/api/"):
            names = sorted(path.name for path in self.server.folder.iterdir() if path.is_file())
            listed = [
                {"type": "file", "path": n, "rfilename": n, "oid": "0" * 40,
                 "size": (self.server.folder / n).stat().st_size}
                for n in names
            ]  # fmt: skip
            whole = {"id": "own/model", "sha": COMMIT, "siblings": listed}
            self._send(200, json.dumps(listed if "/tree/" in self.path else whole).encode(), {})
        else:
            self._file(body=True)

    def _file(self, *, body: bool) -> None:
        path = self.server.folder / self.path.split("?")[0].rsplit("/", 1)[-1]
        if not path.is_file():
            self._send(404, b"", {"X-Error-Code": "EntryNotFound"})
            return
        data = path.read_bytes()
        facts = {"ETag": f'"{hashlib.sha1(data).hexdigest()}"', "X-Repo-Commit": COMMIT}
        if not body:
            self._send(200, data, facts, head=True)
            return
        self.server.sent.append(path.name)
        status = 200
        if asked := self.headers.get("Range"):
            start = int(asked.removeprefix("bytes=").split("-")[0])
            self.server.ranges.append(asked)
            facts["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
            data, status = data[start:], 206
        if path.name == LARGE and self.server.broken:
            self.server.broken -= 1
            self._send(status, data, facts, sent=len(data) // 2)
            self.close_connection = True
            return
        self._send(status, data, facts)

    def _send(
        self, status: int, data: bytes, facts: dict[str, str], *, head: bool = False, sent: int = -1
    ) -> None:
        self.send_response(status)
        for name, value in {**facts, "Content-Length": str(len(data))}.items():
            self.send_header(name, value)
        self.end_headers()
        if not head:
            self.wfile.write(data if sent < 0 else data[:sent])

    def log_message(self, *given: object) -> None:
        """Quiet."""


@pytest.fixture
def hub(random_model: Path) -> Iterator[Hub]:
    with Hub(random_model) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def pull(hub: Hub, home: Path, *flags: str) -> Ended:
    env = {k: v for k, v in os.environ.items() if k != "HF_HUB_OFFLINE"}
    env |= {
        "HF_ENDPOINT": f"http://127.0.0.1:{hub.server_port}",
        "HF_HOME": str(home),
        "HF_HUB_DISABLE_XET": "1",
        "NO_PROXY": "127.0.0.1",
    }
    done = subprocess.run(
        [sys.executable, "-m", "sttm_cli", "models", "pull", "own/model", *flags],
        capture_output=True,
        text=True,
        env=env,
        timeout=240,
    )
    return Ended(done.returncode, done.stdout, done.stderr)


def test_a_model_is_fetched_whole_and_not_again(
    hub: Hub, tmp_path: Path, random_model: Path
) -> None:
    first = pull(hub, tmp_path, "--json")
    assert first.code == 0, first.err
    found = first.json
    assert (found["schema"], found["repository"]) == ("sttm.models.pull/1", "own/model")
    folder, weights = Path(found["folder"]), "model.safetensors"
    assert (folder / weights).read_bytes() == (random_model / weights).read_bytes()
    assert found["bytes"] == (random_model / weights).stat().st_size
    assert "fetching own/model" in first.err
    sent = list(hub.sent)
    assert pull(hub, tmp_path).code == 0
    assert hub.sent == sent


def test_what_broke_off_goes_on_where_it_was(hub: Hub, tmp_path: Path, random_model: Path) -> None:
    whole = os.urandom(24 << 20)  # the hub's library writes pieces of 10 MiB
    hub.folder = Path(shutil.copytree(random_model, tmp_path / "large"))
    (hub.folder / LARGE).write_bytes(whole)
    hub.broken = 1
    ended = pull(hub, tmp_path / "home")
    if ended.code:  # the hub's library may give up; the same command goes on
        ended = pull(hub, tmp_path / "home")
    assert ended.code == 0, ended.err
    folder = Path(ended.out.strip())
    assert (folder / LARGE).read_bytes() == whole
    assert [int(asked.removeprefix("bytes=")[:-1]) > 0 for asked in hub.ranges] == [True]


def test_a_model_of_another_kind_is_refused_before_its_weights(tmp_path: Path) -> None:
    folder = tmp_path / "other"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "bert"}')
    (folder / "model.safetensors").write_bytes(bytes(1000))
    with Hub(folder) as hub:
        threading.Thread(target=hub.serve_forever, daemon=True).start()
        ended = pull(hub, tmp_path / "home")
        hub.shutdown()
    assert (ended.code, ended.out) == (4, "")
    assert "is of type 'bert', which is not supported" in ended.err
    assert hub.sent == ["config.json"]
