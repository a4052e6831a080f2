"""Answers: drawn or greedy, stopped in the middle, continued over several turns."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
import torch

from sttm_cli.answer.generate import Sampler, generate, nucleus
from sttm_cli.base.errors import UsageError
from sttm_cli.base.types import Ending, Sampling
from sttm_cli.runtime.prepared import Prepared
from sttm_cli.runtime.session import VideoQA

SAMPLE = Path(__file__).parents[2] / "docs" / "sample.mp4"
QUESTION = "how many shapes are there?"
FOLLOW_UPS = ("is there a circle?", "and what colour is it?", "which digit flashes?")


@pytest.fixture(scope="module")
def talkative(
    random_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[VideoQA, Prepared]]:
    """A model with random weights: it seldom ends an answer by itself."""
    folder = tmp_path_factory.mktemp("cache")
    with VideoQA(model=str(random_model), device="cpu", cache_dir=folder, max_new_tokens=12) as qa:
        yield qa, qa.prepare(SAMPLE)


def test_drawn_tokens_have_the_softmax_probabilities() -> None:
    logits = torch.tensor([0.0, 1.0, 2.0, -5.0])
    sampler = Sampler(Sampling(temperature=2.0, seed=1), top_p=1.0)
    counts = Counter(sampler(logits) for _ in range(4000))
    found = torch.tensor([counts[i] / 4000 for i in range(4)])
    assert torch.allclose(found, (logits / 2.0).softmax(0), atol=0.03)


def test_nucleus_keeps_the_likeliest_up_to_its_share() -> None:
    probabilities = torch.tensor([0.1, 0.5, 0.25, 0.15])
    assert nucleus(probabilities, 0.6)[1].tolist() == [1, 2]
    assert nucleus(probabilities, 0.01)[1].tolist() == [1]
    assert nucleus(probabilities, 1.0)[0].equal(probabilities)


@pytest.mark.parametrize("top_p", [0.001, 0.5, 0.9, 0.9999])
@pytest.mark.parametrize("spread", [0.01, 1.0, 8.0])
def test_nucleus_of_a_large_vocabulary_is_that_of_ordering_all_of_it(
    top_p: float, spread: float
) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(20_000, generator=generator, dtype=torch.float64)
    probabilities = (logits * spread).softmax(0)
    ordered, order = probabilities.sort(descending=True)
    count = int((ordered.cumsum(0) - ordered < top_p).sum())
    assert nucleus(probabilities, top_p)[1].equal(order[:count])


def test_a_tiny_temperature_takes_the_likeliest() -> None:
    sampler = Sampler(Sampling(temperature=1e-30), top_p=1.0)
    assert sampler(torch.tensor([1.0, 30.0, 29.99])) == 1


@pytest.mark.parametrize(
    "values", [{"temperature": -0.1}, {"temperature": float("nan")}, {"seed": -1}, {"top_p": 0.0}]
)
def test_impossible_sampling_is_refused(values: dict[str, float]) -> None:
    with pytest.raises(UsageError, match="not possible"):
        Sampling(**values)  # type: ignore[arg-type]


def test_a_seed_draws_the_same_answer_and_another_seed_another(
    talkative: tuple[VideoQA, Prepared],
) -> None:
    qa, prepared = talkative

    def drawn(seed: int | None) -> tuple[str, int | None]:
        answer = qa.answer(prepared, QUESTION, sampling=Sampling(1.0, seed, 1.0))
        return answer.text, answer.seed

    greedy = qa.answer(prepared, QUESTION)
    assert drawn(7) == drawn(7)
    assert len({drawn(seed)[0] for seed in (7, 8, 9)}) > 1
    text, seed = drawn(None)
    assert drawn(seed) == (text, seed)
    assert greedy.seed is None
    assert qa.answer(prepared, QUESTION).text == greedy.text, "drawing left something behind"


def test_stopping_keeps_what_was_said_and_winds_the_kv_back(
    talkative: tuple[VideoQA, Prepared],
) -> None:
    qa, prepared = talkative
    whole = qa.answer(prepared, QUESTION)
    asked = iter([False, False, False, True])
    half = qa.answer(prepared, QUESTION, stop=lambda: next(asked))
    assert (half.ending, half.new_tokens) == (Ending.STOPPED, 3)
    assert whole.text.startswith(half.text)
    assert whole.ending is Ending.LENGTH
    assert qa.answer(prepared, QUESTION).text == whole.text


def test_an_exception_in_the_middle_winds_the_kv_back(
    talkative: tuple[VideoQA, Prepared],
) -> None:
    qa, prepared = talkative
    whole = qa.answer(prepared, QUESTION)

    def gone(text: str) -> None:
        raise ConnectionError

    with pytest.raises(ConnectionError):
        qa.answer(prepared, QUESTION, on_text=gone)
    assert qa.answer(prepared, QUESTION).text == whole.text


@pytest.mark.parametrize("model", ["tiny", "random"])
def test_turns_continue_the_kv_of_earlier_ones_and_answer_as_if_recomputed(
    model: str, random_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "tiny" if model == "tiny" else str(random_model)
    with VideoQA(model=name, device="cpu", max_new_tokens=6) as qa:
        prepared = qa.prepare(SAMPLE)
        history: list[tuple[str, str]] = []
        taken, answers = [], []
        resume = prepared.prefix.resume
        monkeypatch.setattr(
            prepared.prefix, "resume", lambda ids: taken.append(resume(ids)) or taken[-1]
        )
        for question in (QUESTION, *FOLLOW_UPS):
            answers.append(qa.answer(prepared, question, history=history).text)
            history.append((question, answers[-1]))
        assert len(taken) == 3
        assert taken[0] >= 8
        assert sorted(taken) == taken, "a later turn takes back more"
        again = []
        for turn, (question, _) in enumerate(history):
            monkeypatch.setattr(prepared.prefix, "resume", lambda ids: 0)
            again.append(qa.answer(prepared, question, history=history[:turn]).text)
        assert answers == again


def test_logits_after_taking_back_equal_those_computed_anew(
    talkative: tuple[VideoQA, Prepared],
) -> None:
    prefix = talkative[1].prefix
    ids = torch.arange(5, 15)
    anew = prefix.extend(ids)
    each = prefix.extend_each(ids[:3])
    prefix.rewind(len(ids))
    assert torch.allclose(prefix.extend_each(ids[:3]), each, atol=1e-5)
    prefix.rewind()
    other = torch.cat([ids[:6], torch.tensor([3, 4])])
    assert prefix.resume(other) == 6
    prefix.extend(other[6:])
    prefix.rewind()
    assert prefix.resume(ids) == 6, "what was written over is not taken back"
    assert torch.allclose(prefix.extend(ids[6:]), anew, atol=1e-5)
    prefix.rewind()


def test_a_full_context_is_a_usage_error_and_a_nearly_full_one_ends_the_answer(
    talkative: tuple[VideoQA, Prepared], monkeypatch: pytest.MonkeyPatch
) -> None:
    qa, prepared = talkative
    config = qa.model().decoder.config
    used = config.max_position_embeddings - prepared.prefix.room
    need = len(qa.model().question(QUESTION))
    monkeypatch.setattr(config, "max_position_embeddings", used + need + 2)
    answer = qa.answer(prepared, QUESTION)
    assert (answer.ending, answer.new_tokens) == (Ending.CONTEXT, 2)
    with pytest.raises(UsageError, match="context has room for"):
        qa.answer(prepared, QUESTION, history=[(QUESTION, "four")])


class Scripted:
    """A prefix whose logits favour the tokens of a script, one after the other."""

    def __init__(self, script: Sequence[int]) -> None:
        self._script, self.appended, self.token_ids = list(script), 0, [3]

    def extend(self, ids: torch.Tensor) -> torch.Tensor:
        logits = torch.zeros(10)
        logits[self._script.pop(0)] = 1.0
        return logits

    def rewind(self, to: int = 0) -> None:
        """There is nothing to forget."""


class Reader:
    """The part of a model that reads the answer: `ends` end it."""

    def __init__(self, ends: Sequence[int]) -> None:
        self.end_ids, self.top_p = frozenset(ends), 1.0
        self.weighed_with: list[tuple[list[int], list[int]]] = []

    def text(self, ids: Sequence[int]) -> str:
        return " ".join(map(str, ids))

    def pieces(self) -> Callable[[int], str]:
        return lambda token: f"{token} "

    def weighed(
        self, logits: torch.Tensor, prompt: Sequence[int], made: Sequence[int]
    ) -> torch.Tensor:
        self.weighed_with.append((list(prompt), list(made)))
        return logits


@pytest.mark.parametrize("end", [7, 8, 9])
def test_any_of_several_end_ids_ends_an_answer(end: int) -> None:
    made = generate(
        Scripted([1, 2, end, 4]), torch.tensor([5, 6]), Reader([9, 7, 8]), max_new_tokens=9
    )  # type: ignore[arg-type]
    assert (made.ids, made.ending) == ((1, 2), Ending.END)


def test_tokens_are_weighed_by_prefix_question_and_answer_and_nothing_else() -> None:
    reader = Reader([9])
    generate(Scripted([1, 2, 9]), torch.tensor([5, 6]), reader, max_new_tokens=9)  # type: ignore[arg-type]
    assert reader.weighed_with == [([3, 5, 6], []), ([3, 5, 6], [1]), ([3, 5, 6], [1, 2])]


def test_a_repetition_penalty_counts_prefix_and_question_and_no_rewound_token(
    talkative: tuple[VideoQA, Prepared],
) -> None:
    _, prepared = talkative
    model, prefix = prepared.model, prepared.prefix
    question = model.question(QUESTION)
    prefix.extend(torch.tensor([7, 8]))
    prefix.rewind()
    seen: list[list[int]] = []

    def weighed(logits: torch.Tensor, prompt: Sequence[int], made: Sequence[int]) -> torch.Tensor:
        seen.append(sorted({*prompt, *made}))
        return logits

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model, "weighed", weighed)
        generate(prefix, question, model, max_new_tokens=1)
    assert seen == [sorted({*prepared.kv.facts["token_ids"], *question.tolist()})]


def test_every_end_id_of_the_checkpoint_counts_and_its_penalty_is_applied(
    talkative: tuple[VideoQA, Prepared],
) -> None:
    model = talkative[0].model()
    settings = model._generation  # type: ignore[attr-defined]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(settings, "eos_token_id", [11, 5, 8])
        patch.setattr(settings, "repetition_penalty", 2.0)
        assert model.end_ids == {5, 8, 11}
        logits = torch.tensor([1.0, 1.0, 1.0, -1.0])
        assert model.weighed(logits, [0], [3]).tolist() == [0.5, 1.0, 1.0, -2.0]
