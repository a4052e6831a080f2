"""vLLM with the plugin answers what `sttm ask` answers, to the same budget."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sttm_cli import VideoQA
from tests.checkpoints import llava_onevision
from tests.checkpoints_qwen import qwen_vl
from tests.conftest import VLLM

pytestmark = [
    pytest.mark.skipif(
        VLLM is None,
        reason="STTM_VLLM_VENV names no environment: `python -m tests.vllm.environment FOLDER`",
    ),
    pytest.mark.timeout(1800),
]
FAMILIES = ("qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe", "llava_onevision")
BUDGETS = (1.0, 0.5, 0.3)
QUESTIONS = ("what colour is the circle ?", "how many shapes are there ?")
# Two frames a second, so that a grid step of the Qwen-VL lasts a second.
FPS, FRAMES, HEIGHT, WIDTH = 2, 10, 64, 320


def model(folder: Path, family: str) -> Path:
    """A random checkpoint as vLLM can load it: heads of 32, names and settings of released ones."""
    if family == "llava_onevision":
        return _named_as_released(llava_onevision(folder, hidden=128))
    made = qwen_vl(folder, family, head_dim=32, pixels=(256, WIDTH * HEIGHT * 16))
    if family != "qwen2_5_vl":
        config = json.loads((made / "config.json").read_text())
        config["text_config"]["rope_parameters"] |= {
            "mrope_interleaved": True,
            "mrope_section": [6, 5, 5],
        }
        (made / "config.json").write_text(json.dumps(config))
    return made


def _named_as_released(folder: Path) -> Path:
    from safetensors.torch import load_file, save_file

    path, tower = folder / "model.safetensors", "vision_tower."
    tensors = load_file(path)
    named = {k.replace(tower, f"{tower}vision_model."): v for k, v in tensors.items()}
    save_file(named, path, metadata={"format": "pt"})
    return folder


def clip(seed: int) -> np.ndarray:
    """Frames of noise with a bar that moves every other frame."""
    random = np.random.default_rng(seed)
    base = random.integers(0, 255, (HEIGHT, WIDTH, 3))
    frames = base + random.integers(-30, 30, (FRAMES, HEIGHT, WIDTH, 3))
    for step in range(FRAMES):
        left = step // 2 * 60
        frames[step, :, left : left + 40] = random.integers(0, 255, 3)
    return frames.clip(0, 255).astype(np.uint8)


def saved(path: Path, array: np.ndarray) -> str:
    np.save(path, array)
    return str(path)


def prompt(family: str, question: str, media: str = "v") -> str:
    if family == "llava_onevision":
        return f"<|im_start|>user <video>\n{question}<|im_end|><|im_start|>assistant\n"
    pads = {"v": "video", "i": "image"}
    seen = "".join(f"<|vision_start|><|{pads[m]}_pad|><|vision_end|>" for m in media)
    return (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
        f"{seen}{question}<|im_end|>\n<|im_start|>assistant\n"
    )


def pruned(share: float, method: str = "sttm") -> dict[str, Any]:
    rate = round(1 - share, 6)
    return {"video_pruning_rate": rate, "video_pruning_method": method} if rate else {}


def vllm(tmp: Path, jobs: list[dict[str, Any]], plugins: str | None = None) -> list[Any]:
    """Run the jobs in vLLM's environment, as the driver says."""
    (tmp / "jobs.json").write_text(json.dumps(jobs))
    environment = os.environ | {
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_LOGGING_LEVEL": "ERROR",
    }
    if plugins is not None:
        environment["VLLM_PLUGINS"] = plugins
    driver = Path(__file__).parent / "driver.py"
    command = [f"{VLLM}/bin/python", driver, tmp / "jobs.json", tmp / "answers.json"]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr[-4000:]
    answers: list[Any] = json.loads((tmp / "answers.json").read_text())
    return answers


@pytest.mark.parametrize("family", FAMILIES)
def test_answers_are_those_of_sttm_ask_and_a_second_question_hits(
    family: str, tmp_path: Path
) -> None:
    checkpoint, frames = model(tmp_path / "model", family), clip(0)
    folder = tmp_path / "frames"
    folder.mkdir()
    for index, frame in enumerate(frames):
        Image.fromarray(frame).save(folder / f"{index:03d}.png")
    video = saved(tmp_path / "video.npy", frames)
    rounds = [[{"prompt": prompt(family, q), "videos": [video], "fps": FPS}] for q in QUESTIONS]
    jobs = [{"engine": {"model": str(checkpoint), **pruned(b)}, "rounds": rounds} for b in BUDGETS]
    for share, answers in zip(BUDGETS, vllm(tmp_path, jobs), strict=True):
        with VideoQA(
            model=str(checkpoint),
            budget=share,
            merge_layer=0,
            positions="reassigned" if family == "llava_onevision" else "survivors",
            fps=FPS,
            frames=FRAMES,
            dtype="float32",
            no_cache=True,
            max_new_tokens=12,
        ) as qa:
            for question, [told] in zip(QUESTIONS, answers, strict=True):
                ours = qa.ask(folder, question)
                assert told["text"].strip() == ours.text.strip() or told["text"].strip().startswith(
                    ours.text.strip().rstrip("\ufffd")
                ), (share, question)
                assert told["prompt"] >= ours.tokens.prefix
                assert told["places"] == ours.tokens.video_kept + (family == "llava_onevision")
        length = answers[1][0]["prompt"]
        assert answers[1][0]["cached"] == (length - 20) // 128 * 128


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl"])
def test_chunks_several_videos_and_images_agree(family: str, tmp_path: Path) -> None:
    checkpoint = model(tmp_path / "model", family)
    one, two = (saved(tmp_path / f"{seed}.npy", clip(seed)) for seed in (1, 2))
    image = saved(tmp_path / "image.npy", clip(3)[0])
    ask = {"fps": FPS, "videos": [one, two], "images": [image]}
    rounds = [
        [{**ask, "prompt": prompt(family, QUESTIONS[0], "viv")}],
        [{**ask, "prompt": prompt(family, QUESTIONS[1], "viv")}],
        [{"prompt": prompt(family, QUESTIONS[0]), "videos": [two], "fps": FPS}],
    ]
    plain = {"model": str(checkpoint), **pruned(0.3)}
    chunked = {"max_num_batched_tokens": 96, "max_num_seqs": 4, "enable_prefix_caching": False}
    jobs = [
        {"engine": {**plain, "enable_prefix_caching": False}, "rounds": rounds},
        {"engine": {**plain, **chunked}, "rounds": rounds},
        {"engine": plain, "rounds": rounds},
    ]
    whole, pieces, cached = vllm(tmp_path, jobs)
    for other in (pieces, cached):
        assert [r[0]["ids"] for r in other] == [r[0]["ids"] for r in whole]
    assert [r[0]["places"] for r in whole] == [240, 240, 120]
    assert cached[1][0]["cached"] > 128
    assert whole[0][0]["ids"] != whole[1][0]["ids"]


def test_every_method_keeps_the_budget_and_rate_0_is_vllm_alone(tmp_path: Path) -> None:
    checkpoint = model(tmp_path / "model", "qwen3_vl")
    still = saved(tmp_path / "still.npy", np.repeat(clip(0)[:1], FRAMES, axis=0))
    video = saved(tmp_path / "video.npy", clip(0))
    rounds = [[{"prompt": prompt("qwen3_vl", QUESTIONS[0]), "videos": [v], "fps": FPS}]
              for v in (video, still)]  # fmt: skip
    methods = ("sttm", "sttm:tome", "sttm:evs", "evs")
    engine = {"model": str(checkpoint)}
    jobs = [{"engine": engine | pruned(0.3, method), "rounds": rounds} for method in methods]
    *merged, untouched = vllm(tmp_path, [*jobs, {"engine": engine, "rounds": rounds}])
    # Also of a video whose frames are equal, of which `sttm ask` would keep fewer.
    assert [[r[0]["places"] for r in answers] for answers in merged] == [[120, 120]] * len(methods)
    [alone] = vllm(tmp_path, [{"engine": engine, "rounds": rounds}], plugins="")
    assert [r[0]["ids"] for r in alone] == [r[0]["ids"] for r in untouched]
    [unknown] = vllm(tmp_path, [{"engine": engine | pruned(0.3), "rounds": []}], plugins="")
    assert "'evs'" in unknown["error"]
