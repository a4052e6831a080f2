"""The text side that families share: chat template, token ids, embeddings, logits."""

from __future__ import annotations

from collections.abc import Sequence
from textwrap import shorten
from typing import Any

import torch

from sttm_cli.base.errors import ModelError, UsageError
from sttm_cli.base.types import Prompt, VisualTokens


class ChatFormat:
    """Cuts the model's own chat template right after the video, so that both parts tokenize
    exactly as the whole does: a control token is a hard border for every tokenizer."""

    decoder: Any

    def __init__(self, tokenizer: Any, template: str, video_token: str, model: Any) -> None:
        self._tokenizer = tokenizer
        self._template = template
        self._video_token = video_token
        self._lm_head = model.lm_head
        self._embedding = model.get_input_embeddings()
        self._control = frozenset(tokenizer.all_special_tokens) | {video_token}
        self._generation = model.generation_config
        self.video_id: int = tokenizer.convert_tokens_to_ids(video_token)

    @property
    def layer_devices(self) -> list[str]:
        return [str(next(layer.parameters()).device) for layer in self.decoder.layers]

    @property
    def end_ids(self) -> frozenset[int]:
        ends = self._generation.eos_token_id
        if ends is None:
            ends = self._tokenizer.eos_token_id
        return frozenset(ends if isinstance(ends, (list, tuple)) else [ends])

    @property
    def top_p(self) -> float:
        return self._generation.top_p or 1.0

    def head(self) -> str:
        """The rendered prompt before the video."""
        return self._cut(self._render([{"role": "user", "content": _with_video("")}]))[0]

    def head_ids(self) -> list[int]:
        """Token ids before the video."""
        head = self.head()
        return list(self._tokenizer(head).input_ids) if head else []

    def spread(self, text: str, each: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Token ids [L] of a prompt in which every video token stands for `each` of them, and
        their places in it."""
        ids = torch.tensor(self._tokenizer(text).input_ids)
        ids = ids.repeat_interleave(torch.where(ids == self.video_id, each, 1))
        return ids, (ids == self.video_id).nonzero()[:, 0]

    def question(self, text: str, history: Sequence[tuple[str, str]] = ()) -> torch.Tensor:
        for part in [text, *(q for q, _ in history)]:
            self._check(part)
        turns = [*history, (text, "")]
        messages: list[dict[str, Any]] = []
        for index, (question, answer) in enumerate(turns):
            content = _with_video(question) if index == 0 else [_text(question)]
            messages.append({"role": "user", "content": content})
            if index < len(turns) - 1:
                messages.append({"role": "assistant", "content": [_text(answer)]})
        _, tail = self._cut(self._render(messages))
        return torch.tensor(self._tokenizer(tail, add_special_tokens=False).input_ids)

    def answer(self, text: str) -> torch.Tensor:
        self._check(text)
        return torch.tensor(self._tokenizer(text, add_special_tokens=False).input_ids)

    def embed(self, ids: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self._embedding(ids.to(self._embedding.weight.device))
        return result

    def embed_prompt(self, prompt: Prompt, tokens: VisualTokens) -> torch.Tensor:
        embeds = self.embed(prompt.ids).clone()
        embeds[prompt.video.to(embeds.device)] = tokens.features.flatten(0, 2).to(embeds)
        return embeds

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self._lm_head(hidden).float()
        return result

    def weighed(
        self, logits: torch.Tensor, prompt: Sequence[int], made: Sequence[int]
    ) -> torch.Tensor:
        # Of the settings in generation_config.json this one acts in greedy decoding too.
        penalty = self._generation.repetition_penalty or 1.0
        if penalty == 1.0:
            return logits
        from transformers import RepetitionPenaltyLogitsProcessor

        seen = torch.tensor([[*prompt, *made]], device=logits.device)
        result: torch.Tensor = RepetitionPenaltyLogitsProcessor(penalty)(seen, logits[None])[0]
        return result

    def text(self, ids: Sequence[int]) -> str:
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=True))

    def _render(self, messages: list[dict[str, Any]]) -> str:
        return str(
            self._tokenizer.apply_chat_template(
                messages, chat_template=self._template, tokenize=False, add_generation_prompt=True
            )
        )

    def _cut(self, rendered: str) -> tuple[str, str]:
        head, token, tail = rendered.partition(self._video_token)
        if not token:
            raise ModelError(
                "the model's chat template puts no video into the prompt",
                "give a checkpoint whose chat template knows videos",
            )
        return head, tail

    def _check(self, text: str) -> None:
        # A control token typed by a user would be read as one, and the answer be about nothing.
        found = sorted(token for token in self._control if token and token in text)
        if found:
            start = shorten(text, 60)
            raise UsageError(
                f"{start!r} holds {found[0]!r}, which the model reads as a control token",
                "write it differently",
            )


def _text(text: str) -> dict[str, str]:
    return {"type": "text", "text": text}


def _with_video(question: str) -> list[dict[str, str]]:
    return [{"type": "video"}, _text(question)]
