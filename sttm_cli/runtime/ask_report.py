"""What `sttm ask --json` prints, made of what the pipeline gives back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from sttm_cli.base.results import Answer, Choice
from sttm_cli.base.types import Json

if TYPE_CHECKING:
    from sttm_cli.runtime.prepared import Prepared
    from sttm_cli.runtime.session import VideoQA


def ask_report(qa: VideoQA, prepared: Prepared, answers: Sequence[Answer | Choice]) -> Json:
    """The object `sttm.ask/1` of the documentation; `answers` are of one video,
    none where it was only prepared. `room`: how many tokens the model's context takes after it."""
    request, tokens, cache = prepared.request, prepared.kv.tokens, prepared.cache
    plan, decode = request.plan, prepared.kv.facts["decode"]
    return {
        "schema": "sttm.ask/1",
        "video": {
            "path": request.source.name,
            "digest": request.digest,
            "duration_s": request.info.duration_s,
            "frame_times_s": prepared.frame_times_s,
            "frames_asked": len(plan.times_s),
            "reader": f"{plan.reader} {plan.reader_version}",
            "fallback": decode.get("fallback"),
            "has_audio": request.info.has_audio,
            "notes": list(request.info.notes),
        },
        "model": {
            "name": qa.settings.model,
            "revision": qa.settings.revision,
            "device": qa.choice.device,
            "dtype": qa.choice.dtype,
        },
        "tokens": {
            "budget": qa.settings.budget,
            "method": qa.settings.method,
            "video_full": tokens.video_full,
            "video_kept": tokens.video_kept,
            "prefix": tokens.prefix,
            "after_spatial": tokens.after_spatial,
            "room": prepared.prefix.room,
        },
        "cache": {
            "hit": cache.hit,
            "tier": cache.tier,
            "key": cache.key,
            "bytes": cache.bytes,
            "kv_dtype": request.identity["kv_dtype"],
            "saved_bytes": cache.saved_bytes,
            "restored_tokens": cache.restored_tokens,
            "prefilled_tokens": cache.prefilled_tokens,
            "miss_reason": cache.miss_reason,
            "cold_seconds": prepared.cold_seconds,
        },
        "answers": [answer_json(answer) for answer in answers],
        "seconds": _seconds(prepared, answers),
    }


def _seconds(prepared: Prepared, answers: Sequence[Answer | Choice]) -> Json:
    clock = prepared.clock
    if not answers:
        return {**clock.seconds(), "first_token": None, "answer": None, "total": clock.total()}
    return {
        **answers[0].seconds,
        "answer": sum(a.seconds["answer"] or 0.0 for a in answers),
        "total": answers[-1].seconds["total"],
    }


def answer_json(answer: Answer | Choice) -> Json:
    """One of the report's answers."""
    if isinstance(answer, Choice):
        weighed = [asdict(option) for option in answer.options]
        best = answer.best.text
        return {"question": answer.question, "answer": best, "new_tokens": 0, "choices": weighed}
    told = {
        "question": answer.question,
        "answer": answer.text,
        "new_tokens": answer.new_tokens,
        "ending": str(answer.ending),
    }
    return told if answer.seed is None else {**told, "seed": answer.seed}
