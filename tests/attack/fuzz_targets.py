"""What is fuzzed: each parser with its seeds, its documented error, and what it promises.

Imported by the process of one target (`fuzz.py`), which counts the branches of what is imported
here: heavy packages are imported by no target.
"""

from __future__ import annotations

import io
import json
import os
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

TESTS = Path(__file__).parents[1]
TINY = TESTS.parent / "sttm_cli" / "tiny" / "checkpoint"


@dataclass(frozen=True)
class Target:
    """`run` raises for an input that is not handled as documented; `is_json`: most inputs are."""

    run: Callable[[bytes], None]
    seeds: Sequence[bytes]
    is_json: bool = False


class Broken(Exception):
    """A promise that an input breaks, where no exception shows it."""


def _json(*values: Any) -> list[bytes]:
    return [json.dumps(value).encode() for value in values]


# ---- the store


class _Bytes:
    """The bytes of an artifact as a store gives them."""

    def __init__(self, data: bytes) -> None:
        self.data, self.size = data, len(data)

    def read_into(self, target: memoryview, offset: int) -> int:
        part = self.data[offset : offset + len(target)]
        target[: len(part)] = part
        return len(part)

    def close(self) -> None: ...


def _record() -> tuple[dict[str, Any], dict[str, Any]]:
    """A right record and the header of its tensors."""
    from sttm_cli.store.artifact import FORMAT, key_of, layout

    identity = {"format": FORMAT, "video": {"digest": "d1"}, "merge": {"budget": 0.3}}
    record = {
        "format": FORMAT, "key": key_of(identity), "identity": identity, "dtype": "float32",
        "kv_dtype": "float32", "lengths": [3, 2], "merge_layer": 1, "next_positions": [3, 2],
        "grid": [1, 1, 2], "sizes": None, "facts": {"decode": {}}, "label": {"video": "a.mp4"},
        "tokens": {"video_full": 2, "video_kept": 1, "prefix": 3, "after_spatial": 1,
                   "spatial_threshold": 0.8, "temporal_threshold": 0.6},
        "checksum": "blake3:0",
    }  # fmt: skip
    tensors = {place.name: place.to_json() for place in layout([[3, 1, 4], [2, 1, 4]], "float32")}
    return record, tensors


def _with_states() -> tuple[dict[str, Any], dict[str, Any]]:
    """As `_record`, with a recurrent layer below the two."""
    from sttm_cli.store.artifact import WITH_STATES, Stated, layout

    record, _ = _record()
    states = Stated([0], [2, 4], [1, 2, 3], "float32")
    record |= {"format": WITH_STATES, "lengths": [0, 3, 2], "states": states.to_json()}
    places = layout([[0, 1, 4], [3, 1, 4], [2, 1, 4]], "float32", states)
    return record, {place.name: place.to_json() for place in places}


def _artifact(record: Any, tensors: dict[str, Any]) -> bytes:
    from sttm_cli.store.artifact import seal_of

    text = json.dumps(record)
    meta = {"sttm": text, "seal": seal_of(text.encode(errors="replace"))}
    header = json.dumps({"__metadata__": meta, **tensors}).encode()
    size = max([place["data_offsets"][1] for place in tensors.values() if "data_offsets" in place])
    return len(header).to_bytes(8, "little") + header + bytes(min(size, 1 << 16))


def artifact() -> Target:
    """The bytes of an artifact: `Damaged`, or a header whose tensors lie within the file."""
    from sttm_cli.store.artifact import Damaged, read_header

    def run(data: bytes) -> None:
        with suppress(Damaged):
            _check_header(read_header(_Bytes(data)), len(data))

    return Target(run, [_artifact(*_record()), _artifact(*_with_states())])


def record() -> Target:
    """The record and the tensors of an artifact that is sealed anew."""
    from sttm_cli.store.artifact import Damaged, read_header

    record, tensors = _record()

    def run(data: bytes) -> None:
        try:
            changed, places = json.loads(data)
            blob = _artifact(changed, dict(places))
        except (ValueError, TypeError, KeyError, IndexError, RecursionError, AttributeError):
            return
        with suppress(Damaged):
            _check_header(read_header(_Bytes(blob)), len(blob))

    return Target(run, [*_json([record, tensors]), *_json(list(_with_states()))], is_json=True)


def _check_header(header: Any, size: int) -> None:
    from sttm_cli.store.protocol import entry_of

    if not 0 < header.start <= header.end <= size or header.saved_bytes > 1 << 60:
        raise Broken(f"bytes {header.start} to {header.end} of {size}")
    entry_of(header, location="x", created=0.0)
    for value in asdict(header.tokens).values():
        if value is not None and (type(value) not in (int, float) or not abs(value) < 1 << 60):
            raise Broken(f"{value!r} is not a count")


def rows() -> Target:
    """Rows of the index, as if their seals were right: each counts, or is missing."""
    from sttm_cli.store.files import Stored
    from sttm_cli.store.index import _remembered
    from sttm_cli.store.protocol import Uses

    record, _ = _record()
    stored = Stored("k", "x", os.stat(__file__))
    seal = list(stored.seal)

    def run(data: bytes) -> None:
        try:
            row = json.loads(data)
        except (ValueError, RecursionError):
            return
        if not isinstance(row, dict):
            return
        uses = Uses.from_row(row)
        json.dumps(uses.plus(saved_s=1.0, now=1.0), allow_nan=False)
        _remembered(stored, {**row, "seal": seal}, uses)

    about = {"video": "d1", "kv_dtype": "float32", "saved_bytes": 0}
    about |= {name: record[name] for name in ("label", "tokens")}
    return Target(run, _json(about, {"hits": 1, "saved_s": 2.0, "at": 3.0}), is_json=True)


# ---- checkpoints


class _Forgetful:
    """Remembers no file."""

    def get(self, key: str) -> None: ...
    def set(self, key: str, value: Any) -> None: ...


def checkpoint() -> Target:
    """One JSON file of a checkpoint: `ModelError`, or dimensions that can be counted with."""
    from sttm_cli.base.errors import ModelError
    from sttm_cli.models.checkpoint import CHECKED, Checkpoint, check_files, model_files
    from sttm_cli.models.registry import (
        context_length,
        families,
        family_of,
        kv_shapes,
        token_count,
    )

    folder = Path(tempfile.mkdtemp())
    (folder / "model.safetensors").write_bytes(b"")
    whole = {path.name: path.read_bytes() for path in TINY.glob("*.json")}
    known = {family.model_type for family in families()}

    def run(data: bytes) -> None:
        name = CHECKED[data[0] % len(CHECKED)] if data else CHECKED[0]
        (folder / "config.json").write_bytes(whole["config.json"])
        (folder / name).write_bytes(data[1:])
        with suppress(ModelError):
            config = check_files("it", folder, _Forgetful())
            model_files("it", folder)
            found = Checkpoint("it", folder, None, "f", config)
            if found.model_type in known:
                family = family_of(found)
                if not (isinstance(family.frames, int) and isinstance(family.merge_layer, int)):
                    raise Broken("defaults that are not numbers")
                token_count(found, 8, width=640, height=360)
            kv_shapes(found), context_length(found), found.layers, found.text
        (folder / name).unlink()

    seeds = [bytes([number]) + whole[name] for number, name in enumerate(CHECKED) if name in whole]
    for path in sorted((TESTS / "models").glob("*.json")):
        seeds.append(b"\0" + path.read_bytes())
    return Target(run, seeds)


def index() -> Target:
    """The index of a checkpoint: `ModelError`, or shards in its folder."""
    from sttm_cli.base.errors import ModelError
    from sttm_cli.models.checkpoint import INDEX, weight_files

    folder = Path(tempfile.mkdtemp()).resolve()

    def run(data: bytes) -> None:
        (folder / INDEX).write_bytes(data)
        with suppress(ModelError):
            for path in weight_files("it", folder):
                with suppress(OSError):
                    if not Path(os.path.normpath(path)).is_relative_to(folder):
                        raise Broken(f"{path} is outside the folder")
                    # A name may be too long, and must be one that can be looked for.
                    path.is_file()

    shards = {"weight_map": {"a": "a.safetensors", "b": "w/b.safetensors"}, "metadata": {"x": 1}}
    others = ("../a.safetensors", "/a.safetensors", "w/../../a.safetensors", "C:\\a.safetensors")
    return Target(
        run, _json(shards, *({"weight_map": {"a": name}} for name in others)), is_json=True
    )


def weights() -> Target:
    """The header of a safetensors file: `ModelError`, or no more numbers than its bytes have."""
    from sttm_cli.base.errors import ModelError
    from sttm_cli.models.loading import _bytes

    path = Path(tempfile.mkdtemp()) / "model.safetensors"

    def run(data: bytes) -> None:
        path.write_bytes(data)
        with suppress(ModelError):
            if _bytes("it", path, 1, ("F8",)) > 2 * len(data):
                raise Broken("more numbers than bytes")

    header = json.dumps({"a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}}).encode()
    return Target(run, [len(header).to_bytes(8, "little") + header + bytes(24)])


# ---- requests, and answers of servers


def chat() -> Target:
    """Bodies of OpenAI's protocol: refused with 400 or 413, or a request within its bounds."""
    from sttm_cli.serve.http_errors import Refused
    from sttm_cli.serve.openai_request import read_request
    from sttm_cli.serve.options import Options
    from sttm_cli.serve.videos import Videos, _content, _is_data, _local_paths
    from sttm_cli.settings.settings import Settings
    from tests.attack.requests import TEXTS, VALID

    base, videos = Settings(), Videos(Options())

    def run(data: bytes) -> None:
        try:
            asked = read_request(data, base)
            url = videos._url(asked.video)
            if _is_data(url):
                _content(url)
            elif not url.lower().startswith(("http:", "https:")):
                _local_paths(url)
                videos._file(url, trusted=False)
        except Refused as refused:
            if refused.status not in (400, 403, 404, 413):
                raise
            json.dumps(refused.to_json(), ensure_ascii=False).encode()

    urls = [
        {**VALID, "messages": [{"role": "user", "content": [
            {"type": "video_url", "video_url": {"url": text}}, {"type": "text", "text": "what?"}]}]}
        for text in TEXTS
    ]  # fmt: skip
    return Target(run, _json(VALID, *urls), is_json=True)


def ask() -> Target:
    """Bodies of this package's own protocol, from strangers and from the user's own client."""
    from sttm_cli import __version__
    from sttm_cli.base.errors import UsageError
    from sttm_cli.serve.http_errors import Refused
    from sttm_cli.serve.private_routes import AskBody, _check_model, _settings
    from sttm_cli.serve.request_body import read_body
    from sttm_cli.serve.server_files import of_the_model, per_request
    from sttm_cli.settings.settings import Settings

    base = Settings()

    def run(data: bytes) -> None:
        for trusted in (False, True):
            try:
                body = read_body(data, AskBody, with_file_names=True, trusted=trusted)
                _check_model(base, body.model)
                _settings(base, body.settings)
            except UsageError:
                continue
            except Refused as refused:
                if refused.status not in (400, 409, 413):
                    raise

    sent = {
        "version": __version__, "model": of_the_model(base), "settings": per_request(base),
        "video": "/a.mp4", "name": None, "questions": ["what?"], "history": [["a", "b"]],
        "options": [], "keep_alive": 1.0,
    }  # fmt: skip
    return Target(run, _json(sent), is_json=True)


def bounds() -> Target:
    """JSON that passes its bounds has no more levels and parts than they allow."""
    from sttm_cli.serve import request_body as json_bounds
    from sttm_cli.serve.request_body import TooDeep, TooLarge, check_json

    json_bounds.MOST_BYTES, json_bounds.MOST_PARTS = 2000, 200

    def run(data: bytes) -> None:
        try:
            check_json(data)
            value = json.loads(data.decode())
        except (TooDeep, TooLarge, ValueError, RecursionError):
            return
        levels, parts = _extent(value)
        if levels > json_bounds.MOST_DEPTH or parts > json_bounds.MOST_PARTS:
            raise Broken(f"{levels} levels and {parts} parts")

    return Target(
        run,
        [
            b'{"url": "data:video/mp4;base64,AAAA", "a": [1, "\\"", {"b": []}]}',
            b"[" * 40 + b"]" * 40,
            b"[" + b"0," * 300 + b"0]",
            b'{"a\\\\": "\\u0022", "url" : "data:' + b'\\"' * 150 + b'"}',
        ],
        is_json=False,
    )


def _extent(value: Any) -> tuple[int, int]:
    """The levels of lists and objects, and the items in all of them."""
    levels, parts, layer = 0, 0, [value]
    while layer := [each for each in layer if isinstance(each, dict | list)]:
        levels += 1
        inner = [
            part for each in layer for part in (each.values() if isinstance(each, dict) else each)
        ]
        parts, layer = parts + len(inner), inner
    return levels, parts


def reply() -> Target:
    """Lines and replies of a server: `ShapeError`, `ServerGone` or an error of the question, never
    another exit code."""
    from sttm_cli.base.errors import ContextError, UsageError, VideoError
    from sttm_cli.base.events import Heard, TextPiece, Warned, from_line, to_line
    from sttm_cli.base.reports import ServerStatus
    from sttm_cli.base.shapes import ShapeError, shaped
    from sttm_cli.serve.client import ServerGone, _refusal

    allowed = (ServerGone, UsageError, ContextError, VideoError)

    def run(data: bytes) -> None:
        with suppress(ShapeError):
            to_line(from_line(data))
        if not isinstance(_refusal(400, data), allowed):
            raise Broken("another error")
        with suppress(ShapeError, ValueError, RecursionError):
            shaped(json.loads(data), ServerStatus, "status")

    lines = [to_line(event).encode() for event in (Heard("1"), Warned("a"), TextPiece("b"))]
    error = {"error": {"message": "no", "type": "x", "param": None, "code": "usage"}}
    lines += _json(error, {"error": {"kind": "video", "message": "m", "hint": "h"}})
    lines += _json({"answer": _answer()}, {"progress": {"stage": "decode", "done": 1, "of": 2}})
    return Target(run, lines, is_json=True)


def _answer() -> dict[str, Any]:
    return {"question": "q", "answer": "a", "new_tokens": 1, "ended": "stop"}


# ---- videos and what comes with them


class _InMemory:
    """A path whose file is in memory."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    def open(self, mode: str) -> io.BytesIO:
        return io.BytesIO(self.data)

    def __str__(self) -> str:
        return "it.srt"


def subtitles() -> Target:
    """Subtitles: `UsageError`, or a text of bounded length."""
    from sttm_cli.base.errors import UsageError
    from sttm_cli.decode.subtitles import HEAD, MAX_CHARACTERS, subtitles_text

    def run(data: bytes) -> None:
        with suppress(UsageError):
            path: Any = _InMemory(data)
            text = subtitles_text(path, warn=lambda line: None)
            if len(text) > len(HEAD) + 1 + MAX_CHARACTERS:
                raise Broken(f"{len(text)} characters")

    from tests.decode.test_subtitles import SRT, VTT

    odd = "1\n00:00:01,000 --> 00:00:02,500\n<<<<{\\{\\&#65;&#x41;&amp\n"
    return Target(run, [SRT.encode(), VTT.encode(), SRT.encode("utf-16"), odd.encode()])


def playlist() -> Target:
    """How a file begins: `VideoError` for whatever only names other files."""
    from sttm_cli.base.errors import VideoError
    from sttm_cli.decode.file import PLAYLISTS, open_file

    path = Path(tempfile.mkdtemp()) / "video.mp4"

    def run(data: bytes) -> None:
        path.write_bytes(data)
        names_others = data.strip(b"\xef\xbb\xbf \t\r\n").lower().startswith(b"#extm3u")
        with suppress(VideoError), open_file(path) as file:
            if names_others and len(data) < 512:
                raise Broken("a playlist is opened")
            file.read(16)

    return Target(run, [b"\xef\xbb\xbf\n" + mark + b"\nhttp://a/" for mark in PLAYLISTS])


def packets() -> Target:
    """The headers of VP8 and VP9 packets, of any bytes that are there."""
    from sttm_cli.decode.container import _vp8_shows, _vp9_shows

    def run(data: bytes) -> None:
        if data:
            _vp8_shows(data), _vp9_shows(data)

    return Target(run, [b"\x10\x02\x00\x9d\x01\x2a", b"\x82\x49\x83\x42\x00", b"\xa2\xc1"])


def http() -> Target:
    """What comes over the wire of a download: `VideoError`, or a file within the bound."""
    import socket

    from sttm_cli.base.errors import VideoError
    from sttm_cli.decode import bounded_http, download, web_page

    path, most = Path(tempfile.mkdtemp()) / "video", 10_000
    sent = [b""]

    def connect(host: str, port: int, bounds: Any) -> socket.socket:
        ours, theirs = socket.socketpair()
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 18)
        theirs.sendall(sent[0])
        theirs.shutdown(socket.SHUT_WR)
        others.append(theirs)
        return ours

    others: list[socket.socket] = []
    download.connect_anywhere, bounded_http.HEAD_BYTES = connect, 20_000
    web_page.find_spec = lambda name: None

    def run(data: bytes) -> None:
        sent[0] = data
        try:
            with suppress(VideoError):
                download.download("http://a/b", path, max_bytes=most, progress=lambda *_: None)
                if path.stat().st_size > most:
                    raise Broken("the file is too large")
        finally:
            while others:
                others.pop().close()

    head = b"HTTP/1.1 200 OK\r\nContent-Type: video/mp4\r\n"
    return Target(
        run,
        [
            head + b"Content-Length: 3\r\n\r\nabc",
            head + b"Transfer-Encoding: chunked\r\n\r\n3;x=y\r\nabc\r\n0\r\na: b\r\n\r\n",
            b"HTTP/1.1 100 Continue\r\n\r\n" + head + b"\r\nabc",
            b"HTTP/1.1 302 Found\r\nLocation: http://c/d\r\nContent-Length: 0\r\n\r\n",
            b"HTTP/1.1 404 Not Found\r\nContent-Type: text/html; charset=x\r\n\r\nno",
        ],
    )


# ---- what a person or a program writes


def settings() -> Target:
    """Values of settings as text: `UsageError`, or what can be used and sent on."""
    from sttm_cli.base.errors import UsageError
    from sttm_cli.settings import fields as parse
    from sttm_cli.settings.fields import one_of, whole_number

    readers = [
        parse.parse_budget, parse.parse_seconds, parse.parse_bytes, parse.parse_duration,
        parse.parse_whole, parse.parse_real, parse.parse_fps, parse.parse_names,
        parse.parse_switch, parse.parse_method, parse.parse_place, one_of("a"), whole_number(1),
    ]  # fmt: skip

    def run(data: bytes) -> None:
        text = data[1:].decode(errors="surrogateescape")
        number = data[0] % len(readers) if data else 0
        with suppress(UsageError):
            value = readers[number]("--flag", text)
            if number in (1, 3) and not 0 <= value < float("inf"):
                raise Broken(f"{value} seconds")

    values = [
        "0.3",
        "1:02:03.5",
        "20GiB",
        "1.5h",
        "-7",
        "1e3",
        "30",
        "a,b",
        "true",
        "sttm",
        "s3://a",
    ]
    return Target(run, [bytes([n % 13]) + value.encode() for n, value in enumerate(values * 2)])


def terminal() -> Target:
    """Text on its way to a terminal: nothing in it steers."""
    import unicodedata

    from sttm_cli.cli.output import one_line, printable, without_steering

    def run(data: bytes) -> None:
        for text in (data.decode(errors="surrogateescape"), data.decode("utf-16", "surrogatepass")
                     if len(data) % 2 == 0 else ""):  # fmt: skip
            shown = without_steering(text)
            steering = {"Cc", "Cs", "Zl", "Zp"}
            left = [c for c in shown if unicodedata.category(c) in steering and c not in "\t\n"]
            if left or not all(c.isprintable() for c in printable(text)):
                raise Broken(f"{left!r} is left")
            if "\n" in one_line(text):
                raise Broken("a line is broken")

    return Target(run, ["\x1b[2J\u202e\u2028a\x9b".encode(), b"\xff\xfe", "é\u0301 映".encode()])


TARGETS: dict[str, Callable[[], Target]] = {
    "artifact": artifact,
    "record": record,
    "rows": rows,
    "checkpoint": checkpoint,
    "index": index,
    "weights": weights,
    "chat": chat,
    "ask": ask,
    "bounds": bounds,
    "reply": reply,
    "subtitles": subtitles,
    "playlist": playlist,
    "packets": packets,
    "http": http,
    "settings": settings,
    "terminal": terminal,
}


# ---- faults, which show that one is reported


def _is_bad(data: bytes) -> bool:
    """Begins with "ab", compared byte by byte: that is what coverage leads to."""
    return len(data) > 1 and data[0] == ord("a") and data[1] == ord("b")


def _raises(data: bytes) -> None:
    if _is_bad(data):
        1 // 0  # noqa: B018


def _hangs(data: bytes) -> None:
    while _is_bad(data):
        pass


def _grows(data: bytes) -> None:
    while _is_bad(data):
        data += data


FAULTS: dict[str, Callable[[], Target]] = {
    name: lambda run=run: Target(run, [b"aa"])  # type: ignore[misc]
    for name, run in {"raises": _raises, "hangs": _hangs, "grows": _grows}.items()
}
