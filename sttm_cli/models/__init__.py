"""Video LLMs: what a name stands for, and one file per family behind the `VideoLLM` protocol."""

from sttm_cli.models.checkpoint import ModelSource, check_unchanged, find_source
from sttm_cli.models.counts import context_length, layer_bytes, token_count
from sttm_cli.models.known import Known, known_models
from sttm_cli.models.registry import ALIASES, FAMILIES, Family, defaults_of, load
from sttm_cli.models.video_llm import Placement, VideoLLM

__all__ = [
    "ALIASES",
    "FAMILIES",
    "Family",
    "Known",
    "ModelSource",
    "Placement",
    "VideoLLM",
    "check_unchanged",
    "context_length",
    "defaults_of",
    "find_source",
    "known_models",
    "layer_bytes",
    "load",
    "token_count",
]
