"""Families' checkpoints, made once for each file of tests."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.merged import Case, case_of


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Case]:
    made: dict[str, Case] = {}

    def get(family: str) -> Case:
        if family not in made:
            made[family] = case_of(family, tmp_path_factory.mktemp("limits") / family)
        return made[family]

    return get


@pytest.fixture
def llava(cases: Callable[[str], Case]) -> Case:
    return cases("llava_onevision")


@pytest.fixture
def qwen(cases: Callable[[str], Case]) -> Case:
    return cases("qwen2_5_vl")
