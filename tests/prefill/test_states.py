"""States of recurrent layers: what follows a prefix never changes them, and going back is exact."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from sttm_cli import VideoQA
from sttm_cli.answer import score
from sttm_cli.base.results import CacheUse
from sttm_cli.base.types import PrefixKV
from sttm_cli.prefill import KVContinuation, Together
from sttm_cli.runtime.resources import DEVICE, HOST, Held, KVMemory
from tests.checkpoints_qwen import qwen_vl

SAMPLE = Path(__file__).parents[2] / "docs" / "sample.mp4"
QUESTION, OTHER = "how many shapes are there?", "which digit flashes first?"


@pytest.fixture(scope="module")
def qa(tmp_path_factory: pytest.TempPathFactory) -> Iterator[VideoQA]:
    folder = tmp_path_factory.mktemp("model") / "m"
    qwen_vl(folder, "qwen3_5", pixels=(256, 4 * 80 * 112))
    fields: dict[str, Any] = {"dtype": "float32", "frames": 4, "no_cache": True}
    with VideoQA(model=str(folder), budget=0.5, **fields) as session:
        yield session


@pytest.fixture
def kv(qa: VideoQA) -> PrefixKV:
    return qa.prepare(SAMPLE).kv


def going(qa: VideoQA, kv: PrefixKV) -> KVContinuation:
    return KVContinuation(qa.model(), kv)


def ids(qa: VideoQA, text: str = QUESTION) -> torch.Tensor:
    return qa.model().question(text)


def copied(kv: PrefixKV) -> list[torch.Tensor]:
    return [tensor.clone() for state in kv.states.values() for tensor in state]


def test_recurrent_layers_have_states_and_no_tokens(kv: PrefixKV) -> None:
    assert sorted(kv.states) == [0, 1, 2, 4]
    assert [length > 0 for length in kv.lengths] == [False, False, False, True, False, True]
    assert kv.lengths[3] == kv.lengths[5] == kv.tokens.prefix
    assert kv.nbytes == kv.state_bytes + 2 * 2 * kv.tokens.prefix * 2 * 16 * 4


def test_going_back_to_the_prefix_gives_the_same_bits_and_leaves_its_own_states(
    qa: VideoQA, kv: PrefixKV
) -> None:
    before, prefix = copied(kv), going(qa, kv)
    first = prefix.extend(ids(qa))
    after = [prefix.extend(torch.tensor([token])) for token in (20, 21, 22)]
    prefix.rewind()
    assert torch.equal(prefix.extend(ids(qa)), first)
    again = [prefix.extend(torch.tensor([token])) for token in (20, 21, 22)]
    assert all(map(torch.equal, again, after))
    prefix.rewind()
    assert all(map(torch.equal, before, copied(kv)))
    # Without going back the second question hears the first.
    prefix.extend(ids(qa))
    assert not torch.allclose(prefix.extend(ids(qa)), first, atol=1e-3)


@pytest.mark.parametrize("to", [1, 7, 12, 13, 14])
def test_going_back_to_any_token_is_as_if_the_later_ones_had_never_come(
    qa: VideoQA, kv: PrefixKV, to: int
) -> None:
    text, prefix = ids(qa)[:12], going(qa, kv)
    whole = torch.cat([text, torch.tensor([20, 21, 22, 23])])
    prefix.extend(whole[:12])
    for token in whole[12:]:
        prefix.extend(token[None])
    prefix.rewind(to)
    assert prefix.appended == to
    found = prefix.extend(torch.tensor([30, 31]))
    wanted = going(qa, kv).extend(torch.cat([whole[:to], torch.tensor([30, 31])]))
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)


def test_options_are_scored_as_if_each_were_the_only_one(qa: VideoQA, kv: PrefixKV) -> None:
    model = qa.model()
    options = [model.answer(text) for text in ("two circles", "three", "a red circle and a blue")]
    together = score(going(qa, kv), ids(qa), options, model.end_ids)
    alone = [score(going(qa, kv), ids(qa), [each], model.end_ids)[0] for each in options]
    assert together == pytest.approx(alone, abs=1e-4)
    assert len({round(each, 2) for each in alone}) == 3


def test_a_conversation_resumes_its_states_and_answers_as_from_the_start(
    qa: VideoQA, kv: PrefixKV
) -> None:
    prefix, answer = going(qa, kv), torch.tensor([20, 21, 22])
    prefix.extend(ids(qa))
    for token in answer:
        prefix.extend(token[None])
    prefix.rewind()
    turn = torch.cat([ids(qa), answer, ids(qa, OTHER)])
    resumed = prefix.resume(turn)
    assert resumed == len(ids(qa)) + 3
    found = prefix.extend(turn[resumed:])
    torch.testing.assert_close(found, going(qa, kv).extend(turn), rtol=0, atol=1e-5)
    # A turn that differs early goes on from where states were kept, never from between.
    prefix.rewind()
    other = torch.cat([ids(qa)[:5], ids(qa, OTHER)])
    resumed = prefix.resume(other)
    assert resumed == prefix.appended == 0
    torch.testing.assert_close(prefix.extend(other), going(qa, kv).extend(other), rtol=0, atol=1e-5)


def test_an_interrupted_run_leaves_no_layer_ahead(
    qa: VideoQA, kv: PrefixKV, monkeypatch: pytest.MonkeyPatch
) -> None:
    prefix, wanted = going(qa, kv), going(qa, kv)
    prefix.extend(ids(qa))
    wanted.extend(ids(qa))

    def interrupted(*given: Any) -> None:
        raise KeyboardInterrupt

    handle = qa.model().decoder.layers[2].register_forward_pre_hook(interrupted)
    with pytest.raises(KeyboardInterrupt):
        prefix.extend(torch.tensor([20]))
    handle.remove()
    prefix.rewind(prefix.appended)
    last = torch.tensor([21])
    assert torch.equal(prefix.extend(last), wanted.extend(last))


def test_states_that_are_kept_do_not_grow_with_a_conversation(qa: VideoQA, kv: PrefixKV) -> None:
    prefix, turn = going(qa, kv), ids(qa)
    for _ in range(6):
        prefix.resume(turn)
        prefix.extend(turn[prefix.appended :])
        prefix.extend(torch.tensor([20]))
        turn = torch.cat([turn, torch.tensor([20]), ids(qa, OTHER)])
        prefix.rewind()
    assert kv.state_bytes < prefix.state_bytes <= 3 * kv.state_bytes + 1
    memory = KVMemory(device_bytes=0, host_bytes=10**9)
    held = memory.add("kv", Held(kv, prefix, CacheUse(False, "", 0, 0, 0, "new")))
    rows = sum(t.nbytes for t in kv.keys + kv.values)
    assert memory.bytes()[DEVICE] == rows + kv.state_bytes + prefix.state_bytes
    memory.release(held)
    assert memory.bytes() == {DEVICE: 0, HOST: kv.nbytes}


def test_states_come_back_from_host_memory_as_they_were(qa: VideoQA, kv: PrefixKV) -> None:
    first, before = going(qa, kv).extend(ids(qa)), copied(kv)
    memory = KVMemory(host_bytes=10**9)
    prefix = going(qa, kv)
    memory.release(memory.add("kv", Held(kv, prefix, CacheUse(False, "", 0, 0, 0, "new"))))
    found = memory.take("kv", lambda other: going(qa, other))
    assert found is not None
    assert found[1] == HOST
    assert all(map(torch.equal, copied(found[0].kv), before))
    assert torch.equal(found[0].prefix.extend(ids(qa)), first)


def test_questions_decoded_together_have_states_of_their_own(qa: VideoQA, kv: PrefixKV) -> None:
    """Of the same length and of others, which begin and end at different steps."""
    texts = [ids(qa), ids(qa, OTHER), ids(qa).flip(0), ids(qa, "is there a circle?")]
    lasts = [2, 5, 3, 4]

    def ask(on: Any, number: int) -> list[torch.Tensor]:
        try:
            steps = [torch.tensor([30 + number])] * lasts[number]
            return [on.extend(each) for each in (texts[number], *steps)]
        finally:
            on.rewind()

    prefix, before = going(qa, kv), copied(kv)
    alone = [ask(prefix, number) for number in range(4)]
    parts = Together(prefix, 4).parts
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(ask, parts, range(4)))
    for one, other in zip(alone, together, strict=True):
        for wanted, found in zip(one, other, strict=True):
            torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)
    assert all(map(torch.equal, before, copied(kv)))
    assert all(map(torch.equal, ask(prefix, 0), alone[0]))
