"""The wheel holds what runs, and nothing that only made or measured it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LEFT_OUT = ("sttm_cli/tiny/training/", "sttm_cli/bench/studies/")


@pytest.fixture(scope="module")
def wheel() -> set[str]:
    builder = pytest.importorskip("hatchling.builders.wheel").WheelBuilder(str(ROOT))
    return {file.distribution_path for file in builder.recurse_included_files()}


def in_package() -> set[str]:
    files = (path for path in (ROOT / "sttm_cli").rglob("*") if path.is_file())
    names = {path.relative_to(ROOT).as_posix() for path in files}
    return {name for name in names if "__pycache__" not in name}


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_training_and_studies_are_left_out_and_everything_else_is_in(wheel: set[str]) -> None:
    named = in_package()
    for folder in LEFT_OUT:
        assert any(name.startswith(folder) for name in named), folder
    assert wheel == {name for name in named if not name.startswith(LEFT_OUT)}


def test_nothing_in_the_wheel_imports_what_is_left_out() -> None:
    modules = tuple(folder.rstrip("/").replace("/", ".") for folder in LEFT_OUT)
    kept = (name for name in in_package() if not name.startswith(LEFT_OUT))
    for name in sorted(name for name in kept if name.endswith(".py")):
        assert not [module for module in imports(ROOT / name) if module.startswith(modules)], name
