"""Questions that run together are answered as each alone."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from sttm_cli import VideoQA
from sttm_cli.answer import Generated, generate
from sttm_cli.base.types import Continuation, Sampling
from sttm_cli.prefill import KVContinuation, Together
from tests.checkpoints_gemma import gemma4
from tests.checkpoints_qwen import qwen_vl

SAMPLE = Path(__file__).parents[2] / "docs" / "sample.mp4"
QUESTIONS = (
    "how many shapes are there?",
    "which digit flashes?",
    "what is the colour of the cross, and which way does it move?",
    "is there a circle?",
)


@pytest.fixture(scope="module", params=["tiny", "qwen2_vl", "qwen3_5", "gemma4", "gemma4_unified"])
def asked(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[VideoQA, KVContinuation, list[torch.Tensor]]:
    """A prefix, and questions of different lengths to continue it with."""
    name = "tiny"
    if request.param.startswith("qwen"):
        folder = tmp_path_factory.mktemp("model") / "qwen"
        name = str(qwen_vl(folder, request.param, pixels=(256, 4 * 80 * 112)))
    if "gemma4" in request.param:
        size = "unified" if "unified" in request.param else "small"
        name = str(gemma4(tmp_path_factory.mktemp("model") / "gemma", size, window=16))
    qa = VideoQA(model=name, budget=0.4, no_cache=True, dtype="float32", frames=4)
    prefix = qa.prepare(SAMPLE).prefix
    assert isinstance(prefix, KVContinuation)
    return qa, prefix, [qa.model().question(question) for question in QUESTIONS]


def test_logits_are_those_of_each_alone(
    asked: tuple[VideoQA, KVContinuation, list[torch.Tensor]],
) -> None:
    _, prefix, questions = asked
    after = torch.tensor([20])

    def go_on(on: Continuation, question: torch.Tensor) -> list[torch.Tensor]:
        try:
            return [on.extend(question), *(on.extend(after) for _ in range(3))]
        finally:
            on.rewind()

    alone = [go_on(prefix, question) for question in questions]
    parts = Together(prefix, len(questions)).parts
    with ThreadPoolExecutor(len(questions)) as pool:
        together = list(pool.map(go_on, parts, questions))
    for one, other in zip(alone, together, strict=True):
        for expected, got in zip(one, other, strict=True):
            torch.testing.assert_close(got, expected, rtol=0, atol=1e-4)
    # The prefix is as it was, bit by bit.
    assert all(map(torch.equal, go_on(prefix, questions[0]), alone[0]))


def test_answers_are_those_of_each_alone_whenever_the_others_end(
    asked: tuple[VideoQA, KVContinuation, list[torch.Tensor]],
) -> None:
    qa, prefix, questions = asked

    def answer(on: Continuation, number: int) -> Generated:
        ways = [Sampling(), Sampling(temperature=2.0, seed=7)]
        return generate(
            on,
            questions[number],
            qa.model(),
            max_new_tokens=3 + 5 * number,
            sampling=ways[number % 2],
        )

    alone = [answer(prefix, number) for number in range(len(questions))]
    parts = Together(prefix, len(questions)).parts
    with ThreadPoolExecutor(len(questions)) as pool:
        together = list(pool.map(answer, parts, range(len(questions))))
    assert [(a.text, a.ids) for a in together] == [(a.text, a.ids) for a in alone]


def test_one_that_fails_or_leaves_holds_up_nobody(
    asked: tuple[VideoQA, KVContinuation, list[torch.Tensor]],
) -> None:
    _, prefix, questions = asked
    expected = prefix.extend(questions[0])
    prefix.rewind()
    first, second, third = Together(prefix, 3).parts
    with ThreadPoolExecutor(3) as pool:
        going = pool.submit(first.extend, questions[0])
        broken = pool.submit(second.extend, torch.tensor([0.5]))
        third.leave()
        with pytest.raises((RuntimeError, IndexError)):
            broken.result(30)
        with pytest.raises((RuntimeError, IndexError)):
            going.result(30)
    first.leave()
    second.leave()
    torch.testing.assert_close(prefix.extend(questions[0]), expected)
    prefix.rewind()
