"""A family's random checkpoint three times: in transformers, in `VideoQA`, and as its inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor, PreTrainedModel
from transformers.video_utils import VideoMetadata

from sttm_cli.base.types import DecodeReport
from sttm_cli.decode import read_frames
from sttm_cli.runtime.session import VideoQA
from tests.checkpoints import llava_onevision
from tests.checkpoints_glm import glm
from tests.checkpoints_internvl import internvl
from tests.checkpoints_molmo import molmo2
from tests.checkpoints_perception import perception_lm
from tests.checkpoints_qwen import qwen_vl
from tests.checkpoints_smolvlm import smolvlm
from tests.checkpoints_videollama import videollama

SAMPLE = Path(__file__).parents[1] / "docs" / "sample.mp4"
QUESTION = "what colour is the circle?"
NO_BEAMS = ("glm4v", "glm4v_moe", "glm46v")
"""Of these transformers cannot repeat a prompt with a video, not for the plain model either."""
FAMILIES: dict[str, Callable[[Path], Path]] = {
    "llava_onevision": llava_onevision,
    "internvl": lambda folder: internvl(folder, image=80),
    "smolvlm": lambda folder: smolvlm(folder, image=120, scale=3),
    "qwen2_vl": lambda folder: qwen_vl(folder, "qwen2_vl", pixels=(256, 80 * 112)),
    "qwen2_5_vl": lambda folder: qwen_vl(folder, "qwen2_5_vl", pixels=(256, 80 * 112)),
    "qwen3_vl": lambda folder: qwen_vl(folder, "qwen3_vl", pixels=(256, 8 * 80 * 112)),
    "qwen3_vl_moe": lambda folder: qwen_vl(folder, "qwen3_vl_moe", pixels=(256, 8 * 80 * 112)),
    "qwen3_5": lambda folder: qwen_vl(folder, "qwen3_5", pixels=(256, 8 * 80 * 112)),
    "qwen3_5_moe": lambda folder: qwen_vl(folder, "qwen3_5_moe", pixels=(256, 8 * 80 * 112)),
    "glm4v": lambda folder: glm(folder, "glm4v", pixels=8 * 80 * 112),
    "glm4v_moe": lambda folder: glm(folder, "glm4v_moe", pixels=8 * 80 * 112),
    "glm46v": lambda folder: glm(folder, "glm46v", pixels=8 * 80 * 112),
    "perception_lm": lambda folder: perception_lm(folder, image=80),
    "video_llama_3": lambda folder: videollama(folder, pixels=(256, 8 * 80 * 112)),
    "molmo2": lambda folder: molmo2(folder, image=96, scaled=[0, 2]),
}


@dataclass
class Case:
    """`inputs` are what the model's own processor makes of the sample's frames and QUESTION."""

    family: str
    folder: Path
    model: Any
    processor: Any
    frames: np.ndarray
    inputs: Any

    @property
    def length(self) -> int:
        return int(self.inputs["input_ids"].shape[1])

    def asking(self, question: str, frames: np.ndarray | None = None) -> Any:
        """The processor's inputs for another question, or other frames."""
        return inputs_of(self.processor, self.frames if frames is None else frames, question)


def case_of(family: str, folder: Path) -> Case:
    FAMILIES[family](folder)
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    processor = AutoProcessor.from_pretrained(folder)
    with asking(folder) as qa:
        plan = qa.request(SAMPLE).plan
        frames = np.concatenate(
            [c.frames for c in read_frames(SAMPLE, plan, report=DecodeReport())]
        )
    return Case(family, folder, model, processor, frames, inputs_of(processor, frames, QUESTION))


def asking(folder: Path, **options: Any) -> VideoQA:
    """A session that reads the frames of `Case`."""
    return VideoQA(
        model=str(folder), device="cpu", frames=8, no_cache=True,
        **{"dtype": "float32", **options},
    )  # fmt: skip


@contextmanager
def video_qa(case: Case, **options: Any) -> Iterator[tuple[VideoQA, Any, torch.Tensor]]:
    """A session, the sample prepared by it, and QUESTION's token ids."""
    with asking(case.folder, **options) as qa:
        yield qa, qa.prepare(SAMPLE), qa.model().question(QUESTION)


def inputs_of(processor: Any, frames: np.ndarray, question: str) -> Any:
    content = [{"type": "video"}, {"type": "text", "text": question}]
    text = processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True, enable_thinking=False
    )
    seen = VideoMetadata(
        total_num_frames=len(frames), fps=1.0, duration=8.0, frames_indices=list(range(len(frames)))
    )
    # The merging takes the place of VideoLLaMA 3's own dropping of patches.
    own = getattr(processor.video_processor, "use_token_compression", None)
    whole = {} if own is None else {"use_token_compression": False}
    return processor(
        text=text, videos=[frames], return_tensors="pt", do_sample_frames=False,
        video_metadata=[seen], add_special_tokens=False, **whole,
    )  # fmt: skip


def scored(prefix: Any, ids: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
    """`VideoQA`'s logits [n, V] before each of the tokens `new` [n] that follow `ids`."""
    prefix.rewind()
    logits: torch.Tensor = prefix.extend_each(torch.cat([ids, new]))
    return logits[len(ids) - 1 : -1]


def state_of(model: PreTrainedModel) -> dict[str, Any]:
    """All that a model holds beside its weights: attributes, hooks, configurations."""
    found: dict[str, Any] = {"generation": model.generation_config.to_dict()}
    for name, part in model.named_modules():
        for key, value in vars(part).items():
            if key == "_modules":
                found[f"{name}.{key}"] = {child: id(value[child]) for child in value}
            elif isinstance(value, dict):
                found[f"{name}.{key}"] = {k: id(v) for k, v in value.items()}
            elif hasattr(value, "to_dict"):
                found[f"{name}.{key}"] = value.to_dict()
            elif isinstance(value, torch.Tensor):
                found[f"{name}.{key}"] = value.tolist()
            else:
                found[f"{name}.{key}"] = repr(value)
    found["weights"] = {name: float(t.sum()) for name, t in model.state_dict().items()}
    return found
