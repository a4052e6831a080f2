"""`sttm bench speed`: seconds per stage, memory, and the share of the machine's limits."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sttm_cli.base.errors import UsageError
from sttm_cli.base.types import Json
from sttm_cli.cli.flags import RUN, Output, completing, settings_from, takes, without
from sttm_cli.cli.output import (
    StageProgress,
    check_plot,
    print_json,
    print_text,
    print_words,
    say,
    size,
    starting,
    warn,
)
from sttm_cli.cli.tables import columns
from sttm_cli.settings.fields import parse_budget
from sttm_cli.settings.settings import DEFAULT_MODEL

if TYPE_CHECKING:
    from sttm_cli.bench.speed import Speed, SpeedRow
    from sttm_cli.runtime.session import VideoQA
    from sttm_cli.settings.settings import Settings

FRAMES = "32,64,128,256"
BUDGETS = "1,0.5,0.3,0.15"


def _geometries() -> Iterable[str]:
    from sttm_cli.bench.geometry import GEOMETRIES

    return GEOMETRIES


_NOT_HERE = ("budget", "frames", "refresh", "no_cache", "max_bytes", "start", "end", "system")


@takes(without(RUN, *_NOT_HERE))
def speed(
    video: Annotated[
        str | None,
        typer.Argument(metavar="VIDEO", help="A video file. (default: a generated one)"),
    ] = None,
    *,
    geometry: Annotated[
        str | None,
        typer.Option(
            "--geometry",
            metavar="NAME",
            show_default=False,
            autocompletion=completing(_geometries),
            help="Random weights of a model's true sizes, such as llava-video-7b; no download.",
        ),
    ] = None,
    layers: Annotated[
        int | None,
        typer.Option(
            "--layers", min=1, show_default=False, help="With --geometry: use fewer layers."
        ),
    ] = None,
    scale: Annotated[
        int, typer.Option("--scale", min=1, help="With --geometry: divide its widths by this.")
    ] = 1,
    frames: Annotated[
        str, typer.Option("--frames", metavar="N,N,...", help="Numbers of frames.")
    ] = FRAMES,
    budgets: Annotated[
        str, typer.Option("--budgets", metavar="B,B,...", help="The budgets to compare.")
    ] = BUDGETS,
    repeat: Annotated[
        int, typer.Option("--repeat", min=1, max=100, help="Measure this often and show medians.")
    ] = 3,
    peers: Annotated[
        bool, typer.Option("--peers/--no-peers", help="Also measure transformers alone.")
    ] = True,
    plot: Annotated[
        Path | None,
        typer.Option(
            "--plot",
            metavar="FILE",
            show_default=False,
            help="Draw a chart as .png, .svg or .pdf; needs matplotlib.",
        ),
    ] = None,
    flags: dict[str, Any],
    output: Output,
) -> None:
    """Measure each stage by frames and budget.

    Seconds cold and cached, peak memory, KV bytes, and how close they come to the limits of this
    machine's arithmetic and bandwidth. Nothing is left in the cache.
    """
    counts = [_count(part) for part in frames.split(",")]
    wanted = [parse_budget("--budgets", part) for part in budgets.split(",")]
    check_plot(plot)
    if geometry is None and (layers is not None or scale != 1):
        raise UsageError("--layers and --scale need --geometry", "a model's size is its own")
    settings = settings_from(flags, compares=True)
    for flag, given in (
        ("--model", settings.model != DEFAULT_MODEL),
        ("--revision", settings.revision),
    ):
        if geometry is not None and given:
            raise UsageError(f"--geometry and {flag} cannot be combined", "give one of them")
    with starting(output):
        from sttm_cli.bench.speed import measure_speed

    with (
        StageProgress(output) as progress,
        _pipeline(settings, geometry, layers, scale, progress) as qa,
        _footage(video, max(counts), settings.fps) as path,
    ):
        measured = []
        for part in measure_speed(
            qa, path, frames=counts, budgets=wanted, repeat=repeat, peers=peers
        ):
            measured.append(part)
            if not output.quiet:
                progress.stop()
                say(f"{part.rows[0].frames} frames measured")
        progress.stop()
        about = _about(qa, geometry, layers, scale, video)
    report = {"schema": "sttm.bench.speed/1", **about, **_json(measured)}
    if plot is not None:
        from sttm_cli.bench.charts import speed_chart

        speed_chart(report).save(plot)
    if output.as_json:
        print_json(report)
    else:
        _tables(about, measured)


def _count(text: str) -> int:
    if not text.strip().isdigit() or int(text) < 1:
        raise UsageError(f"--frames {text!r} is not a number of frames", "give such as 32,64")
    return int(text)


@contextmanager
def _pipeline(
    settings: Settings, geometry: str | None, layers: int | None, scale: int, progress: Any
) -> Iterator[VideoQA]:
    from sttm_cli.runtime.session import VideoQA

    if geometry is None:
        with VideoQA(settings, warn=warn, progress=progress) as qa:
            yield qa
        return
    from sttm_cli.base.device import resolve_device, resolve_dtype
    from sttm_cli.bench.random_model import random_qa

    device = resolve_device(settings.device)
    dtype = resolve_dtype(settings.dtype, device)
    with random_qa(
        geometry, settings, device=device, dtype=dtype, layers=layers, scale=scale
    ) as qa:
        yield qa


@contextmanager
def _footage(video: str | None, frames: int, fps: float | None) -> Iterator[Path]:
    """Yield the given file, or a generated one with at least so many frames."""
    if video is not None:
        yield Path(video)
        return
    from sttm_cli.bench.footage import write_footage

    with tempfile.TemporaryDirectory(prefix="sttm-") as folder:
        path = Path(folder) / "made.mp4"
        write_footage(path, seconds=int(frames / (fps or 1.0)) + 1)
        yield path


def _about(
    qa: VideoQA, geometry: str | None, layers: int | None, scale: int, video: str | None
) -> Json:
    import torch

    device = qa.model_plan.device
    cuda = device.startswith("cuda")
    config = qa.model().decoder.config
    return {
        "model": geometry or qa.settings.model,
        "weights": "random" if geometry else "the model's",
        "layers": config.num_hidden_layers,
        "hidden_size": config.hidden_size,
        "shrunk": {"layers": layers, "scale": scale} if layers or scale != 1 else None,
        "method": qa.settings.method,
        "merge_layer": qa.model_plan.merge_layer,
        "positions": qa.model_plan.positions,
        "device": torch.cuda.get_device_name(device) if cuda else device,
        "threads": torch.get_num_threads(),
        "dtype": qa.model_plan.dtype,
        "torch": torch.__version__,
        "video": video or "made: 384x384 H.264, 2 frames per second",
    }


def _json(measured: list[Speed]) -> Json:
    return {
        "rates": measured[0].rates.to_json(),
        "frames": [
            {
                "frames": part.rows[0].frames,
                "rows": [{**row.to_json(), "speedup": _gains(part, row)} for row in part.rows],
                "transformers": part.alone.to_json() if part.alone else None,
            }
            for part in measured
        ],
    }


def _gains(part: Speed, row: SpeedRow) -> dict[str, float]:
    """Return the speedups: of the LLM and of the whole path against budget 1; from the cache and in
    a conversation against this budget's own cold run."""
    full = part.rows[0]
    return {
        "llm": full.llm / row.llm,
        "cold": full.cold / row.cold,
        "cached": row.cold / row.cached,
        "follow_up": row.cold / row.seconds["question"],
    }


def _tables(about: Json, measured: list[Speed]) -> None:
    from sttm_cli.bench.charts import model_words

    rates = measured[0].rates
    print_words(
        f"{model_words(about)}; merged by {about['method']} before layer {about['merge_layer']} of "
        f"{about['layers']}, {about['positions']} positions\n"
        f"{about['device']}, {about['threads']} threads, {about['dtype']}, torch {about['torch']}; "
        f"video {about['video']}\n"
        f"measured here: {rates.flops / 1e12:.3g} TFLOP/s, memory {rates.memory / 1e9:.3g} GB/s, "
        f"cache file {rates.disk / 1e9:.3g} GB/s\n"
    )
    print_text(_seconds(measured), "", _ratios(measured), "")
    for part in measured:
        if part.alone is not None:
            before = sum(part.rows[0].seconds[name] for name in ("decode", "encode"))
            print_words(
                f"transformers alone, {part.rows[0].frames} frames: generate on the full tokens "
                f"{part.alone.generate:.3f} s (from the file {before + part.alone.generate:.3f}), "
                f"its prompt cache {part.alone.prompt_cache:.3f} s a question, in one process"
            )


def _seconds(measured: list[Speed]) -> str:
    names = ("decode", "encode", "merge", "prefill", "restore", "question")
    head = ("frames", "budget", "kept", "KV", *names, "tok/s", "memory")
    rows = [
        (
            f"{row.frames}",
            f"{row.budget:g}",
            f"{row.kept}",
            size(row.kv_bytes).replace(" ", ""),
            *(f"{row.seconds[name]:.3f}" for name in names),
            f"{row.tokens_per_s:.1f}",
            "-" if row.peak_bytes is None else size(row.peak_bytes).replace(" ", ""),
        )
        for part in measured
        for row in part.rows
    ]
    title = "seconds, medians; question: from the prefix in memory to the first token"
    return f"{title}\n{columns(head, rows)}"


def _ratios(measured: list[Speed]) -> str:
    floors = ("encode", "merge", "prefill", "restore", "token")
    gains = ("llm", "cold", "cached", "follow_up")
    head = (
        "frames", "budget", "LLM faster", "cold faster", "cached faster", "follow-up faster",
        "merge of prefill", *(f"{name} floor %" for name in floors),
    )  # fmt: skip
    rows = [
        (
            f"{row.frames}",
            f"{row.budget:g}",
            *(f"{_gains(part, row)[name]:.2f}x" for name in gains),
            f"{100 * row.seconds['merge'] / row.seconds['prefill']:.1f}%",
            *(f"{100 * row.shares[name]:.0f}" for name in floors),
        )
        for part in measured
        for row in part.rows
    ]
    title = (
        "to the first token: LLM and cold (from the file) against budget 1, cached and follow-up\n"
        "against the same budget cold; floors: the least this machine allows, in % of the time"
    )
    return f"{title}\n{columns(head, rows)}"
