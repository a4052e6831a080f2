"""From the video file to the logits: equal to transformers unmerged, to one plain pass merged."""

from __future__ import annotations

import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoProcessor, LlavaOnevisionForConditionalGeneration

from sttm_cli.base.results import Clock
from sttm_cli.base.types import DecodeReport
from sttm_cli.decode import read_frames
from sttm_cli.merge import merge_tokens
from sttm_cli.models.registry import TINY
from sttm_cli.runtime.session import VideoQA
from tests.models.reference import one_pass

SAMPLE = Path(__file__).parents[2] / "docs" / "sample.mp4"
QUESTION = "how many shapes are there?"
CASES = [(layer, budget) for layer in (0, 1, 2) for budget in (0.5, 0.3, 40)]

# Restores every case from the disk and writes down the logits after the question.
RESTORE = """
import sys, torch
from tests.runtime.test_exactness import CASES, QUESTION, SAMPLE, asking
logits = []
for case in CASES:
    with asking(sys.argv[1], *case) as qa:
        prepared = qa.prepare(SAMPLE)
        assert prepared.cache.hit and prepared.cache.prefilled_tokens == 0, prepared.cache
        logits.append(prepared.prefix.extend(qa.model().question(QUESTION)))
torch.save(torch.stack(logits), sys.argv[2])
"""


def asking(model: str | Path, layer: int, budget: float) -> VideoQA:
    return VideoQA(
        model=str(model), merge_layer=layer, budget=budget, dtype="float32", device="cpu"
    )


@pytest.mark.parametrize("model", ["tiny", "random"])
def test_budget_1_gives_the_logits_and_the_text_of_transformers(
    model: str, random_model: Path
) -> None:
    folder = TINY if model == "tiny" else random_model
    with VideoQA(model=str(folder), budget=1.0, device="cpu", max_new_tokens=12) as qa:
        request = qa.request(SAMPLE)
        chunks = read_frames(SAMPLE, request.plan, report=DecodeReport())
        frames = np.concatenate([chunk.frames for chunk in chunks])
        logits = qa.prepare(SAMPLE).prefix
        ours = logits.extend(qa.model().question(QUESTION))
        logits.rewind()
        text = qa.ask(SAMPLE, QUESTION).text
    processor = AutoProcessor.from_pretrained(folder)
    content = [{"type": "video"}, {"type": "text", "text": QUESTION}]
    prompt = processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True
    )
    inputs = processor(
        text=prompt, videos=[frames], return_tensors="pt", videos_kwargs={"do_sample_frames": False}
    )
    theirs = LlavaOnevisionForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    theirs.eval()
    with torch.inference_mode():
        wanted = theirs(**inputs).logits[0, -1]
        out = theirs.generate(**inputs, do_sample=False, max_new_tokens=12)
    answer = processor.decode(out[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    assert torch.allclose(ours, wanted, atol=1e-4)
    assert text == answer.strip()


@torch.inference_mode()
def test_merged_prefix_from_the_disk_in_a_fresh_process_equals_one_pass(
    random_model: Path, tmp_path: Path
) -> None:
    wanted = []
    for layer, budget in CASES:
        with asking(random_model, layer, budget) as qa:
            prepared, model = qa.prepare(SAMPLE), qa.model()
            assert not prepared.cache.hit
            assert prepared.kv.tokens.video_kept < prepared.kv.tokens.video_full
            tokens, _ = qa.compute.visual_tokens(prepared.request, Clock())
            whole = one_pass(
                model,
                model.prompt(tokens),
                tokens,
                question=model.question(QUESTION),
                layer=layer,
                merge=partial(merge_tokens, budget=budget),
                reassigned=qa.model_plan.positions == "reassigned",
            )
            wanted.append(whole)
    subprocess.run(
        [sys.executable, "-c", RESTORE, str(random_model), str(tmp_path / "logits.pt")],
        check=True,
        cwd=Path(__file__).parents[2],
        timeout=240,
    )
    found = torch.load(tmp_path / "logits.pt", weights_only=True)
    assert torch.allclose(found, torch.stack(wanted), atol=1e-5)
    assert torch.stack(wanted).std(dim=0).max() > 0.01, "all cases gave the same logits"
