"""The command answers at once: nothing heavy is imported before it is needed."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

HEAVY = {
    "torch",
    "torchvision",
    "transformers",
    "numpy",
    "av",
    "decord",
    "diskcache",
    "PIL",
    "matplotlib",
    "jinja2",
}


def modules_after(code: str) -> set[str]:
    """Top-level modules that a fresh interpreter holds after running `code`."""
    tail = "import sys, json; sys.stderr.write(json.dumps(list(sys.modules)))"
    out = subprocess.run(
        [sys.executable, "-c", f"{code}\n{tail}"], capture_output=True, text=True, check=True
    )
    return {name.split(".")[0] for name in json.loads(out.stderr.splitlines()[-1])}


def test_importing_the_package_imports_nothing_heavy() -> None:
    assert not modules_after("import sttm_cli") & HEAVY


def test_the_command_line_imports_pydantic_only_to_parse_its_flags() -> None:
    # typer does so itself.
    assert "pydantic" not in modules_after("import sttm_cli.cli")


@pytest.mark.parametrize("arguments", [["--help"], ["ask", "--help"], ["--version"]])
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    code = (
        f"import sys; sys.argv = ['sttm', *{arguments!r}]\n"
        "from sttm_cli.cli import main\n"
        "try: main()\nexcept SystemExit as end: assert not end.code, end.code"
    )
    assert not modules_after(code) & HEAVY


def test_the_process_ends_with_its_code_after_all_output_and_tidying() -> None:
    code = (
        "import atexit, sys\n"
        "from sttm_cli import __main__, cli\n"
        "def run():\n"
        "    atexit.register(print, 'tidied')\n"
        "    sys.stdout.write('answered\\n')\n"
        "    sys.exit(3)\n"
        "cli.main = run\n"
        "__main__.main()"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (out.returncode, out.stdout, out.stderr) == (3, "answered\ntidied\n", "")


def test_public_names_are_there_and_unknown_ones_are_not() -> None:
    import sttm_cli

    assert callable(sttm_cli.merge_tokens)
    assert set(sttm_cli.__all__) <= set(dir(sttm_cli))
    with pytest.raises(AttributeError, match="nonsense"):
        _ = sttm_cli.nonsense
