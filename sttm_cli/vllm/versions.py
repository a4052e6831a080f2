"""The versions of vLLM that the plugin was tested with."""

from __future__ import annotations

TESTED = ("0.32",)
"""Minor versions; vLLM changes what the plugin builds on from one to the next."""


def untested(version: str) -> str | None:
    """Return why the plugin does not load beside this version of vLLM, None if it does."""
    if ".".join(version.split(".")[:2]) in TESTED:
        return None
    return (
        f"sttm-cli is not loaded: it was tested with vLLM {', '.join(TESTED)}, this is {version}; "
        f"--video-pruning-method has no sttm (install vllm=={TESTED[-1]}.*, or update sttm-cli)"
    )
