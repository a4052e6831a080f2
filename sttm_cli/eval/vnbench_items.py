"""VNBench's annotations, converted to the items that its task reads."""

from __future__ import annotations

import json
from pathlib import Path

from sttm_cli.base.errors import SttmError
from sttm_cli.base.types import Json

ANNOTATIONS = "VNBench-main-4try.json"
ITEMS = "vnbench.jsonl"
_LETTERS = "ABCD"


def write_items(folder: Path) -> None:
    """Write the items of the annotations in `folder`, whose videos are in it or below.

    Raises SttmError if the annotations are missing or not VNBench's, or if a video is missing.
    """
    source, target = folder / ANNOTATIONS, folder / ITEMS
    try:
        entries = json.loads(source.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SttmError(
            f"VNBench's annotations are missing: {source}",
            "see docs/evaluation.md for where they and the videos come from",
        ) from None
    except ValueError as error:
        raise SttmError(f"{source} is not JSON: {error}", "download it again") from error
    videos = {path.name: path for path in sorted(folder.rglob("*.mp4"))}
    lines = [_item(source, number, entry, videos) for number, entry in enumerate(entries, 1)]
    text = "".join(f"{json.dumps(line)}\n" for line in lines)
    if not target.exists() or target.read_text(encoding="utf-8") != text:
        part = target.with_suffix(".part")
        part.write_text(text, encoding="utf-8")
        part.replace(target)


def _item(source: Path, number: int, entry: Json, videos: dict[str, Path]) -> Json:
    try:
        options = [str(option) for option in entry["options"]]
        answer = entry.get("gt_option") or _LETTERS[options.index(str(entry["gt"]))]
        name = Path(entry["video"]).name
        item = {"question": str(entry["question"]), "options": options, "answer": str(answer)}
        kind = str(entry["type"])
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise SttmError(
            f"{source}, entry {number}, is not one of VNBench: {type(error).__name__} {error}",
            "download it again",
        ) from error
    if name not in videos:
        raise SttmError(f"the video {name} of VNBench is missing below {source.parent}")
    return {"video": str(videos[name].absolute()), **item, "type": kind, "try": entry.get("try")}
