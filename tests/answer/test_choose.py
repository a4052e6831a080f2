"""Options weighed as answers: by the likelihood of the model saying exactly that."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from sttm_cli.base.errors import UsageError
from sttm_cli.runtime.prepared import Prepared
from sttm_cli.runtime.session import VideoQA

SAMPLE = Path(__file__).parents[2] / "docs" / "sample.mp4"
QUESTION = "how many shapes are there?"
OPTIONS = ("one", "three", "three four", "four")

Ready = tuple[VideoQA, Prepared]


@pytest.fixture(scope="module")
def ready(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ready]:
    with VideoQA(model="tiny", device="cpu", cache_dir=tmp_path_factory.mktemp("cache")) as qa:
        yield qa, qa.prepare(SAMPLE)


def token_by_token(ready: Ready, option: str) -> float:
    """The log-likelihood of `option` as a whole answer, a token at a time."""
    (qa, prepared), total = ready, 0.0
    logits = prepared.prefix.extend(qa.model().question(QUESTION))
    for token in [*qa.model().answer(option).tolist(), *qa.model().end_ids]:
        total += float(logits.double().log_softmax(0)[token])
        logits = prepared.prefix.extend(torch.tensor([token]))
    prepared.prefix.rewind()
    return total


def test_an_option_scores_what_the_model_gives_its_tokens_and_the_end(ready: Ready) -> None:
    qa, prepared = ready
    choice = qa.choose(prepared, QUESTION, OPTIONS)
    wanted = torch.tensor([token_by_token(ready, option) for option in OPTIONS])
    found = torch.tensor([option.log_likelihood for option in choice.options])
    assert torch.allclose(found, wanted, atol=1e-4)
    shares = torch.tensor([option.probability for option in choice.options])
    assert torch.allclose(shares, wanted.softmax(0), atol=1e-5)
    assert [option.tokens for option in choice.options] == [1, 1, 2, 1]


def test_the_best_option_is_what_the_model_answers_freely_whatever_the_order(ready: Ready) -> None:
    qa, prepared = ready
    free = qa.answer(prepared, QUESTION).text
    for options in (OPTIONS, OPTIONS[::-1]):
        assert qa.choose(prepared, QUESTION, options).best.text == free
    assert qa.answer(prepared, QUESTION).text == free, "weighing left something behind"


def test_an_option_that_begins_another_is_charged_for_ending_there(ready: Ready) -> None:
    qa, prepared = ready
    short, long = qa.choose(prepared, QUESTION, ("three", "three four")).options
    logits = prepared.prefix.extend(qa.model().question(QUESTION))
    begun = float(logits.double().log_softmax(0)[qa.model().answer("three")[0]])
    prepared.prefix.rewind()
    assert begun > short.log_likelihood > long.log_likelihood


def test_earlier_turns_are_part_of_what_is_weighed(ready: Ready) -> None:
    qa, prepared = ready
    alone = qa.choose(prepared, QUESTION, OPTIONS)
    qa.answer(prepared, QUESTION)
    later = qa.choose(prepared, QUESTION, OPTIONS, history=[(QUESTION, "four"), (QUESTION, "one")])
    assert later.options[0].log_likelihood != alone.options[0].log_likelihood
    again = qa.choose(prepared, QUESTION, OPTIONS, history=[(QUESTION, "four"), (QUESTION, "one")])
    found = torch.tensor([[o.log_likelihood for o in c.options] for c in (later, again)])
    assert torch.allclose(found[0], found[1], atol=1e-4)


@pytest.mark.parametrize(
    ("options", "part"),
    [
        (("one",), "single"),
        (("one", " "), "empty"),
        (("one", "two", "one"), "twice"),
        (("cat", "dog"), "same tokens"),
        (("one", "<|im_end|>"), "control token"),
    ],
)
def test_options_that_cannot_be_weighed_are_refused(
    ready: Ready, options: tuple[str, ...], part: str
) -> None:
    with pytest.raises(UsageError, match=part):
        ready[0].choose(ready[1], QUESTION, options)
