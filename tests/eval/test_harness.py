"""What harness.py says of an exception, with stand-ins for lmms-eval and openai."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import sttm_cli.eval

MODULES = {
    "lmms_eval/__init__.py": "",
    "lmms_eval/models/__init__.py": "",
    "lmms_eval/models/chat/__init__.py": "",
    "lmms_eval/evaluator.py": """
import time
def simple_evaluate(**options):
    time.sleep(0.3)
    class Attempt:
        def exception(self):
            return FileNotFoundError("no such data set:\\n  mine")
    class RetryError(Exception):
        last_attempt = Attempt()
    raise RetryError("Future at 0x7f00 state=finished")
""",
    "lmms_eval/models/chat/openai.py": """
from types import SimpleNamespace as Space
class OpenAICompatible:
    def __init__(self, **options):
        made = Space(chat=Space(completions=Space(create=None)))
        made.with_options = lambda **more: made
        self.client = made
""",
    "lmms_eval/tasks.py": "def TaskManager(*given, **named): pass",
    "openai/__init__.py": "",
    "openai/types/__init__.py": "",
    "openai/types/chat.py": "ChatCompletion = None",
}


def test_the_last_line_is_the_exception_of_the_last_attempt(tmp_path: Path) -> None:
    for name, text in MODULES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    job = {"include": [], "journal": str(tmp_path / "journal"), "out": str(tmp_path / "out")}
    job |= dict.fromkeys(("model", "base_url", "task"), "x") | dict.fromkeys(("frames", "limit"), 1)
    (tmp_path / "job.json").write_text(json.dumps(job))
    harness = Path(sttm_cli.eval.__file__).parent / "harness.py"
    process = subprocess.Popen(
        [sys.executable, "-P", str(harness), str(tmp_path / "job.json")],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    with process:
        lines = process.stdout.read().splitlines()
    assert process.returncode == 1
    assert lines[-1] == "FileNotFoundError: no such data set: mine"
    assert "Traceback (most recent call last):" in lines
