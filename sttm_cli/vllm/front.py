"""`sttm serve --engine vllm`: vLLM's own server, started with the flags that ours stand for."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from decimal import Decimal
from pathlib import Path
from typing import Any, NoReturn

import psutil

import sttm_cli
from sttm_cli.base.errors import ModelError, SttmError, UsageError
from sttm_cli.merge.method import find_method
from sttm_cli.models.checkpoint import Checkpoint
from sttm_cli.models.family import Family
from sttm_cli.runtime.model_plan import check_model
from sttm_cli.settings.fields import check_no_thresholds
from sttm_cli.settings.settings import SETTINGS, Settings, cache_dir
from sttm_cli.vllm.versions import TESTED, untested

FAMILIES = ("qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe", "llava_onevision")
"""The `model_type`s that the plugin merges for and this package knows."""
ENGINE = "--engine vllm"
TAKEN = ("model", "revision", "budget", "method", "fps", "frames", "dtype", "cache_dir",
         "temperature")  # fmt: skip
"""The settings that have a counterpart; any other must be at its default."""
_INSTEAD = {
    "budget": "give a share such as 0.3",
    "merge_layer": "vLLM merges before layer 0",
    "attention_sizes": "vLLM's attention takes no sizes of merged tokens: give off",
    "positions": "survivors keep their ids in time, height and width, others are counted anew",
    "max_new_tokens": "clients send max_tokens",
    "seed": "clients send seed",
    "top_p": "clients send top_p",
    "system": "clients send a system message",
    "kv_dtype": "give vLLM's --kv-cache-dtype after --",
    "device": "vLLM takes the accelerator that it was built for",
    "max_bytes": "vLLM bounds its tier in memory alone",
}
_ASKED = """
import json
from importlib.metadata import packages_distributions, version
names = packages_distributions()
print(json.dumps({n: version(names[n][0]) for n in ("vllm", "sttm_cli") if n in names}))
"""


@dataclass(frozen=True)
class Server:
    """What `sttm serve` was asked for beside the settings; `more`: flags for vLLM itself."""

    host: str
    port: int
    api_key: str | None = None
    allow_path: tuple[Path, ...] = ()
    host_bytes: int | None = None
    more: tuple[str, ...] = ()


def serve(settings: Settings, server: Server, say: Any) -> NoReturn:
    """Become vLLM's server.

    Raises UsageError for settings without a counterpart, ModelError for a model that is not merged
    in vLLM, SttmError where there is no vLLM that the plugin was tested with.
    """
    check(settings, server)
    program = find()
    version = check_versions(program)
    checkpoint, family, _ = check_model(settings, _Memo(), say)
    argv = arguments(settings, server, checkpoint, family, version)
    say(f"vLLM {version}: {' '.join(argv)}")
    environment = dict(os.environ)
    if server.api_key:
        # Not among the arguments, which every user of the machine can read.
        environment["VLLM_API_KEY"] = server.api_key
    sys.stdout.flush()
    sys.stderr.flush()
    os.execve(program, [str(program), *argv], environment)


class _Memo:
    """A table of file facts for one start."""

    def __init__(self) -> None:
        self._rows: dict[str, Any] = {}

    def get(self, key: str) -> Any:
        return self._rows.get(key)

    def set(self, key: str, value: Any) -> None:
        self._rows[key] = value


def check(settings: Settings, server: Server) -> None:
    """Raise UsageError for what vLLM's server would not honour."""
    check_no_thresholds(settings.method)
    plain = Settings()
    for field in fields(Settings):
        given, flag = getattr(settings, field.name), SETTINGS[field.name].flags[-1]
        refused = field.name not in TAKEN and given != getattr(plain, field.name)
        if field.name == "merge_layer" and given == 0:
            refused = False
        if field.name == "budget":
            refused = isinstance(given, int) and given > 1
        if field.name == "attention_sizes":
            refused = given == "on" or (given == "auto" and find_method(settings.method).sizes)
        if refused:
            raise UsageError(
                f"{flag} {_shown(given)} cannot be combined with {ENGINE}",
                _INSTEAD.get(field.name, f"leave {flag} out"),
            )
    if isinstance(cache_dir(settings.cache_dir), str):
        raise UsageError(
            f"--cache-dir {settings.cache_dir} cannot be combined with {ENGINE}",
            "give a folder, or vLLM's --kv-transfer-config after --",
        )
    if len(server.allow_path) > 1:
        raise UsageError(
            f"--allow-path given {len(server.allow_path)} times cannot be combined with {ENGINE}",
            "vLLM takes one folder: give one that holds them all",
        )


def _shown(value: Any) -> str:
    return ",".join(value) if isinstance(value, tuple) else str(value)


def find() -> Path:
    """Return the `vllm` beside this Python, else on PATH. Raises SttmError."""
    beside = Path(sys.executable).parent / "vllm"
    found = str(beside) if beside.is_file() else shutil.which("vllm")
    if found is None:
        raise SttmError(
            f"{ENGINE}: there is no vllm beside this Python or on PATH",
            f"python -m venv vllm && vllm/bin/pip install 'vllm=={TESTED[-1]}.*' && vllm/bin/pip "
            "install --no-deps sttm-cli, then put vllm/bin on PATH",
        )
    return Path(found).absolute()


def check_versions(program: Path) -> str:
    """Return the version of vLLM at `program`.

    Raises SttmError for one that the plugin was not tested with, and where another sttm-cli than
    this one, or none, is installed beside it.
    """
    python = program.parent / "python"
    asked = subprocess.run([python, "-c", _ASKED], capture_output=True, text=True, check=False)
    try:
        versions: Mapping[str, str] = json.loads(asked.stdout)
        version = versions["vllm"]
    except (ValueError, KeyError) as error:
        raise SttmError(
            f"{ENGINE}: {python} has no vLLM", "put the bin folder of its environment on PATH"
        ) from error
    if line := untested(version):
        raise SttmError(f"{ENGINE}: {line}")
    ours = versions.get("sttm_cli")
    if ours != sttm_cli.__version__:
        raise SttmError(
            f"{ENGINE}: beside vLLM is {f'sttm-cli {ours}' if ours else 'no sttm-cli'}, this is "
            f"{sttm_cli.__version__}",
            f"{python} -m pip install --no-deps sttm-cli=={sttm_cli.__version__}",
        )
    return version


def arguments(
    settings: Settings, server: Server, checkpoint: Checkpoint, family: Family, version: str
) -> list[str]:
    """Return the arguments of `vllm`. Raises ModelError for a model that is not merged there."""
    if family.model_type not in FAMILIES:
        raise ModelError(
            f"--model {settings.model} cannot be combined with {ENGINE}: "
            f"{family.name} is not merged there",
            "serve it without --engine",
        )
    budget = Decimal(repr(float(settings.budget)))
    method = "sttm" if settings.method == "sttm" else f"sttm:{settings.method}"
    video = {"fps": settings.fps or 1, "num_frames": settings.frames or family.frames}
    flags: list[tuple[str, Any]] = [
        ("--served-model-name", settings.model),
        ("--host", server.host),
        ("--port", server.port),
        ("--dtype", settings.dtype),
        ("--max-model-len", "auto"),
        ("--limit-mm-per-prompt", {"image": 1, "video": 1}),
        ("--media-io-kwargs", {"video": video}),
        ("--override-generation-config", {"temperature": settings.temperature}),
        ("--kv-transfer-config", _tier(settings, server, checkpoint, version)),
    ]
    if budget < 1:
        flags += [("--video-pruning-method", method), ("--video-pruning-rate", 1 - budget)]
    if server.allow_path:
        flags.append(("--allowed-local-media-path", server.allow_path[0].absolute()))
    # The user's own come last, and win.
    return ["serve", str(checkpoint.folder), *_typed(flags), *server.more]


def _typed(flags: Sequence[tuple[str, Any]]) -> list[str]:
    texts = (json.dumps(value) if isinstance(value, dict) else str(value) for _, value in flags)
    return [part for pair in zip((flag for flag, _ in flags), texts, strict=True) for part in pair]


def _tier(settings: Settings, server: Server, checkpoint: Checkpoint, version: str) -> Any:
    """vLLM's offloading: KV blocks in host memory, and in a folder that outlives the server.

    vLLM names a block by its tokens and media; weights and vLLM's version are in the folder's name.
    """
    folder = Path(cache_dir(settings.cache_dir)).absolute() / "vllm"
    return {
        "kv_connector": "OffloadingConnector",
        "kv_role": "kv_both",
        "kv_connector_extra_config": {
            "spec_name": "TieringOffloadingSpec",
            "cpu_bytes_to_use": server.host_bytes or psutil.virtual_memory().total // 8,
            "secondary_tiers": [
                {"type": "fs", "root_dir": str(folder / f"{version}-{checkpoint.fingerprint[:16]}")}
            ],
        },
    }
