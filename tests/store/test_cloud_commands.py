"""The commands with a bucket as their cache, as a user runs them on several machines."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.cli.process import Ended, sttm, sttm_here
from tests.store.bucket import SECRET, Proxy

SAMPLE = Path(__file__).parents[2] / "docs" / "sample.mp4"
QUESTION = "how many shapes are there?"


def on(machine: Path, *arguments: object, **env: str) -> Ended:
    """Run a command on a machine, which is a folder of copies."""
    return sttm(*arguments, **{"STTM_CACHE_TIER": str(machine), **env})


def test_two_machines_share_what_one_of_them_computed(
    proxy: Proxy, address: str, tmp_path: Path
) -> None:
    at = ("--cache-dir", address, "--json")
    one, two = tmp_path / "one", tmp_path / "two"
    cold = on(one, "ask", SAMPLE, QUESTION, *at)
    assert (cold.code, cold.json["cache"]["hit"]) == (0, False), cold.err
    hit = on(two, "ask", SAMPLE, QUESTION, "--json", STTM_CACHE_DIR=address)
    assert hit.json["cache"]["hit"], hit.err
    assert hit.json["answers"] == cold.json["answers"]
    assert on(two, "precompute", SAMPLE, *at).json["skipped"] == 1
    (row,) = on(one, "cache", "ls", *at).json["entries"]
    assert (row["hits"], row["path"].startswith(address)) == (1, True)
    shown = on(one, "cache", "show", row["key"][:9], *at).json
    assert shown["identity"]["merge"]["budget"] == 0.5
    assert on(one, "cache", "verify", *at).json == {
        "schema": "sttm.verify/1",
        "checked": 1,
        "damaged": [],
    }
    refreshed = on(one, "ask", SAMPLE, QUESTION, "--refresh", *at)
    assert refreshed.json["cache"]["miss_reason"] == "recomputed, as --refresh asks"
    assert on(two, "ask", SAMPLE, QUESTION, *at).json["cache"]["hit"]
    assert len(on(two, "cache", "rm", row["key"], *at).json["removed"]) == 1
    assert on(one, "cache", "ls", *at).json["entries"] == []
    assert SECRET not in cold.err + hit.err + refreshed.err


def test_a_bucket_that_is_away_costs_a_note_and_not_the_answer(
    proxy: Proxy, address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sttm_cli.store.bucket.RETRY_S", 0.3)
    monkeypatch.setenv("STTM_CACHE_TIER", str(tmp_path / "tier"))
    proxy.status, proxy.times = 503, 10**6
    asked = sttm_here("ask", SAMPLE, QUESTION, "--cache-dir", address, "--no-server")
    assert (asked.code, asked.out) == (0, "three\n"), asked.err
    notes = [line for line in asked.err.splitlines() if line.startswith("warning:")]
    assert len(notes) == 2, asked.err
    assert "status 503" in notes[0]
    assert "not stored in" in notes[1]
    listed = sttm_here("cache", "ls", "--cache-dir", address)
    assert (listed.code, listed.out) == (1, "")
    prepared = sttm_here("precompute", SAMPLE, "--cache-dir", address)
    assert prepared.code == 1
    assert "nothing can be stored in s3://" in prepared.err


def test_doctor_says_whether_conditions_are_enforced_and_what_it_means(
    proxy: Proxy, address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STTM_CACHE_TIER", str(tmp_path / "tier"))
    well = sttm_here("doctor", "--cache-dir", address, "--json")
    checks = {check["name"]: check for check in well.json["checks"]}
    assert checks["cache"]["found"].startswith(address), well.err
    assert checks["conditional writes"]["problem"] is None
    assert str(tmp_path / "tier") in checks["conditional writes"]["found"]
    proxy.ignore = True
    said = sttm_here("doctor", "--cache-dir", address)
    assert said.code == 0
    assert "ignores them" in said.out
    assert "several machines may compute the same video" in said.out
    assert SECRET not in said.out + said.err + well.out + well.err


def test_credentials_of_a_profile_are_used_and_a_missing_one_is_said(
    proxy: Proxy, address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_REGION"):
        monkeypatch.delenv(name)
    (tmp_path / "credentials").write_text(
        f"[team]\naws_access_key_id = an-id-of-a-profile\naws_secret_access_key = {SECRET}\n"
    )
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("STTM_CACHE_TIER", str(tmp_path / "tier"))
    monkeypatch.setenv("AWS_PROFILE", "team")
    assert sttm_here("cache", "ls", "--cache-dir", address).code == 0
    assert any("an-id-of-a-profile" in line for line in proxy.signed)
    monkeypatch.setenv("AWS_PROFILE", "another")
    ended = sttm_here("cache", "ls", "--cache-dir", address)
    assert ended.code == 1
    assert "profile" in ended.err
    assert SECRET not in ended.err + ended.out


class _Roles(BaseHTTPRequestHandler):
    """Credentials of an instance's or a container's role, as AWS gives them."""

    def do_GET(self) -> None:
        if self.path == "/creds" and self.headers["Authorization"] != "a-container":
            self.send_error(403)
        elif self.path.endswith("/security-credentials/"):
            self._say("role")
        else:
            lasts = {"Code": "Success", "Expiration": "2099-01-01T00:00:00Z", "Token": "t"}
            self._say(
                json.dumps({"AccessKeyId": "id-of-a-role", "SecretAccessKey": SECRET} | lasts)
            )

    def do_PUT(self) -> None:
        self._say("a-session")

    def _say(self, text: str) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_: object) -> None:
        pass


@pytest.mark.parametrize("kind", ["container", "instance"])
def test_credentials_of_a_role_are_fetched_and_used(
    proxy: Proxy, address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("STTM_CACHE_TIER", str(tmp_path / "tier"))
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    with ThreadingHTTPServer(("127.0.0.1", 0), _Roles) as roles:
        threading.Thread(target=roles.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{roles.server_port}"
        if kind == "container":
            (tmp_path / "token").write_text("a-container")
            monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", f"{url}/creds")
            token = str(tmp_path / "token")
            monkeypatch.setenv("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", token)
        else:
            monkeypatch.setenv("AWS_METADATA_ENDPOINT", url)
        said = sttm_here("ask", SAMPLE, QUESTION, "--cache-dir", address, "--no-server")
        listed = sttm_here("cache", "ls", "--cache-dir", address, "--json")
        roles.shutdown()
    assert (said.code, said.out) == (0, "three\n"), said.err
    assert len(listed.json["entries"]) == 1
    assert proxy.signed
    assert all("id-of-a-role" in line for line in proxy.signed)
    assert SECRET not in said.err + listed.err


def test_without_the_extra_a_bucket_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "obstore.py").write_text("raise ImportError('no obstore', name='obstore')\n")
    paths = [str(tmp_path), str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]
    done = subprocess.run(
        [sys.executable, "-m", "sttm_cli", "cache", "ls", "--cache-dir", "s3://videos/x"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))},
    )
    assert done.returncode == 1
    assert done.stderr == (
        "sttm: a cache in a bucket needs what is not installed: obstore\n"
        "  python -m pip install obstore boto3\n"
    )


def test_a_bucket_is_measured_in_requests_and_left_empty(proxy: Proxy, address: str) -> None:
    from obstore.store import S3Store

    at = ("--cache-dir", address, "--json", "--quiet")
    ended = sttm_here("bench", "store", "--sizes", "2M", "--repeat", "2", *at)
    assert ended.code == 0, ended.err
    (row,) = ended.json["sizes"]
    miss, alone, first, copied = row["steps"]
    assert miss["sent"] >= row["bytes"]
    assert alone["received"] == first["received"] == row["bytes"]
    assert (copied["received"], copied["requests"]) == (0, {"GET": 1})
    bucket = S3Store("videos", client_options={"allow_http": True})
    assert bucket.list(address.removeprefix("s3://videos/")).collect() == []
