"""Generated scenes as a task for lmms-eval, and as data in the forms of the benchmarks."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sttm_cli.bench.exam import FIRST_SEED, Exam, Sheet

YAML = """
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
task: scenes
test_split: test
output_type: generate_until
doc_to_visual: !function utils.video_of
doc_to_text: !function utils.text_of
doc_to_target: answer
generation_kwargs:
  max_new_tokens: 16
  temperature: 0
  top_p: 1.0
process_results: !function utils.judge
metric_list:
  - metric: scenes
    aggregation: mean
    higher_is_better: true
"""
UTILS = """
def video_of(doc):
    return [doc["video"]]

def text_of(doc, lmms_eval_specific_kwargs=None):
    return doc["question"]

def judge(doc, results):
    return {"scenes": float(results[0].strip().lower() == doc["answer"])}
"""


def sheets(folder: Path, count: int, *, seconds: int = 4) -> list[Sheet]:
    """Videos of held-out scenes, with their questions."""
    exam, first = Exam("test", seconds), FIRST_SEED["test"]
    return [exam.sheet(first + number, folder) for number in range(count)]


def items(found: Sequence[Sheet]) -> list[dict[str, Any]]:
    """Every question of the sheets."""
    return [
        {"video": str(sheet.path), "question": q.text, "answer": q.answer, "category": q.kind}
        for sheet in found
        for q in sheet.questions
    ]


def write_lines(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return path


def write_task(folder: Path, rows: Sequence[dict[str, Any]]) -> Path:
    """The task `scenes` of these items."""
    data = write_lines(folder / "scenes.jsonl", rows)
    (folder / "scenes.yaml").write_text(YAML.format(data=data), encoding="utf-8")
    (folder / "utils.py").write_text(UTILS, encoding="utf-8")
    return folder
