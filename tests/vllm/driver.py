"""Run by vLLM's own Python: answers requests in one engine after the other, in this process.

The first argument is a JSON file of jobs. A job: `engine` (arguments of `vllm.LLM`) and `rounds`,
lists of requests sent together; a request has a `prompt`, and `videos` and `images`, .npy files of
frames [T, H, W, 3] and [H, W, 3]. The second argument is the file that takes the answers: a list of
rounds for each job, or `{"error": ...}` for an engine that does not start.
"""

from __future__ import annotations

import gc
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np


def main() -> None:
    jobs, answers = Path(sys.argv[1]), Path(sys.argv[2])
    answers.write_text(json.dumps([_run(job) for job in json.loads(jobs.read_text())]))


def _run(job: dict[str, Any]) -> Any:
    from vllm import LLM, SamplingParams
    from vllm.distributed import cleanup_dist_env_and_memory

    settings = {
        "dtype": "float32",
        "enforce_eager": True,
        "max_model_len": 2048,
        "skip_mm_profiling": True,
        "limit_mm_per_prompt": {"video": 3, "image": 2},
    }
    try:
        llm = LLM(**{**settings, **job["engine"]})
    except Exception as error:
        return {"error": str(error)}
    greedy = SamplingParams(temperature=0, max_tokens=job.get("max_tokens", 12))
    try:
        rounds = []
        for requests in job["rounds"]:
            outputs = llm.generate([_prompt(one) for one in requests], greedy, use_tqdm=False)
            pads = _pads(llm.get_tokenizer())
            rounds.append([_told(output, pads) for output in outputs])
        return rounds
    finally:
        llm.llm_engine.engine_core.shutdown()
        del llm
        cleanup_dist_env_and_memory()
        gc.collect()


def _prompt(request: dict[str, Any]) -> dict[str, Any]:
    media: dict[str, Any] = {}
    if videos := request.get("videos"):
        media["video"] = [_video(np.load(path), request.get("fps", 1.0)) for path in videos]
    if images := request.get("images"):
        from PIL import Image

        media["image"] = [Image.fromarray(np.load(path)) for path in images]
    return {"prompt": request["prompt"], "multi_modal_data": media}


def _video(frames: np.ndarray, fps: float) -> tuple[np.ndarray, dict[str, Any]]:
    count = len(frames)
    return frames, {
        "fps": fps,
        "duration": count / fps,
        "total_num_frames": count,
        "frames_indices": list(range(count)),
        "video_backend": "opencv",
        "do_sample_frames": False,
    }


def _pads(tokenizer: Any) -> set[int]:
    """The ids of a video's placeholders."""
    return {tokenizer.convert_tokens_to_ids(name) for name in ("<|video_pad|>", "<video>")}


def _told(output: Any, pads: set[int]) -> dict[str, Any]:
    return {
        "text": output.outputs[0].text,
        "ids": list(output.outputs[0].token_ids),
        "prompt": len(output.prompt_token_ids),
        "places": sum(one in pads for one in output.prompt_token_ids),
        "cached": output.num_cached_tokens or 0,
    }


if __name__ == "__main__":
    main()
