"""`ChatFormat`, the base of all families: frames, chat template, token ids, logits.

Imports torch only where it is used, so that a family's file can be imported without it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy
from itertools import pairwise
from textwrap import shorten
from typing import TYPE_CHECKING, Any, Self

from sttm_cli.base.device import is_out_of_memory
from sttm_cli.base.errors import ModelError, SttmError, UsageError
from sttm_cli.base.types import FrameChunk, Prompt, VisualTokens
from sttm_cli.models.template import render

if TYPE_CHECKING:
    import torch


class ChatFormat:
    """A loaded model with its chat template; a family adds `visual_tokens` and `prompt`.

    The rendered prompt is cut at the video token. No tokenizer merges text across a control token,
    so both parts tokenize exactly as the whole does. `processor` is a transformers processor, or
    an object with its `tokenizer`, `video_processor`, `video_token` and `chat_template`;
    `template` replaces the chat template.
    """

    decoder: Any

    def __init__(self, model: Any, processor: Any, *, template: str | None = None) -> None:
        tokenizer, video_token = processor.tokenizer, processor.video_token
        if not isinstance(video_token, str) or not video_token:
            raise ModelError("the model has no video token", "give a checkpoint made for videos")
        self._model = model
        self._tokenizer = tokenizer
        self._template = _only(template or processor.chat_template or tokenizer.chat_template)
        self._special = dict(tokenizer.special_tokens_map)
        self._video_token = video_token
        self._frames = processor.video_processor
        self._lm_head = model.lm_head
        self._embedding = model.get_input_embeddings()
        self._control = frozenset(tokenizer.all_special_tokens) | {video_token}
        self._generation = model.generation_config
        self._system = ""
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

    def with_system(self, text: str) -> Self:
        self._check(text)
        other = copy(self)
        other._system = text
        return other

    def encode(self, chunk: FrameChunk, frames: int) -> VisualTokens:
        import torch

        with torch.inference_mode(), _reworded("encode frames"):
            return self.visual_tokens(torch.from_numpy(chunk.frames).permute(0, 3, 1, 2), frames)

    def visual_tokens(self, video: torch.Tensor, frames: int) -> VisualTokens:
        """Encode [T, 3, H, W] uint8, part of a video of `frames` frames, to tokens [T', h, w, C].

        Called in inference mode.
        """
        raise NotImplementedError

    def pixels(self, video: torch.Tensor, name: str) -> torch.Tensor:
        """Return the video processor's output `name` for frames [T, 3, H, W], on the model."""
        output = self._frames(video, do_sample_frames=False, return_tensors="pt")[name]
        pixels: torch.Tensor = output.to(self._model.device, self._model.dtype)
        return pixels

    def head(self) -> str:
        """Return the rendered prompt before the video."""
        return self._cut(self._render([{"role": "user", "content": _with_video("")}]))[0]

    def head_ids(self) -> list[int]:
        head = self.head()
        return self._ids_at_start(head) if head else []

    def ids_after(self, text: str) -> list[int]:
        """Return the token ids of text that follows other text."""
        return self._ids(text, add_special_tokens=False)

    def spread(self, text: str, each: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Tokenize `text` with every video token repeated `each` times.

        Returns the ids [L] and the indices of the video tokens.
        """
        import torch

        ids = torch.tensor(self._ids_at_start(text), dtype=torch.long)
        ids = ids.repeat_interleave(torch.where(ids == self.video_id, each, 1))
        return ids, (ids == self.video_id).nonzero()[:, 0]

    def question(self, text: str, history: Sequence[tuple[str, str]] = ()) -> torch.Tensor:
        import torch

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
        ids = self.ids_after(tail)
        if not ids:
            raise ModelError(
                "the model's chat template puts no question into the prompt",
                "give a checkpoint whose chat template supports videos",
            )
        return torch.tensor(ids)

    def answer(self, text: str) -> torch.Tensor:
        import torch

        self._check(text)
        return torch.tensor(self.ids_after(text), dtype=torch.long)

    def embed(self, ids: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self._embedding(ids.to(self._embedding.weight.device))
        return result

    def embed_prompt(self, prompt: Prompt, tokens: VisualTokens) -> torch.Tensor:
        embeds = self.embed(prompt.ids).clone()
        embeds[prompt.video.to(embeds.device)] = tokens.features.flatten(0, 2).to(embeds)
        return embeds

    def extras(self, ids: torch.Tensor) -> Mapping[str, torch.Tensor]:
        return {}

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self._lm_head(hidden).float()
        return result

    def weighed(
        self, logits: torch.Tensor, prompt: Sequence[int], made: Sequence[int]
    ) -> torch.Tensor:
        # Unlike the sampling settings in generation_config.json, this one affects greedy decoding.
        penalty = self._generation.repetition_penalty or 1.0
        if penalty == 1.0:
            return logits
        import torch
        from transformers import RepetitionPenaltyLogitsProcessor

        seen = torch.tensor([[*prompt, *made]], device=logits.device)
        result: torch.Tensor = RepetitionPenaltyLogitsProcessor(penalty)(seen, logits[None])[0]
        return result

    def text(self, ids: Sequence[int]) -> str:
        with _reworded("write text"):
            return str(self._tokenizer.decode(list(ids), skip_special_tokens=True))

    def _ids_at_start(self, text: str) -> list[int]:
        # As transformers does: no second start token where the template has written one.
        start = self._tokenizer.bos_token
        return self._ids(text, add_special_tokens=not (start and text.startswith(start)))

    def _ids(self, text: str, **options: bool) -> list[int]:
        with _reworded("tokenize text"):
            return list(self._tokenizer(text, **options).input_ids)

    def pieces(self) -> Callable[[int], str]:
        # Only a streamed answer needs this import.
        from tokenizers.decoders import DecodeStream

        stream, tokenizer = (
            DecodeStream(skip_special_tokens=True),
            self._tokenizer.backend_tokenizer,
        )
        return lambda token: stream.step(tokenizer, token) or ""

    def _render(self, messages: list[dict[str, Any]]) -> str:
        if not self._system:
            return render(self._template, messages, self._special)
        system = {"role": "system", "content": [_text(self._system)]}
        rendered = render(self._template, [system, *messages], self._special)
        if self._system.strip() not in rendered:
            raise ModelError(
                "the model's chat template has no place for a system prompt",
                "leave --system out, and write it into the question",
            )
        return rendered

    def _cut(self, rendered: str) -> tuple[str, str]:
        head, token, tail = rendered.partition(self._video_token)
        if not token:
            raise ModelError(
                "the model's chat template puts no video into the prompt",
                "give a checkpoint whose chat template supports videos",
            )
        return head, tail

    def _check(self, text: str) -> None:
        # A control token in a user's text would change the structure of the prompt.
        typed = sorted(token for token in self._control if token and token in text)
        if typed:
            start = shorten(text, 60)
            raise UsageError(
                f"{start!r} contains {typed[0]!r}, which the model reads as a control token",
                "rephrase it without this token",
            )


def prompt_1d(
    ids: Sequence[int] | torch.Tensor,
    video: Sequence[int] | torch.Tensor,
    grid: tuple[int, int, int],
) -> Prompt:
    """Build the prompt of a model with 1-D positions 0, 1, 2, ...

    `ids` [L] and `video` [T*H*W] as in `Prompt`.
    """
    import torch

    return Prompt(
        ids=torch.as_tensor(ids),
        video=torch.as_tensor(video),
        grid=grid,
        positions=torch.arange(len(ids))[None],
        next_position=len(ids),
    )


def find_frames(
    ids: torch.Tensor, token: int, side: int, *, numbered: bool
) -> tuple[torch.Tensor, tuple[int, int, int]]:
    """See `Find`: a video written as pictures of `side` x `side` tokens, with text before each.

    Images are written in the same way: their tiles differ in the token before them, and they and
    another video in the length of the text or, where it is `numbered`, in a number that was there.
    One picture alone is taken for an image.
    """
    places, listed, each = (ids == token).nonzero()[:, 0], ids.tolist(), side * side
    starts = [at for at in places.tolist() if at == 0 or listed[at - 1] != token]
    sizes = [after - before - each for before, after in pairwise(starts)] or [0]
    labels = {tuple(listed[max(0, start - max(1, min(sizes) - 2)) : start]) for start in starts}
    if (
        len(starts) < 2
        or len(places) != len(starts) * each
        or any(listed[start : start + each] != [token] * each for start in starts)
        or len({listed[start - 1] for start in starts}) > 1
        or max(sizes) > 2 * min(sizes)
        or (numbered and len(labels) < len(starts))
    ):
        raise not_one_video()
    return places, (len(starts), side, side)


def not_one_video() -> UsageError:
    """What is raised where tokens are to be merged and it is not certain of which video."""
    return UsageError(
        "the prompt does not hold exactly one video and nothing that could be taken for it",
        "give one video, laid out by the model's own processor",
    )


@contextmanager
def _reworded(work: str) -> Iterator[None]:
    """Raise ModelError if the model's code fails, as on first use of inconsistent settings."""
    try:
        yield
    except SttmError:
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise ModelError(
            f"the model cannot {work}: {reason[0][:200]}",
            "give a complete checkpoint folder",
        ) from error


def _only(template: Any) -> str:
    """Return a checkpoint's chat template, the default one if there are several."""
    if isinstance(template, dict):
        template = template.get("default")
    if not isinstance(template, str):
        raise ModelError(
            "the model has no chat template",
            "give a checkpoint whose chat template supports videos",
        )
    return template


def _text(text: str) -> dict[str, str]:
    return {"type": "text", "text": text}


def _with_video(question: str) -> list[dict[str, str]]:
    return [{"type": "video"}, _text(question)]
