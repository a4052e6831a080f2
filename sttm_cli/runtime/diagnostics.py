"""The checks of `sttm doctor`; each component is exercised, not just located."""

from __future__ import annotations

import os
import platform
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from functools import partial
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from sttm_cli import __version__
from sttm_cli.base.errors import SttmError
from sttm_cli.base.types import Json
from sttm_cli.settings.settings import Settings, cache_dir, config_path, read_config

NEEDED = {"torch": "torch", "torchvision": "torchvision", "transformers": "transformers",
          "av": "av", "diskcache": "diskcache", "safetensors": "safetensors",
          "huggingface-hub": "huggingface_hub"}  # fmt: skip
"""Distributions and their modules."""
VERIFIED = 5
"""How many cache entries are verified byte by byte."""
LEAST_FREE = 1 << 30


@dataclass(frozen=True)
class Check:
    """The result of a check. `problem` is None if it passed; a `problem` that is not `needed` only
    costs comfort or speed. `hint`: the remedy."""

    name: str
    found: str
    problem: str | None = None
    hint: str = ""
    needed: bool = True
    facts: Json = field(default_factory=dict)

    @property
    def broken(self) -> bool:
        return self.problem is not None and self.needed


def examine(settings: Settings) -> Iterator[Check]:
    """Yield the checks as they complete."""
    yield _python()
    for distribution, module in NEEDED.items():
        yield _library(distribution, module)
    yield _told("devices", _devices)
    yield _told("attention", _attention)
    yield _told("decode with av", partial(_decoder, "av", needed=True))
    yield _told("decode with decord", _decord)
    yield _told("models", _hub)
    probed = list[Check]()
    yield _told("cache", partial(_store, settings, probed))
    yield from probed
    yield _told("config", _config)


def _told(name: str, check: Callable[[], Check]) -> Check:
    """Turn an exception of a check into a finding, so that the other checks still run."""
    try:
        return check()
    except Exception as error:
        lines = str(error).splitlines() or [""]
        why = f"{type(error).__name__}: {lines[0][:200]}"
        return Check(name=name, found="", problem=why, hint="fix the problems above it first")


def _python() -> Check:
    found = f"{platform.python_version()} ({platform.system()} {platform.machine()})"
    old = sys.version_info < (3, 11)
    problem = "older than 3.11" if old else None
    return Check(
        name="python",
        found=f"{found}, sttm {__version__}",
        problem=problem,
        hint="install Python 3.11 or newer",
    )


def _library(distribution: str, module: str) -> Check:
    hint = f"pip install --upgrade {distribution}"
    try:
        found = version(distribution)
        import_module(module)
    except PackageNotFoundError:
        return Check(name=distribution, found="", problem="not installed", hint=hint)
    except (ImportError, OSError, RuntimeError) as error:
        # For example, a torchvision built for another torch.
        return Check(
            name=distribution,
            found=found,
            problem=f"cannot be imported: {str(error)[:200]}",
            hint=hint,
        )
    return Check(distribution, found, facts={"version": found})


def _devices() -> Check:
    import torch

    pages = os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 0
    memory = pages * os.sysconf("SC_PAGE_SIZE") if pages > 0 else None
    rows: list[Json] = [{"device": "cpu", "cores": os.cpu_count(), "bytes": memory}]
    for index in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(index)
        name = torch.cuda.get_device_name(index)
        rows.append({"device": f"cuda:{index}", "name": name, "bytes": total, "free": free})
    if torch.backends.mps.is_available():
        rows.append({"device": "mps", "bytes": torch.mps.recommended_max_memory()})
    return Check("devices", "; ".join(map(_device, rows)), facts={"devices": rows})


def _device(row: Json) -> str:
    about = row.get("name") or (f"{row['cores']} cores" if "cores" in row else "")
    memory = f"{row['bytes'] / 2**30:.0f} GiB" if row["bytes"] else "memory unknown"
    free = f", {row['free'] / 2**30:.0f} GiB free" if "free" in row else ""
    return " ".join(part for part in (row["device"], about, memory + free) if part)


def _attention() -> Check:
    import torch
    from transformers.utils import is_flash_attn_2_available

    if is_flash_attn_2_available():
        return Check("attention", "flash attention 2")
    if not torch.cuda.is_available():
        return Check("attention", "torch's own (flash attention needs an NVIDIA GPU)")
    return Check(
        name="attention",
        found="torch's own",
        problem="flash attention is not installed: long videos prefill slower",
        hint="pip install flash-attn",
        needed=False,
    )


def _decord() -> Check:
    try:
        version("decord")
    except PackageNotFoundError:
        return Check("decode with decord", "not installed; PyAV reads every video")
    return _decoder("decord", needed=False)


def _decoder(reader: str, *, needed: bool) -> Check:
    """Write a small video and read it back with the package's own decoding."""
    name = f"decode with {reader}"
    hint = "pip install --force-reinstall av" if needed else "leave --decoder at auto"
    with tempfile.TemporaryDirectory(prefix="sttm-") as folder:
        path = Path(folder) / "check.mp4"
        try:
            codec = _write_video(path)
            shades = _read_shades(path, reader)
        except (SttmError, OSError, ImportError, ValueError) as error:
            return Check(
                name=name, found="", problem=str(error).splitlines()[0], hint=hint, needed=needed
            )
    wrong = [
        shade for shade, wanted in zip(shades, SHADES, strict=False) if abs(shade - wanted) > 8
    ]
    if len(shades) != len(SHADES) or wrong:
        return Check(
            name=name,
            found="",
            problem=f"wrong frames: {shades}, not {list(SHADES)}",
            hint=hint,
            needed=needed,
        )
    return Check(name, f"{len(shades)} frames of {codec} came back right", needed=needed)


SHADES = (40, 100, 160, 220)
"""The grey level of each second of the test video."""


def _write_video(path: Path) -> str:
    import av
    import numpy as np

    codec = "libx264" if "libx264" in av.codecs_available else "mpeg4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=2)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        for number in range(2 * len(SHADES)):
            grey = np.full((64, 64, 3), SHADES[number // 2], np.uint8)
            frame = av.VideoFrame.from_ndarray(grey, format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, 2)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return {"libx264": "H.264"}.get(codec, codec)


def _read_shades(path: Path, reader: str) -> list[int]:
    from sttm_cli.base.types import DecodeReport
    from sttm_cli.decode import plan_frames, probe, read_frames

    plan = plan_frames(probe(path), max_frames=len(SHADES), decoder=reader)
    chunks = read_frames(path, plan, report=DecodeReport())
    return [round(float(frame.mean())) for chunk in chunks for frame in chunk.frames]


def _hub() -> Check:
    from huggingface_hub import scan_cache_dir
    from huggingface_hub.constants import HF_HUB_CACHE, HF_HUB_OFFLINE

    place = Path(HF_HUB_CACHE)
    size = scan_cache_dir(place).size_on_disk if place.is_dir() else 0
    facts = {"path": str(place), "bytes": size, "offline": bool(HF_HUB_OFFLINE)}
    mode = ", offline (HF_HUB_OFFLINE)" if HF_HUB_OFFLINE else ""
    return Check("models", f"{place}, {size / 1e9:.1f} GB{mode}", facts=facts)


def _store(settings: Settings, probed: list[Check]) -> Check:
    """Check the cache; its store's tests of the storage are appended to `probed`."""
    from sttm_cli.store import NO_BOUND, open_store

    said: list[str] = []
    with open_store(
        cache_dir(settings.cache_dir),
        max_bytes=settings.max_bytes,
        tier=settings.cache_tier,
        warn=said.append,
    ) as store:
        entries, damaged = store.verify(limit=VERIFIED)
        held = store.bytes
        writable, limit = store.writable, store.max_bytes
        free = store.space().free
        if writable:
            probed += [Check(**probe._asdict(), needed=False) for probe in store.probes()]
        facts = {
            "path": store.location, "entries": entries, "bytes": held, "max_bytes": limit,
            "free": free, "verified": min(entries, VERIFIED), "damaged": len(damaged),
        }  # fmt: skip
    problem, hint = None, ""
    if not writable:
        problem = said[0] if said else "nothing can be written there"
        hint = "give another folder with --cache-dir or STTM_CACHE_DIR"
    elif damaged:
        problem = f"{len(damaged)} entries cannot be used, such as: {damaged[0].problem}"
        hint = "sttm cache verify --repair removes them"
    elif free is not None and free < LEAST_FREE:
        problem = f"{free / 2**20:.0f} MiB of disk are left"
        hint = "sttm cache prune --max-bytes 1G, or another folder with --cache-dir"
    bound = "GB" if limit == NO_BOUND else f"of at most {limit / 1e9:.2f} GB"
    left = "" if free is None else f"{free / 1e9:.0f} GB free, "
    found = (
        f"{facts['path']}, {entries} entries, {held / 1e9:.2f} {bound}, "
        f"{left}{facts['verified']} checked"
    )
    return Check(name="cache", found=found, problem=problem, hint=hint, facts=facts)


def _config() -> Check:
    path = config_path()
    facts = {"path": str(path), "exists": path.is_file()}
    if not path.is_file():
        return Check("config", f"{path} (missing)", facts=facts)
    try:
        keys = read_config()
    except SttmError as error:
        return Check(
            name="config",
            found=str(path),
            problem=error.message,
            hint=error.hint or f"correct {path}",
        )
    return Check("config", f"{path}: {', '.join(keys) or 'empty'}", facts=facts)
