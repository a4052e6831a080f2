"""Stand-ins for the paper's benchmarks, in their own formats: parquet under the names of the hub,
videos where lmms-eval unpacks them."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sttm_cli.bench.exam import Sheet

README = """---
configs:
- config_name: {config}
  data_files:
  - split: {split}
    path: {config}/{split}-*
---
"""
WRITE = "import json, pandas, sys; pandas.DataFrame(json.load(sys.stdin)).to_parquet(sys.argv[1])"
LETTERS = "ABCDE"


def write_benchmarks(home: Path, python: Path, found: Sequence[Sheet]) -> None:
    """All six benchmarks below `home`, a question for each of the sheets."""
    rows = [_row(number, sheet) for number, sheet in enumerate(found)]
    places = {
        "lmms-eval/Video-MME videomme test": ("videomme/data", _video_mme),
        "longvideobench/LongVideoBench default validation": (
            "datasets/longvideobench/videos",
            _long_video_bench,
        ),
        "sy1998/MLVU_dev default test": ("mlvu", _mlvu),
        "lmms-eval/egoschema Subset test": ("egoschema/videos", _ego_schema),
        "lmms-eval/NExTQA MC test": ("nextqa/NExTVideo", _next_qa),
    }
    for name, (videos, made) in places.items():
        repository, config, split = name.split()
        _parquet(home / repository, config, split, python, [made(row) for row in rows])
        _copy(home / videos, found)
    _copy(home / "VNBench" / "VNBench_new", found)
    annotations = home / "VNBench" / "VNBench-main-4try.json"
    annotations.write_text(json.dumps([_vnbench(row, t) for row in rows for t in range(4)]))


def _row(number: int, sheet: Sheet) -> dict[str, Any]:
    question = sheet.questions[0]
    options = [question.answer, "a house", "a dog", "a boat", "nothing"]
    return {"id": f"v{number}", "question": question.text, "options": options, "number": number}


def _copy(folder: Path, found: Sequence[Sheet]) -> None:
    folder.mkdir(parents=True)
    for number, sheet in enumerate(found):
        shutil.copy(sheet.path, folder / f"v{number}.mp4")


def _parquet(
    folder: Path, config: str, split: str, python: Path, rows: Sequence[dict[str, Any]]
) -> None:
    (folder / config).mkdir(parents=True)
    (folder / "README.md").write_text(README.format(config=config, split=split))
    file = folder / config / f"{split}-00000-of-00001.parquet"
    subprocess.run([python, "-P", "-c", WRITE, file], input=json.dumps(rows).encode(), check=True)


def _video_mme(row: dict[str, Any]) -> dict[str, Any]:
    return {
        "video_id": row["id"],
        "videoID": row["id"],
        "question_id": f"{row['id']}-1",
        "duration": "short",
        "domain": "Knowledge",
        "sub_category": "Astronomy",
        "task_type": "Counting Problem",
        "question": row["question"],
        "options": [f"{a}. {o}" for a, o in zip("ABCD", row["options"], strict=False)],
        "answer": "A",
    }


def _long_video_bench(row: dict[str, Any]) -> dict[str, Any]:
    options = {f"option{place}": option for place, option in enumerate(row["options"])}
    about = {"duration_group": 15, "question_category": "S2E", "duration": 4.0}
    return {
        "id": row["id"],
        "video_path": f"{row['id']}.mp4",
        "question": row["question"],
        "correct_choice": 0,
        **options,
        **about,
    }


def _mlvu(row: dict[str, Any]) -> dict[str, Any]:
    options = "\n".join(f"({a}) {o}" for a, o in zip("ABCD", row["options"], strict=False))
    return {
        "video_name": f"{row['id']}.mp4",
        "question": f"{row['question']}\n{options}",
        "answer": "A",
        "task_type": ("count", "needle")[row["number"] % 2],
    }


def _ego_schema(row: dict[str, Any]) -> dict[str, Any]:
    return {
        "question_idx": str(row["number"]),
        "question": row["question"],
        "video_idx": row["id"],
        "option": [f"{a}. {o}" for a, o in zip(LETTERS, row["options"], strict=True)],
        "answer": "0",
    }


def _next_qa(row: dict[str, Any]) -> dict[str, Any]:
    options = {f"a{place}": option for place, option in enumerate(row["options"])}
    return {"video": row["id"], "question": row["question"], "answer": 0, "qid": "1", **options}


def _vnbench(row: dict[str, Any], turn: int) -> dict[str, Any]:
    options = [*row["options"][1 : 1 + turn], row["options"][0], *row["options"][1 + turn : 4]]
    return {
        "video": f"/VNBench_new/{row['id']}.mp4",
        "question": row["question"],
        "options": options,
        "gt": row["options"][0],
        "gt_option": "ABCD"[turn],
        "type": "ret_insert1",
        "try": turn,
        "needle_time": [[0, 1]],
    }
