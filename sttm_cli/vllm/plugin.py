"""The entry point that vLLM calls in each of its processes."""

from __future__ import annotations

import logging
from functools import wraps
from typing import Any, Literal, get_args

from sttm_cli.base.errors import UsageError
from sttm_cli.vllm.merger import FLAG, merger_of, pruning_names
from sttm_cli.vllm.versions import untested

MODELS = {
    "Qwen2_5_VLForConditionalGeneration": "Qwen25VL",
    "Qwen3VLForConditionalGeneration": "Qwen3VL",
    "Qwen3VLMoeForConditionalGeneration": "Qwen3VLMoe",
    "Qwen3_5ForConditionalGeneration": "Qwen35",
    "Qwen3_5MoeForConditionalGeneration": "Qwen35Moe",
    "LlavaOnevisionForConditionalGeneration": "LlavaOnevision",
}
"""Architectures in vLLM, and the classes in `models` that take their place."""


def register() -> None:
    """Add our methods to `--video-pruning-method`, and the models that carry them out.

    Beside a vLLM that this was not tested with, nothing is added and a warning says so; vLLM then
    refuses the method itself.
    """
    from vllm import ModelRegistry
    from vllm.version import __version__

    if line := untested(__version__):
        logging.getLogger("vllm.sttm").warning(line)
        return
    _add_names()
    _check_models()
    _mend_cpu_runner()
    for architecture, name in MODELS.items():
        ModelRegistry.register_model(architecture, f"sttm_cli.vllm.models:{name}")


def _add_names() -> None:
    """Let the configuration, and with it the command line, take our names."""
    from pydantic.dataclasses import rebuild_dataclass
    from vllm.config.multimodal import MultiModalConfig

    field: Any = MultiModalConfig.__dataclass_fields__["video_pruning_method"]
    names = dict.fromkeys([*get_args(field.type), *pruning_names()])
    field.type = Literal[tuple(names)]
    MultiModalConfig.__annotations__["video_pruning_method"] = field.type
    rebuild_dataclass(MultiModalConfig, force=True)


def _check_models() -> None:
    """Refuse our methods for a model without them, which vLLM would serve unmerged."""
    from vllm.config import ModelConfig

    if hasattr(ModelConfig.__post_init__, "__wrapped__"):
        return
    make = ModelConfig.__post_init__

    @wraps(make)
    def checked(config: Any, *args: Any, **kwargs: Any) -> None:
        make(config, *args, **kwargs)
        spec = config.multimodal_config and config.multimodal_config.get_video_pruning_spec()
        known = config._model_info.supported_video_pruning_methods
        if spec and merger_of(spec) is not None and spec[0] not in known:
            raise UsageError(
                f"{FLAG} {spec[0]} has no effect on {config._model_info.architecture}",
                f"it is for {', '.join(MODELS)}",
            )

    ModelConfig.__post_init__ = checked


def _mend_cpu_runner() -> None:
    """Let the runner for CPUs know that a model prunes: vLLM's other runners find it out."""
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        return
    from vllm.model_executor.models.interfaces import supports_multimodal_pruning
    from vllm.v1.worker.cpu_model_runner import CPUModelRunner

    if hasattr(CPUModelRunner.load_model, "sttm"):
        return
    load = CPUModelRunner.load_model

    @wraps(load)
    def loaded(runner: Any, *args: Any, **kwargs: Any) -> None:
        load(runner, *args, **kwargs)
        config = runner.model_config.multimodal_config
        runner.is_multimodal_pruning_enabled = bool(
            config
            and config.is_multimodal_pruning_enabled()
            and supports_multimodal_pruning(runner.get_model())
        )

    loaded.sttm = True  # type: ignore[attr-defined]
    CPUModelRunner.load_model = loaded
