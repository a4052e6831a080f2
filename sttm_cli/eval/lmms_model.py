"""The model `sttm` for lmms-eval, registered by the entry point `lmms_eval.models`."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lmms_eval.models.registry_v2 import ModelManifest


def manifest() -> ModelManifest:
    """Return the model's name and the class to import on demand."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest(model_id="sttm", chat_class_path="sttm_cli.eval.lmms_chat.Sttm")
