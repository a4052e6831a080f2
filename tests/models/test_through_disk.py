"""A fresh process answers from the stored KV as a plain pass over prompt and question would."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch

from sttm_cli.base.results import Clock
from sttm_cli.merge import merge_tokens
from sttm_cli.runtime.session import VideoQA
from tests.checkpoints import llava_onevision
from tests.checkpoints_gemma import gemma4
from tests.checkpoints_glm import glm
from tests.checkpoints_internvl import internvl
from tests.checkpoints_llava import llava_video
from tests.checkpoints_minicpm import minicpm
from tests.checkpoints_molmo import molmo2
from tests.checkpoints_perception import perception_lm
from tests.checkpoints_qwen import qwen_vl
from tests.checkpoints_smolvlm import smolvlm
from tests.checkpoints_videollama import videollama
from tests.models.reference import one_pass

QUESTION = "what colour is the circle?"
BUDGET = 0.4
FRESH = """
import json, sys
from pathlib import Path
from sttm_cli.runtime.session import VideoQA
found = {}
for folder in sorted(Path(sys.argv[1]).iterdir()):
    fields = json.loads(sys.argv[3])
    with VideoQA(model=str(folder), **fields) as qa:
        ready = qa.prepare(sys.argv[2])
        logits = ready.prefix.extend(qa.model().question(sys.argv[4]))
        ready.prefix.rewind()
        text = qa.answer(ready, sys.argv[4]).text
        found[folder.name] = [ready.cache.hit, text, logits.tolist()]
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five seconds of a square that moves over noise."""
    path = tmp_path_factory.mktemp("video") / "square.mp4"
    noise = np.random.default_rng(0).integers(0, 255, (96, 128, 3)).astype(np.uint8)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=4, width=128, height=96, pix_fmt="yuv420p")
        for index in range(20):
            picture = noise.copy()
            picture[20:60, 4 * index : 4 * index + 40] = (200, 30, 30)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return path


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One checkpoint of each family."""
    root = tmp_path_factory.mktemp("models")
    newer = ("qwen3_vl", "qwen3_vl_moe", "qwen3_5", "qwen3_5_moe")
    for family in ("qwen2_vl", "qwen2_5_vl", *newer):
        qwen_vl(root / family, family, pixels=(256, 80 * 112 * (5 if "3" in family else 1)))
    llava_onevision(root / "llava_onevision")
    llava_video(root / "llava_video")
    internvl(root / "internvl")
    minicpm(root / "minicpm")
    smolvlm(root / "smolvlm")
    for family in ("glm4v", "glm4v_moe", "glm46v"):
        glm(root / family, family)
    videollama(root / "video_llama_3")
    for size in ("small", "large", "experts", "unified"):
        gemma4(root / f"gemma4-{size}", size)
    molmo2(root / "molmo2", columns=True, scaled=[1, 3])
    if find_spec("timm"):  # Perception-LM's tower
        perception_lm(root / "perception_lm")
    return root


@torch.inference_mode()
def computed(folder: Path, video: Path, fields: dict[str, Any]) -> tuple[str, torch.Tensor]:
    """The cold answer, and the first token's logits from one plain pass."""
    with VideoQA(model=str(folder), **fields) as qa:
        answer = qa.ask(video, QUESTION)
        assert not answer.cache_hit
        tokens, _ = qa.compute.visual_tokens(qa.request(video), Clock())
        model: Any = qa.model()
        logits = one_pass(
            model,
            model.prompt(tokens),
            tokens,
            question=model.question(QUESTION),
            layer=qa.model_plan.merge_layer,
            merge=lambda grid: merge_tokens(grid, budget=BUDGET),
            reassigned=qa.model_plan.positions == "reassigned",
            sizes=qa.model_plan.attention_sizes,
        )
    return answer.text, logits


@pytest.mark.parametrize("sizes", ["off", "on"])
def test_a_fresh_process_restores_what_one_pass_gives(
    video: Path, folders: Path, sizes: str
) -> None:
    fields = {"budget": BUDGET, "max_new_tokens": 8, "attention_sizes": sizes}
    wanted = {folder.name: computed(folder, video, fields) for folder in sorted(folders.iterdir())}
    out = subprocess.run(
        [sys.executable, "-c", FRESH, str(folders), str(video), json.dumps(fields), QUESTION],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        check=True,
    )
    found = json.loads(out.stdout)
    assert set(found) == set(wanted)
    for name, (hit, text, logits) in found.items():
        assert hit, name
        assert text == wanted[name][0]
        assert torch.allclose(torch.tensor(logits), wanted[name][1], atol=1e-5), name
