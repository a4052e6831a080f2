"""What `sttm mcp` does for its clients; knows nothing of the protocol."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

# pydantic reads that of `typing` from Python 3.12 on only.
from typing_extensions import TypedDict

from sttm_cli.base.errors import UsageError, VideoError
from sttm_cli.base.events import Shown, Warned
from sttm_cli.base.names import scheme_of
from sttm_cli.base.types import DecodeReport, VideoInfo
from sttm_cli.cli.asker import Asker, Questions
from sttm_cli.cli.log import Record
from sttm_cli.cli.output import warn
from sttm_cli.decode import digest, plan_frames, read_frames, remembered_probe
from sttm_cli.decode.image_folder import videos_below
from sttm_cli.decode.source import known_digest, video_version
from sttm_cli.serve.http_errors import Refused
from sttm_cli.serve.openai_request import VideoPart
from sttm_cli.serve.options import Options
from sttm_cli.serve.videos import Videos
from sttm_cli.settings.fields import check_question, parse_seconds
from sttm_cli.settings.settings import Settings, cache_dir

if TYPE_CHECKING:
    from sttm_cli.base.reports import AskReport
    from sttm_cli.store import Entry, Store

Show = Callable[[Shown], None]
MOST_VIDEOS = 1000
"""Videos in one listing."""
SHORTEST_SIDE = 720
"""Of a picture that is given back, in pixels, unless the video's is shorter."""


class StoredVideo(TypedDict):
    """One stored preparation of a video."""

    key: str
    model: str
    budget: float | int | None
    frames: int | None
    video_tokens: int
    bytes: int


class VideoAnswer(TypedDict):
    """An answer, and what it took. Times are seconds from the start of the video."""

    answer: str
    video: str
    duration_s: float
    cache_hit: bool
    video_tokens: int
    video_tokens_full: int
    first_token_s: float | None
    total_s: float | None
    notes: list[str]


class PreparedVideo(TypedDict):
    """A video that questions can be asked about without computing it again."""

    video: str
    key: str
    already_stored: bool
    stored: bool
    bytes: int
    video_tokens: int
    video_tokens_full: int
    frame_times_s: list[float]
    total_s: float | None
    notes: list[str]


class ListedVideo(TypedDict):
    """A video file; `prepared`: what is stored of exactly these bytes."""

    path: str
    bytes: int
    prepared: list[StoredVideo]


class VideoList(TypedDict):
    """The videos in the folders that may be read; `left_out`: how many more there are."""

    folders: list[str]
    videos: list[ListedVideo]
    left_out: int


class VideoFacts(TypedDict):
    """A video file, from its header and bytes; width and height as shown."""

    path: str
    bytes: int | None
    digest: str
    duration_s: float
    fps: float
    width: int
    height: int
    rotation: int
    container: str
    codec: str
    has_audio: bool
    hdr: bool
    notes: list[str]
    prepared: list[StoredVideo]


class VideoTools:
    """Answers, prepares, lists and shows videos below `folders`; a context manager.

    The model is loaded at the first question that no running server answers, and stays. Every
    method raises the errors of `base/errors.py`.
    """

    def __init__(
        self, settings: Settings, folders: Sequence[Path], *, server: bool, keeps_log: bool
    ) -> None:
        self.settings, self._server, self._keeps = settings, server, keeps_log
        # Raises for what is not a folder.
        options = Options(allow_path=tuple(folders))
        self.folders = [folder.resolve() for folder in folders]
        self._videos = Videos(options)
        self._store = _open_store(settings)
        self._asker: Asker | None = None
        self._show: Show = lambda event: None

    def __enter__(self) -> VideoTools:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._asker is not None:
            self._asker.__exit__()
        self._store.close()
        self._videos.close()

    def leave(self) -> None:
        """Remove temporary files alone; for a process that ends amid its work."""
        self._videos.close()

    # ---- with the model; one at a time

    def ask(self, video: str, question: str, choices: dict[str, Any], show: Show) -> VideoAnswer:
        """Answer one question; `choices`: settings for this question alone."""
        check_question(question)
        report, notes = self._asked(video, [question], choices, show)
        tokens, seconds = report["tokens"], report["seconds"]
        return {
            "answer": report["answers"][0]["answer"],
            "video": report["video"]["path"],
            "duration_s": report["video"]["duration_s"],
            "cache_hit": report["cache"]["hit"],
            "video_tokens": tokens["video_kept"],
            "video_tokens_full": tokens["video_full"],
            "first_token_s": seconds["first_token"],
            "total_s": seconds["total"],
            "notes": notes,
        }

    def prepare(self, video: str, choices: dict[str, Any], show: Show) -> PreparedVideo:
        """Restore or compute the video's KV, and store it."""
        report, notes = self._asked(video, [], choices, show)
        cache, tokens = report["cache"], report["tokens"]
        return {
            "video": report["video"]["path"],
            "key": cache["key"],
            "already_stored": cache["hit"],
            "stored": cache["bytes"] > 0,
            "bytes": cache["bytes"],
            "video_tokens": tokens["video_kept"],
            "video_tokens_full": tokens["video_full"],
            "frame_times_s": report["video"]["frame_times_s"],
            "total_s": report["seconds"]["total"],
            "notes": notes,
        }

    def _asked(
        self, video: str, questions: list[str], choices: dict[str, Any], show: Show
    ) -> tuple[AskReport, list[str]]:
        """The report of questions about one video, and what a user should know of it."""
        given: dict[str, Any]
        given = {name: _typed(value) for name, value in choices.items() if value is not None}
        settings = replace(self.settings, **given)
        path = str(self._file(video))
        warnings: list[str] = []

        def shown(event: Shown) -> None:
            if isinstance(event, Warned):
                warnings.append(event.line)
                warn(event.line)
            show(event)

        self._show = shown
        report = self._asker_for(settings).ask(Questions(path, questions))
        record = Record.of(path, settings, keeps=self._keeps)
        seconds = report["seconds"]["answer"]
        record.add(
            [(a["question"], a["answer"], seconds) for a in report["answers"]], settings.budget
        )
        return report, [*report["video"]["notes"], *warnings]

    def _asker_for(self, settings: Settings) -> Asker:
        """One that answers with `settings`. A server that began meanwhile is found, unless a model
        is loaded here."""
        if self._asker is None or not self._asker.loaded:
            if self._asker is not None:
                self._asker.__exit__()
            self._asker = Asker(settings, lambda event: self._show(event), server=self._server)
        elif self._asker.settings != settings:
            self._asker.use(settings)
        return self._asker

    # ---- without it

    def listing(self, folder: str | None) -> VideoList:
        """The videos below one folder, or below all that may be read."""
        places = self.folders if folder is None else [self._folder(folder)]
        found = sorted({path for place in places for path in videos_below(place)})
        # A link in a folder may lead out of it.
        readable = [path for path in found if self._may_read(path)]
        stored = self._stored()
        return {
            "folders": [str(place) for place in places],
            "videos": [self._listed(path, stored) for path in readable[:MOST_VIDEOS]],
            "left_out": max(0, len(readable) - MOST_VIDEOS),
        }

    def info(self, video: str) -> VideoFacts:
        """What the file is, and what is stored of it."""
        path = self._file(video)
        info = self._probed(path)
        of_bytes = digest(path, self._store)
        return {
            "path": str(path),
            "bytes": None if path.is_dir() else path.stat().st_size,
            "digest": of_bytes,
            "duration_s": info.duration_s,
            "fps": info.fps,
            "width": info.width,
            "height": info.height,
            "rotation": info.rotation,
            "container": info.container,
            "codec": info.codec,
            "has_audio": info.has_audio,
            "hdr": info.transfer != "sdr",
            "notes": list(info.notes),
            "prepared": self._stored().get(of_bytes, []),
        }

    def frame(self, video: str, time: str | float) -> tuple[bytes, str]:
        """The frame shown at a time, as JPEG, and a line about it."""
        path, asked = self._file(video), parse_seconds("time", _typed(time))
        version = video_version(path)
        info = self._probed(path)
        if asked > info.duration_s:
            raise UsageError(
                f"time {time} lies beyond the end of the video ({info.duration_s:.2f} s)",
                "give a time within the video",
            )
        start = max(0.0, min(asked, info.duration_s - 1e-3))
        plan = plan_frames(info, max_frames=1, frames=1, start=start, input_side=SHORTEST_SIDE // 2)
        (chunk,) = read_frames(path, plan, report=DecodeReport(), version=version)
        height, width = chunk.frames.shape[1:3]
        return _jpeg(chunk.frames[0]), f"{path} at {chunk.times_s[0]:.2f} s, {width} x {height}"

    def _probed(self, path: Path) -> VideoInfo:
        fps = self.settings.fps or 1.0
        return remembered_probe(path, self._store, image_fps=fps, version=video_version(path))

    def _listed(self, path: Path, stored: dict[str, list[StoredVideo]]) -> ListedVideo:
        of_bytes = known_digest(path, self._store)
        size = path.stat().st_size if path.exists() else 0
        return {"path": str(path), "bytes": size, "prepared": stored.get(of_bytes or "", [])}

    def _stored(self) -> dict[str, list[StoredVideo]]:
        """What is stored, by the digest of the video."""
        found: dict[str, list[StoredVideo]] = {}
        for entry in self._store.entries():
            found.setdefault(entry.video, []).append(_entry(entry))
        return found

    # ---- which files may be read

    def _file(self, video: str) -> Path:
        """The video that a client names; a relative path stands below one of the folders.

        Raises UsageError for what may not be read, in the same words whether it is there or not.
        """
        if scheme_of(video) not in ("", "file"):
            raise UsageError(f"{video} is an address", "name a file: 'list_videos' lists them")
        named = Path(video)
        is_whole = video.startswith("file:") or named.is_absolute()
        tried = [video] if is_whole else [str(folder / named) for folder in self.folders]
        allowed = [path for path in map(self._allowed, tried) if path is not None]
        if not allowed:
            raise UsageError(
                f"{video} is not below a folder that this server may read",
                f"it may read {_and(self.folders)}; 'sttm mcp --allow-path FOLDER' allows more",
            )
        there = [path for path in allowed if path.exists()]
        if not there:
            raise VideoError(f"there is no file {video}", "'list_videos' lists the files")
        return there[0]

    def _folder(self, folder: str) -> Path:
        path = self._file(folder)
        if not path.is_dir():
            raise UsageError(f"{folder} is not a folder", f"the folders are {_and(self.folders)}")
        return path

    def _allowed(self, path: str) -> Path | None:
        try:
            with self._videos.use(VideoPart(path, None), trusted=False) as found:
                return found
        except Refused:
            return None

    def _may_read(self, path: Path) -> bool:
        return self._allowed(str(path)) is not None


def _typed(value: str | float) -> str:
    """A number as it would be typed: clients send 500 as 500.0 as well."""
    return value if isinstance(value, str) else f"{value:.12g}"


def _entry(entry: Entry) -> StoredVideo:
    label = entry.label
    return {
        "key": entry.key,
        "model": str(label.get("model")),
        "budget": label.get("budget"),
        "frames": label.get("frames"),
        "video_tokens": entry.tokens.video_kept,
        "bytes": entry.bytes,
    }


def _open_store(settings: Settings) -> Store:
    from sttm_cli.store import open_store

    where = None if settings.no_cache else cache_dir(settings.cache_dir)
    return open_store(where, max_bytes=settings.max_bytes, tier=settings.cache_tier, warn=warn)


def _jpeg(picture: Any) -> bytes:
    from PIL import Image

    written = io.BytesIO()
    Image.fromarray(picture).save(written, "JPEG", quality=90)
    return written.getvalue()


def _and(folders: Iterable[Path]) -> str:
    return ", ".join(map(str, folders))
