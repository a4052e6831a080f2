"""What `sttm ask --json` prints, made of what the pipeline gives back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from sttm_cli.base.reports import AnswerReport, AskReport, OptionReport, SecondsReport
from sttm_cli.base.results import Answer, Choice, Option

if TYPE_CHECKING:
    from sttm_cli.runtime.prepared import Prepared
    from sttm_cli.runtime.session import VideoQA


def ask_report(qa: VideoQA, prepared: Prepared, answers: Sequence[Answer | Choice]) -> AskReport:
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
            "device": qa.model_plan.device,
            "dtype": qa.model_plan.dtype,
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


def _seconds(prepared: Prepared, answers: Sequence[Answer | Choice]) -> SecondsReport:
    clock = prepared.clock
    spent = answers[0].seconds if answers else clock.seconds()
    return {
        "load_model": spent["load_model"],
        "decode": spent["decode"],
        "encode": spent["encode"],
        "merge": spent["merge"],
        "prefill": spent["prefill"],
        "restore": spent["restore"],
        "first_token": spent.get("first_token"),
        "answer": sum(a.seconds["answer"] or 0.0 for a in answers) if answers else None,
        "total": answers[-1].seconds["total"] if answers else clock.total(),
    }


def answer_json(answer: Answer | Choice) -> AnswerReport:
    """One of the report's answers."""
    if isinstance(answer, Choice):
        return {
            "question": answer.question,
            "answer": answer.best.text,
            "new_tokens": 0,
            "choices": [_option_json(option) for option in answer.options],
        }
    made: AnswerReport = {
        "question": answer.question,
        "answer": answer.text,
        "new_tokens": answer.new_tokens,
        "ending": answer.ending.value,
    }
    if answer.seed is not None:
        made["seed"] = answer.seed
    return made


def _option_json(option: Option) -> OptionReport:
    return {
        "text": option.text,
        "probability": option.probability,
        "log_likelihood": option.log_likelihood,
        "tokens": option.tokens,
    }
