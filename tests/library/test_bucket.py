"""Videos that are objects of a bucket, on a server of this machine that speaks S3 (moto)."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from urllib.request import Request, urlopen

import pytest

from sttm_cli.base.errors import DisturbedError, SttmError, UsageError, VideoError
from sttm_cli.decode import bucket
from sttm_cli.library.outcome import Computed, Skipped
from sttm_cli.library.paths import find_videos
from sttm_cli.library.prepare import look, prepare_with
from sttm_cli.runtime.session import VideoQA
from tests.cli.process import sttm_here
from tests.library.test_ray import RAY, _ended, needs_ray, report_of, start  # noqa: F401

SAMPLE = Path(__file__).parents[2] / "docs" / "sample.mp4"
FEW = ("--frames", "2")

pytestmark = pytest.mark.timeout(600)

needs_bucket = pytest.mark.skipif(
    any(find_spec(name) is None for name in ("obstore", "boto3", "moto")),
    reason="not installed: pip install 'sttm-cli[cloud]' 'moto[server]'",
)


class Bucket:
    """The bucket `videos`, filled and changed through a client of its own."""

    def __init__(self, endpoint: str) -> None:
        import boto3

        self.s3 = boto3.client("s3", endpoint_url=endpoint, region_name="us-east-1")
        self.s3.create_bucket(Bucket="videos")

    def put(self, key: str, data: bytes = b"") -> None:
        self.s3.put_object(Bucket="videos", Key=key, Body=data or SAMPLE.read_bytes())


@pytest.fixture
def there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bucket]:
    """The bucket, and an environment by which it is found."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    endpoint = "http://{}:{}".format(*server.get_host_and_port())
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test-secret")
    bucket._client.cache_clear()
    try:
        # What earlier tests of this process put there.
        urlopen(Request(f"{endpoint}/moto-api/reset", method="POST")).close()
        yield Bucket(endpoint)
    finally:
        server.stop()
        bucket._client.cache_clear()


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where copies are kept while they are used."""
    folder = tmp_path / "scratch"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@pytest.fixture
def fetched(scratch: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The addresses of what was fetched."""
    addresses, fetch = list[str](), bucket.fetch

    def noting(found: bucket.Object, *args: object, **named: object) -> None:
        addresses.append(found.address)
        assert len(list(scratch.glob("sttm-*"))) <= 4
        fetch(found, *args, **named)  # type: ignore[arg-type]

    monkeypatch.setattr("sttm_cli.decode.source.fetch", noting)
    return addresses


def found(*given: str) -> list[str]:
    return [str(video) for video in find_videos(given).videos]


@needs_bucket
def test_objects_are_found_as_files_are(there: Bucket) -> None:
    for key in ("a.mp4", "b.MOV", "notes.txt", "sub/c.mp4", "sub/er/d.mp4", ".e.mp4", "[1].mp4"):
        there.put(key, b"x")
    root = "s3://videos"
    assert found(f"{root}/*.mp4") == [f"{root}/[1].mp4", f"{root}/a.mp4"]
    assert found(f"{root}/**/*.mp4") == [
        f"{root}/{key}" for key in ("[1].mp4", "a.mp4", "sub/c.mp4", "sub/er/d.mp4")
    ]
    assert found(f"{root}/sub/*") == [f"{root}/sub/c.mp4"]
    assert found(f"{root}/s?b/**") == [f"{root}/sub/c.mp4", f"{root}/sub/er/d.mp4"]
    assert len(found(root)) == len(found(f"{root}/")) == 5
    assert found(f"{root}/sub/") == [f"{root}/sub/c.mp4", f"{root}/sub/er/d.mp4"]
    assert found(f"{root}/notes.txt", f"{root}/notes.txt") == [f"{root}/notes.txt"]
    # A list's names are never patterns.
    assert find_videos([], [f"{root}/[1].mp4"]).videos == [f"{root}/[1].mp4"]
    with pytest.raises(UsageError, match="no video found"):
        found(f"{root}/*.avi")


@needs_bucket
def test_more_objects_than_a_page_of_the_listing_are_all_found(
    there: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bucket, "PAGE", 4)
    for number in range(10):
        there.put(f"many/{number}.mp4", b"x")
    assert len(found("s3://videos/many/*.mp4")) == 10


@needs_bucket
def test_objects_are_prepared_their_copies_removed_and_nothing_fetched_again(
    there: Bucket, scratch: Path, fetched: list[str]
) -> None:
    for number in range(7):
        there.put(f"{number}.mp4", SAMPLE.read_bytes() + b"\0" * number)
    there.put("same.mp4")
    there.put("broken.mp4", b"no video")
    report = sttm_here("precompute", "s3://videos/*.mp4", *FEW, "--json").json
    assert (report["done"], report["skipped_same_bytes"]) == (7, 1)
    (failed,) = report["failed"]
    assert failed["path"] == "s3://videos/broken.mp4"
    assert failed["error"].startswith("s3://videos/broken.mp4 is not a video")
    assert len(fetched) == 9
    assert list(scratch.glob("sttm-*")) == []
    fetched.clear()
    again = sttm_here("precompute", "s3://videos/", *FEW, "--json").json
    assert (again["done"], again["skipped"]) == (0, 8)
    assert fetched == ["s3://videos/broken.mp4"]
    # Another budget is other work; what is known of the bytes stays known.
    dry = sttm_here("precompute", "s3://videos/", *FEW, "--dry-run", "--json").json
    assert (dry["done"], dry["skipped"]) == (1, 8)
    assert len(fetched) == 1


@needs_bucket
def test_a_copy_is_removed_as_soon_as_its_video_is_through(there: Bucket, scratch: Path) -> None:
    there.put("a.mp4")
    with VideoQA(frames=2) as qa:
        assert isinstance(prepare_with(qa, "s3://videos/a.mp4"), Computed)
        assert list(scratch.glob("sttm-*")) == []
        assert isinstance(look(qa, "s3://videos/a.mp4"), Skipped)
        assert list(scratch.glob("sttm-*")) == []


@needs_bucket
def test_an_object_has_the_identity_of_its_bytes(there: Bucket, tmp_path: Path) -> None:
    local = shutil.copy(SAMPLE, tmp_path / "local.mp4")
    there.put("deep/er/remote.mp4")
    assert sttm_here("precompute", local, *FEW, "--json").json["done"] == 1
    report = sttm_here("precompute", "s3://videos/**/*.mp4", *FEW, "--json").json
    assert (report["done"], report["skipped"]) == (0, 1)
    asked = sttm_here("ask", "s3://videos/deep/er/remote.mp4", "how many?", *FEW, "--json").json
    assert asked["cache"]["hit"]
    assert asked["video"]["path"] == "s3://videos/deep/er/remote.mp4"


@needs_bucket
def test_an_object_that_was_replaced_is_prepared_anew(there: Bucket, fetched: list[str]) -> None:
    there.put("a.mp4")
    assert sttm_here("precompute", "s3://videos/a.mp4", *FEW, "--json").json["done"] == 1
    there.put("a.mp4", SAMPLE.read_bytes() + b"another")
    assert sttm_here("precompute", "s3://videos/a.mp4", *FEW, "--json").json["done"] == 1
    assert len(fetched) == 2


@needs_bucket
def test_an_object_replaced_while_it_is_fetched_is_refused(there: Bucket, tmp_path: Path) -> None:
    there.put("a.mp4")
    seen = bucket.object_at("s3://videos/a.mp4")
    there.put("a.mp4", SAMPLE.read_bytes() + b"another")
    with pytest.raises(DisturbedError, match=r"s3://videos/a\.mp4 changed while it was read"):
        bucket.fetch(seen, tmp_path / "a", max_bytes=1 << 30, on_bytes=lambda done, of: None)


@needs_bucket
def test_what_is_fetched_in_parts_is_whole_and_bounded(
    there: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bucket, "PART", 1000)
    data = os.urandom(12_345)
    there.put("a", data)
    seen, steps = bucket.object_at("s3://videos/a"), list[int]()
    take = {"max_bytes": 20_000, "on_bytes": lambda done, of: steps.append(done)}
    bucket.fetch(seen, tmp_path / "a", **take)  # type: ignore[arg-type]
    assert (tmp_path / "a").read_bytes() == data
    assert len(steps) == 13
    with pytest.raises(VideoError, match="--max-download"):
        bucket.fetch(seen, tmp_path / "b", **{**take, "max_bytes": 10_000})  # type: ignore[arg-type]
    there.put("many.mp4")
    ended = sttm_here("precompute", "s3://videos/many.mp4", "--max-download", "1K", *FEW)
    assert ended.code == 1
    assert "is larger than --max-download allows" in ended.err


@needs_bucket
def test_failures_of_a_bucket_are_told_by_name_and_without_secrets(there: Bucket) -> None:
    report = sttm_here("precompute", "s3://videos/none.mp4", "s3://nowhere/*.mp4", "--json")
    assert report.code == 1
    errors = {failed["path"]: failed["error"] for failed in report.json["failed"]}
    assert "there is no such object" in errors["s3://videos/none.mp4"]
    assert "cannot be listed" in errors["s3://nowhere/*.mp4"]
    assert "test-secret" not in report.out + report.err
    refused = sttm_here("precompute", "s3://name:word@videos/a.mp4")
    assert refused.code == 2
    assert "word" not in refused.err


def test_without_the_extra_the_hint_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "obstore", None)
    bucket._client.cache_clear()
    with pytest.raises(SttmError, match="not installed") as raised:
        find_videos(["s3://videos/*.mp4"])
    assert raised.value.hint == "python -m pip install obstore boto3"


@pytest.mark.long
@needs_bucket
@needs_ray
def test_the_workers_of_a_cluster_fetch_the_objects(
    there: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(4):
        there.put(f"{number}.mp4", SAMPLE.read_bytes() + b"\0" * number)
    there.put("broken.mp4", b"no video")
    report, err = report_of(start("s3://videos/", *RAY, *FEW, "--json"))
    assert report["done"] == 4, err
    assert [failed["path"] for failed in report["failed"]] == ["s3://videos/broken.mp4"]
    local = sttm_here("precompute", "s3://videos/*.mp4", *FEW, "--json").json
    assert (local["done"], local["skipped"]) == (0, 4)
    # A bucket as the cache: machines share nothing but its address.
    cache = ("--cache-dir", "s3://videos/cache")
    monkeypatch.setenv("STTM_CACHE_TIER", "none")
    report, err = report_of(start("s3://videos/[0-3].mp4", *RAY, *FEW, *cache, "--json"))
    assert report["done"] == 4, err
    hit = sttm_here("ask", "s3://videos/2.mp4", "how many?", *FEW, *cache, "--json").json
    assert hit["cache"]["hit"]
