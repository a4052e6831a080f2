"""One benchmark by lmms-eval: `python -P harness.py JOB.json`. This file runs in lmms-eval's
environment and imports nothing of this package. It ends when its stdin is closed, that is, when its
parent process ends.

The model is lmms-eval's own `openai`. Each reply is recorded in a journal as it arrives, so that an
interrupted run only asks what is missing.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import threading
import traceback
from importlib.metadata import version
from pathlib import Path
from typing import Any

from lmms_eval.evaluator import simple_evaluate
from lmms_eval.models.chat.openai import OpenAICompatible
from lmms_eval.tasks import TaskManager
from openai.types.chat import ChatCompletion

FAILED = "[LMMS_EVAL_REQUEST_FAILED"
"""Prefix of the text that lmms-eval takes as the answer to a failed request."""
_TOGETHER = 4
_PATIENCE_S = 3600.0
_TRUTHS = {
    "score": None,
    "pred_answer": "answer",
    "parsed_pred": "answer",
    "pred": "ground_truth",
}
"""The names under which tasks report whether an item is right: a score, or an answer and its
truth."""


class Journal:
    """Replies by request, in a file of JSON lines; a line truncated by a kill is skipped."""

    def __init__(self, path: Path) -> None:
        self.replies: dict[str, dict[str, Any]] = {}
        self._lock = threading.Lock()
        for line in path.read_bytes().splitlines() if path.exists() else ():
            try:
                kept = json.loads(line)
                self.replies[kept["key"]] = kept["reply"]
            except (ValueError, KeyError, TypeError):
                continue
        self._file = path.open("ab")
        self._file.write(b"\n")  # terminates a truncated line

    def add(self, key: str, reply: dict[str, Any]) -> None:
        """Record a reply; it is on disk when this returns."""
        line = json.dumps({"key": key, "reply": reply}).encode() + b"\n"
        with self._lock:
            self.replies[key] = reply
            self._file.write(line)
            self._file.flush()
            os.fsync(self._file.fileno())


class Served(OpenAICompatible):  # type: ignore[misc]
    """lmms-eval's `openai` with a journal between it and the server."""

    def __init__(self, journal: Journal, **options: Any) -> None:
        super().__init__(**options)
        self.asked: dict[int, str] = {}
        """The video and the text of each item."""
        self.replies: dict[str, dict[str, Any]] = {}
        self.errors: list[str] = []
        self._journal = journal
        client: Any = vars(self)["client"]
        self.client = client.with_options(timeout=_PATIENCE_S, max_retries=0)
        self._create = self.client.chat.completions.create
        self.client.chat.completions.create = self._reply

    def generate_until(self, requests: list[Any]) -> list[Any]:
        for request in requests:
            _, messages_of, _, number, task, split = request.args
            self.asked[number] = _signature(messages_of(self.task_dict[task][split][number]))
        return list(super().generate_until(requests))

    def _reply(self, **payload: Any) -> ChatCompletion:
        asked = _signature(payload["messages"])
        key = hashlib.sha256(json.dumps(payload, sort_keys=True).encode()).hexdigest()
        if key not in self._journal.replies:
            try:
                reply = self._create(**payload).model_dump(mode="json")
            except Exception as error:
                self.errors.append(str(error))
                raise
            self._journal.add(key, reply)
        self.replies[asked] = self._journal.replies[key]
        return ChatCompletion.model_validate(self.replies[asked])


def _parts(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [part for message in messages for part in message["content"]]


def _signature(messages: list[dict[str, Any]]) -> str:
    """Return the video and the text of a task's messages, or of the messages sent to the server."""
    found = []
    for part in _parts(messages):
        address = part["video_url"]["url"] if part["type"] == "video_url" else part.get("url")
        found.append(part.get("text") if address is None else _path(str(address)))
    return json.dumps(found)


def _path(address: str) -> str:
    remote = address.startswith(("http://", "https://", "data:"))
    return address if remote else os.path.abspath(address.removeprefix("file://"))


def _right(value: Any) -> float | None:
    """Return how right an item is, from 0 to 1, by its metric; None if the metric does not say."""
    if isinstance(value, bool | int | float):
        return float(value)
    for name, truth in _TRUTHS.items() if isinstance(value, dict) else ():
        if name in value and (truth is None or truth in value):
            return float(value[name] if truth is None else _same(value[name], value[truth]))
    return None


def _same(given: Any, truth: Any) -> bool:
    return str(given).lower() == str(truth).lower()


def _item(sample: dict[str, Any], model: Served, metric: str) -> dict[str, Any]:
    asked = model.asked[sample["doc_id"]]
    answer = str(sample["filtered_resps"][0])
    return {
        "item": sample["doc_id"],
        "video": json.loads(asked)[0],
        "answer": answer,
        "failed": answer.startswith(FAILED),
        "right": _right(sample.get(metric)),
        "served": model.replies.get(asked, {}).get("sttm"),
    }


def run(job: dict[str, Any]) -> dict[str, Any]:
    """Return the benchmark's score and its items."""
    model = Served(
        Journal(Path(job["journal"])),
        model=job["model"],
        base_url=job["base_url"],
        max_frames_num=job["frames"],
        num_concurrent=_TOGETHER,
        max_retries=1,
        # Keep the dataset's order, in which questions about the same video are adjacent.
        prefix_aware_queue=False,
        httpx_trust_env=False,
        pass_video_url=True,
    )
    tasks = TaskManager("ERROR", include_path=job["include"] or None, model_name="openai")
    done = simple_evaluate(
        model=model,
        tasks=[job["task"]],
        task_manager=tasks,
        limit=job["limit"],
        batch_size=1,
        verbosity="WARNING",
        bootstrap_iters=0,
        process_docs_parallel=1,
    )
    task = job["task"]
    metric = done["configs"][task]["metric_list"][0]["metric"]
    found = [v for name, v in done["results"][task].items() if name.split(",")[0] == metric]
    items = [_item(sample, model, metric) for sample in done["samples"][task]]
    return {
        "task": task,
        "metric": metric,
        "score": float(found[0]),
        "items": items,
        "errors": model.errors,
        "lmms_eval": version("lmms_eval"),
    }


def _end_with_the_parent() -> None:
    # Not sys.stdin: Python cannot end while a thread holds its lock.
    while os.read(0, 4096):
        pass
    os._exit(1)


def _line(error: BaseException | None) -> str:
    """Return an exception in one line, for tenacity's RetryError that of its last attempt."""
    while (attempt := getattr(error, "last_attempt", None)) is not None:
        error = attempt.exception()
    return " ".join(f"{type(error).__name__}: {error}".split())


def main() -> None:
    """Run the job in the given file; its result is written atomically."""
    threading.Thread(target=_end_with_the_parent, daemon=True).start()
    job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    try:
        result, out = run(job), Path(job["out"])
    except Exception as error:
        traceback.print_exc()
        sys.exit(_line(error))
    part = out.with_suffix(".part")
    part.write_text(json.dumps(result), encoding="utf-8")
    part.replace(out)


if __name__ == "__main__":
    main()
