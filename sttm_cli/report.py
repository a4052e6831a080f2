"""What `sttm ask --json` prints, made of what the pipeline gives back."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sttm_cli.types import Json

if TYPE_CHECKING:
    from sttm_cli.pipeline import Prepared, VideoQA
    from sttm_cli.results import Answer


def ask_report(qa: VideoQA, prepared: Prepared, answers: list[Answer]) -> Json:
    """The object `sttm.ask/1` of the documentation; `answers` are of one video."""
    request, tokens, cache = prepared.request, prepared.kv.tokens, prepared.cache
    plan, decode = request.plan, prepared.kv.facts["decode"]
    return {
        "schema": "sttm.ask/1",
        "video": {
            "path": str(request.path),
            "digest": request.digest,
            "duration_s": request.info.duration_s,
            "frame_times_s": prepared.frame_times_s,
            "frames_asked": len(plan.times_s),
            "reader": f"{plan.reader} {plan.reader_version}",
            "fallback": decode.get("fallback"),
        },
        "model": {
            "name": qa.settings.model,
            "revision": qa.settings.revision,
            "device": qa.choice.device,
            "dtype": qa.choice.dtype,
        },
        "tokens": {
            "budget": qa.settings.budget,
            "video_full": tokens.video_full,
            "video_kept": tokens.video_kept,
            "prefix": tokens.prefix,
        },
        "cache": {
            "hit": cache.hit,
            "tier": cache.tier,
            "key": cache.key,
            "bytes": cache.bytes,
            "restored_tokens": cache.restored_tokens,
            "prefilled_tokens": cache.prefilled_tokens,
            "miss_reason": cache.miss_reason,
            "cold_seconds": prepared.cold_seconds,
        },
        "answers": [answer_json(answer) for answer in answers],
        "seconds": {
            **answers[0].seconds,
            "answer": sum(a.seconds["answer"] or 0.0 for a in answers),
            "total": answers[-1].seconds["total"],
        },
    }


def answer_json(answer: Answer) -> Json:
    """One of the report's answers."""
    told = {
        "question": answer.question,
        "answer": answer.text,
        "new_tokens": answer.new_tokens,
        "ending": str(answer.ending),
    }
    return told if answer.seed is None else {**told, "seed": answer.seed}
