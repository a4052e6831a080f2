"""A video and everything that shapes its KV, complete before anything is decoded or loaded."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import cache, cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from sttm_cli.base.errors import UsageError
from sttm_cli.base.system import FileFacts
from sttm_cli.base.types import FramePlan, Json, VideoInfo
from sttm_cli.decode import (
    REVISION,
    Object,
    Source,
    changed,
    digest,
    plan_frames,
    remembered_probe,
    video_version,
)
from sttm_cli.models.loading import quantizers
from sttm_cli.models.registry import (
    context_length,
    kv_shapes,
    state_shapes,
    token_count,
)
from sttm_cli.runtime.model_plan import ModelPlan
from sttm_cli.settings.settings import Settings
from sttm_cli.store import FORMAT, WITH_STATES, NoStore, key_of


@dataclass(frozen=True)
class Request:
    """A video and everything that shapes its KV. `identity`: all of it, as stored.

    `version`: of the file whose bytes have the digest (`decode.video_version`).
    """

    source: Source
    version: str
    digest: str
    info: VideoInfo
    plan: FramePlan
    identity: Json

    @property
    def path(self) -> Path:
        """The local path of the video's bytes."""
        return self.source.path

    @cached_property
    def key(self) -> str:
        """The digest of the identity, under which the KV is stored."""
        return key_of(self.identity)


def make_request(
    source: Source,
    model: ModelPlan,
    settings: Settings,
    facts: FileFacts,
    objects: FileFacts | None = None,
) -> Request:
    """Read the video's header and digest its bytes, without decoding.

    `objects`: the memo for facts about objects of a bucket, for `known_identity`.

    Raises as `plan_video`, and DisturbedError if the file changes meanwhile.
    """
    with source.naming_it():
        seen = video_version(source.path)
    info, plan = plan_video(source, model, settings, facts, version=seen)
    with source.naming_it():
        video_digest = digest(source.path, facts, version=seen)
    if source.version and objects is not None:
        row = {"digest": video_digest, "info": {**asdict(info), "notes": list(info.notes)}}
        objects.set(f"object:{REVISION}:{source.version}", row)
    return Request(
        source=source,
        version=seen,
        digest=video_digest,
        info=info,
        plan=plan,
        identity=_identity(video_digest, info, plan, model, settings),
    )


def known_identity(
    found: Object, model: ModelPlan, settings: Settings, facts: FileFacts
) -> Json | None:
    """Return the identity for an object of a bucket that was read before; None if it must be
    fetched.

    Raises UsageError as `plan_video`.
    """
    row = facts.get(f"object:{REVISION}:{found.version}") if found.version else None
    try:
        if row is None:
            return None
        info = VideoInfo(**{**row["info"], "notes": tuple(row["info"]["notes"])})
        known = str(row["digest"])
    except (KeyError, TypeError):
        return None
    return _identity(known, info, _plan(info, model, settings), model, settings)


def _identity(
    digest: str, info: VideoInfo, plan: FramePlan, model: ModelPlan, settings: Settings
) -> Json:
    # Another FFmpeg version may report another duration for the same bytes, so it is part of the
    # identity.
    video = {"digest": digest, "duration_s": info.duration_s}
    return identity_of(video, plan, model, settings)


def facts_for(source: Source, store: FileFacts) -> FileFacts:
    """Return the memo for facts about a video's file; a temporary copy's facts are never
    remembered, since its path is not used again."""
    return NoStore() if source.is_copy else store


def check_video(source: Source, settings: Settings, facts: FileFacts) -> None:
    """Raise errors visible in the video's header: VideoError for a file that is not a readable
    video, UsageError for a range outside of it."""
    with source.naming_it():
        version = video_version(source.path)
        info = remembered_probe(source.path, facts, image_fps=settings.fps or 1.0, version=version)
    _chosen(info, settings, most=1)


def _chosen(info: VideoInfo, settings: Settings, *, most: int) -> FramePlan:
    """Plan the frames that the settings choose, at most `most` unless they give a number."""
    return plan_frames(
        info,
        # An explicit --frames may exceed the model's default.
        max_frames=settings.frames or most,
        fps=settings.fps,
        frames=settings.frames,
        start=settings.start,
        end=settings.end,
        decoder=settings.decoder,
    )


def plan_video(
    source: Source, model: ModelPlan, settings: Settings, facts: FileFacts, *, version: str = ""
) -> tuple[VideoInfo, FramePlan]:
    """Read the video's header and choose its frames.

    Raises VideoError for a file that is not a readable video, UsageError for a range outside of it
    and for more frames than the model's context allows.
    """
    with source.naming_it():
        info = remembered_probe(source.path, facts, image_fps=settings.fps or 1.0, version=version)
    return info, _plan(info, model, settings)


def _plan(info: VideoInfo, model: ModelPlan, settings: Settings) -> FramePlan:
    plan = _chosen(info, settings, most=model.family.frames)
    _check_context(plan, model)
    return plan


def version_to_read(request: Request) -> str:
    """Return the current version of the request's file; raises DisturbedError unless it has the
    digest.

    A file that was only moved, linked or given another mode since the request was made counts as
    unchanged.
    """
    with request.source.naming_it():
        seen = video_version(request.path)
        if seen != request.version:
            _check_digest(request, NoStore(), version=seen)
    return seen


def check_unchanged(request: Request, facts: FileFacts) -> None:
    """Raise DisturbedError if the path leads to bytes other than those of the request's digest."""
    with request.source.naming_it():
        _check_digest(request, facts)


def _check_digest(request: Request, facts: FileFacts, version: str = "") -> None:
    if digest(request.path, facts, version=version) != request.digest:
        raise changed(request.path)


def kv_bytes(plan: FramePlan, model: ModelPlan, budget: float, *, dtype: str) -> int | None:
    """About how many bytes a video's KV takes in `dtype`; None where the config does not say.

    Layers below the merge layer hold every token, the others the budget's, those with a window its
    last ones.
    """
    # Imports torch.
    from sttm_cli.store import STORED

    shapes = kv_shapes(model.checkpoint)
    width, height = plan.size
    count = token_count(model.checkpoint, len(plan.times_s), width=width, height=height)
    if not shapes or count is None:
        return None
    full = count.visual
    kept = min(full, budget) if isinstance(budget, int) else int(full * budget)
    stated = state_shapes(model.checkpoint)
    recurrent = stated.layers if stated else ()
    numbers = 0
    for index, shape in enumerate(shapes):
        rows = count.text + (full if index < model.merge_layer else kept)
        rows = min(rows, shape.window - 1) if shape.window else rows
        numbers += 0 if index in recurrent else 2 * rows * shape.heads * shape.dim
    size = STORED[dtype].itemsize
    return numbers * size + (stated.nbytes(size) if stated else 0)


def identity_of(video: Json, plan: FramePlan, model: ModelPlan, settings: Settings) -> Json:
    """All that shapes a stored KV: one is used in place of another only where this is equal."""
    return {
        "format": FORMAT if model.family.recurrent is None else WITH_STATES,
        "video": video,
        "frames": plan.identity(),
        "model": model.identity,
        "merge": {
            "method": model.method.identity,
            "layer": model.merge_layer,
            "budget": settings.budget,
            "positions": model.positions,
            "attention_sizes": model.attention_sizes,
        },
        "kv_dtype": model.dtype if settings.kv_dtype == "auto" else settings.kv_dtype,
        "prompt": _prompt(model),
        "libraries": _libraries(
            model.attention, (*quantizers(model.checkpoint), *model.family.libraries)
        ),
    }


def _prompt(model: ModelPlan) -> Json:
    """Return the part of the prompt before the video."""
    prompt: Json = {"template": model.family.template, "options": list(model.options)}
    return prompt | ({"system": model.system} if model.system else {})


@cache
def _libraries(attention: str, more: tuple[str, ...]) -> Json:
    """Return the versions of the libraries that resize frames, make tokens and compute: other
    versions may give other numbers. Cached, since it takes longer than the rest of a request."""
    names = ["tokenizers", "torch", "torchvision", "transformers"]
    if attention.startswith("flash"):
        names.append("flash_attn")
    return {name: _version(name) for name in (*names, *more)}


def _version(name: str) -> str:
    """Return the version of a package, "" if it is missing: loading the model reports that."""
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def _check_context(plan: FramePlan, model: ModelPlan) -> None:
    """Check the context before minutes of decoding: regardless of the budget, the layers below the
    merge layer run every token at a position of its own (M-RoPE has several axes of them)."""
    width, height = plan.size
    frames, limit = len(plan.times_s), context_length(model.checkpoint)
    count = token_count(model.checkpoint, frames, width=width, height=height)
    if model.family.rotary_axes == 1 and limit and count and count.visual >= limit:
        raise UsageError(
            f"{frames} frames give {count.visual:,} tokens, the model's context takes {limit:,}",
            "use fewer --frames",
        )
