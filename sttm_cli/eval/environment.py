"""A separate environment for lmms-eval, which needs an older PyAV than this package.

It is layered on this package's environment, whose torch and transformers it uses. It adds lmms-eval
without its list of dependencies (5 GB, little of which the model `openai` needs), and the imports
of that model and of the tasks. It is created once and reused: `python -m sttm_cli.eval.environment`
only does that, and prints its folder.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import distributions
from pathlib import Path

import sttm_cli
from sttm_cli.base.errors import SttmError
from sttm_cli.base.system import single_flight

VARIABLE = "STTM_LMMS_VENV"
VERSION = "0.7.3"
NEEDS = (
    "datasets>=5.2,<6",
    "evaluate>=0.4.6,<0.5",
    "loguru>=0.7.3,<0.8",
    "openai>=3.52,<4",
    "opencv-python-headless>=5.0",
    "pytablewriter>=1.2,<2",
    "python-dotenv>=1.2",
    "pytz",
    "requests>=2.34",
    "sacrebleu>=2.6,<3",
    "tenacity>=9.2,<10",
)
"""The imports of lmms-eval for its model `openai` and for the paper's tasks that are not
dependencies of this package."""
_ABOUT = "0.5 GB, some minutes at most"
_IMPORTS = "import lmms_eval.evaluator, lmms_eval.models.chat.openai, cv2, pandas, requests"


def lmms_python(say: Callable[[str], None]) -> Path:
    """Return the interpreter of lmms-eval's environment, created if there is none; `say` is called
    with a line before that.

    Raises SttmError if it cannot be created, or if the environment that the user names has no
    lmms-eval.
    """
    named = os.environ.get(VARIABLE)
    if named:
        return _named(Path(named).expanduser())
    folder = _folder()
    with single_flight(
        folder.with_suffix(".lock"), lambda: say("another process makes lmms-eval's environment")
    ):
        if not _is_complete(folder):
            _make(folder, say)
    return _python(folder)


def _named(folder: Path) -> Path:
    python = _python(folder)
    if not python.exists():
        raise SttmError(
            f"{VARIABLE} {folder} is not a virtual environment", "name one, or leave it out"
        )
    if _run([str(python), "-P", "-c", _IMPORTS]).returncode:
        raise SttmError(
            f"{VARIABLE} {folder} cannot import lmms-eval",
            f"install lmms-eval=={VERSION} there, or leave {VARIABLE} out",
        )
    return python


def _folder() -> Path:
    """Return a folder that depends on the interpreter, this environment and the list of needs."""
    from platformdirs import user_data_path

    facts = [VERSION, NEEDS, sys.version, _below()]
    digest = hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:12]
    return user_data_path("sttm") / "lmms-eval" / f"{VERSION}-{digest}"


def _below() -> list[str]:
    """Return the package folders on this process's path, and the folder of this package."""
    folders = [p for p in sys.path if Path(p).name in ("site-packages", "dist-packages")]
    return list(dict.fromkeys([*folders, str(Path(sttm_cli.__file__).parents[1])]))


def _python(folder: Path) -> Path:
    at = ("Scripts", "python.exe") if os.name == "nt" else ("bin", "python")
    return folder.joinpath(*at)


def _is_complete(folder: Path) -> bool:
    return (folder / "complete").exists() and _python(folder).exists()


def _make(folder: Path, say: Callable[[str], None]) -> None:
    uv = shutil.which("uv")
    how = "uv" if uv else "venv and pip"
    say(f"lmms-eval {VERSION} gets an environment of its own, by {how}: {folder} ({_ABOUT})")
    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    packages = _with_uv(uv, folder) if uv else _with_pip(folder)
    # The new environment's packages come first, this one's after them.
    paths = f"import sys; sys.path.extend({_below()!r})\n"
    if uv is None:
        _stand_on(folder, paths)
    _install([*packages, "--no-deps", f"lmms-eval=={VERSION}"])
    constraints = folder / "constraints.txt"
    constraints.write_text("".join(f"{line}\n" for line in _installed()), encoding="utf-8")
    _install([*packages, "--constraint", str(constraints), *NEEDS])
    _stand_on(folder, paths)
    done = _run([str(_python(folder)), "-P", "-c", _IMPORTS])
    if done.returncode:
        raise _failed("lmms-eval cannot be imported in its environment", done)
    (folder / "complete").touch()


def _with_pip(folder: Path) -> list[str]:
    done = _run([sys.executable, "-m", "venv", str(folder)])
    if done.returncode:
        raise _failed("no virtual environment can be made", done)
    pip = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    return [str(_python(folder)), *pip]


def _with_uv(uv: str, folder: Path) -> list[str]:
    done = _run([uv, "venv", "--quiet", "--python", sys.executable, str(folder)])
    if done.returncode:
        raise _failed("no virtual environment can be made", done)
    return [uv, "pip", "install", "--quiet", "--python", str(_python(folder))]


def _stand_on(folder: Path, paths: str) -> None:
    for packages in (*folder.glob("lib*/python*/site-packages"), folder / "Lib" / "site-packages"):
        if packages.is_dir():
            (packages / "sttm_below.pth").write_text(paths, encoding="utf-8")


def _installed() -> list[str]:
    """Return this environment's packages as constraints, so that no second version is installed.
    The newer PyAV is harmless, since lmms-eval's model does not use it; this package is in no
    index."""
    names = {d.metadata["Name"]: d.version for d in distributions() if d.metadata["Name"]}
    ours = ("sttm-cli", "sttm_cli")
    # The suffix after a plus names a build that an index does not list.
    return [f"{n}=={v.partition('+')[0]}" for n, v in sorted(names.items()) if n not in ours]


def _install(command: Sequence[str]) -> None:
    done = _run(command)
    if done.returncode:
        raise _failed("lmms-eval cannot be installed", done)


def _run(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    # Modules in the working folder and in PYTHONPATH are not searched.
    hidden = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
    env = {name: value for name, value in os.environ.items() if name not in hidden}
    return subprocess.run(
        list(command), capture_output=True, text=True, stdin=subprocess.DEVNULL, env=env
    )


def _failed(what: str, done: subprocess.CompletedProcess[str]) -> SttmError:
    lines = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
    reason = next((line for line in reversed(lines) if "error" in line.lower()), "")
    reason = reason or (lines[-1] if lines else f"exit code {done.returncode}")
    return SttmError(
        f"{what}: {reason.strip()[:300]}",
        f"make sure that the package index is reachable, or name an environment with {VARIABLE}",
    )


if __name__ == "__main__":
    print(lmms_python(lambda line: print(line, file=sys.stderr)).parents[1])
