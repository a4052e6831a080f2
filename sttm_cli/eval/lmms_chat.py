"""lmms-eval's model class for `VideoQA`; only imported by lmms-eval, if that is installed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lmms_eval.api.instance import GenerationResult, TokenCounts
from lmms_eval.api.model import lmms
from loguru import logger

from sttm_cli.base.errors import UsageError
from sttm_cli.base.types import Sampling
from sttm_cli.runtime.session import VideoQA


class Sttm(lmms):  # type: ignore[misc]
    """Answers with one loaded model; takes the fields of `Settings` as `--model_args`.

    Raises the errors of `VideoQA`, and UsageError for a task that is not about one video.
    """

    is_simple = False

    def __init__(self, batch_size: Any = 1, max_batch_size: Any = None, **fields: Any) -> None:
        super().__init__()
        self.qa = VideoQA(warn=logger.warning, **fields)

    def generate_until(self, requests: Sequence[Any]) -> list[GenerationResult]:
        """Return the answers in the order of the requests."""
        return [self._answer(*request.args) for request in requests]

    def _answer(
        self,
        context: str,
        messages_of: Any,
        how: dict[str, Any],
        number: int,
        task: str,
        split: str,
    ) -> GenerationResult:
        video, question = _asked(messages_of(self.task_dict[task][split][number]))
        answer = self.qa.answer(
            self.qa.prepare(video),
            question,
            sampling=Sampling(float(how.get("temperature") or 0.0)),
            max_new_tokens=int(how.get("max_new_tokens", 1024)),
        )
        counts = TokenCounts(output_tokens=answer.new_tokens)
        return GenerationResult(text=answer.text, token_counts=counts)

    def loglikelihood(self, requests: Sequence[Any]) -> list[Any]:
        """Raise NotImplementedError: the paper's tasks generate."""
        raise NotImplementedError("the model sttm generates answers; it weighs none for lmms-eval")

    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[Any]:
        """Raise NotImplementedError: the paper's tasks have one round."""
        raise NotImplementedError("the model sttm takes tasks of one round")


def _asked(messages: Sequence[dict[str, Any]]) -> tuple[str, str]:
    """Return the one video and the text of a task's messages."""
    parts = [part for message in messages for part in message["content"]]
    videos = [str(part["url"]) for part in parts if part["type"] == "video"]
    others = {part["type"] for part in parts} - {"video", "text"}
    if len(videos) != 1 or others or any(message["role"] != "user" for message in messages):
        raise UsageError("the task is not a question about one video", "choose another task")
    return videos[0], "\n".join(part["text"] for part in parts if part["type"] == "text")
