"""A file with all its checksums that this program did not make: a miss, never a crash."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from sttm_cli.base.types import LayerState, PrefixKV
from sttm_cli.runtime.resources import Resources
from sttm_cli.runtime.session import VideoQA
from sttm_cli.store import LocalStore, pack
from tests.checkpoints_qwen import qwen_vl

SAMPLE = Path(__file__).parents[2] / "docs" / "sample.mp4"
QUESTION = "how many shapes are there?"


def fact(name: str, value: Any) -> Callable[[PrefixKV], PrefixKV]:
    """Another value in `facts`, at a path of names."""

    def change(kv: PrefixKV) -> PrefixKV:
        *folders, last = name.split(".")
        place = kv.facts
        for folder in folders:
            place = place[folder]
        place[last] = value
        return kv

    return change


CHANGES: dict[str, Callable[[PrefixKV], PrefixKV]] = {
    "no decode": fact("decode", None),
    "times are text": fact("decode.times_s", ["soon"]),
    "warnings are no text": fact("decode.warnings", [{}]),
    "seconds are text": fact("seconds.prefill", "long"),
    "tokens that the model has not": fact("token_ids", [10**9]),
    "another prefix": lambda kv: replace(kv, tokens=replace(kv.tokens, prefix=1)),
    "more kept than there were": lambda kv: replace(
        kv, tokens=replace(kv.tokens, video_kept=10**6)
    ),
    "fewer after the spatial step than in the end": lambda kv: replace(
        kv, tokens=replace(kv.tokens, after_spatial=1)
    ),
    "more after the spatial step than before it": lambda kv: replace(
        kv, tokens=replace(kv.tokens, after_spatial=10**6)
    ),
    "positions far away": lambda kv: replace(kv, next_positions=(2**39, 2**39)),
    "merged elsewhere": lambda kv: replace(kv, merge_layer=0),
    "a layer less": lambda kv: replace(
        kv, keys=kv.keys[:-1], values=kv.values[:-1], lengths=kv.lengths[:-1]
    ),
    "half the heads": lambda kv: replace(
        kv, keys=[k[:, :1] for k in kv.keys], values=[v[:, :1] for v in kv.values]
    ),
    "another type": lambda kv: replace(
        kv, keys=[k.half() for k in kv.keys], values=[v.half() for v in kv.values]
    ),
}


@pytest.fixture(scope="module")
def resources(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Resources]:
    """One loaded model for all, which keeps no KV in memory."""
    resources = Resources(LocalStore(tmp_path_factory.mktemp("cache"), warn=print))
    yield resources
    resources.close()


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_what_no_run_can_have_stored_is_a_miss(
    resources: Resources, change: Callable[[PrefixKV], PrefixKV]
) -> None:
    store, said = resources.store, list[str]()
    with VideoQA(resources=resources) as qa:
        right, identity = qa.ask(SAMPLE, QUESTION), qa.request(SAMPLE).identity
    kv = store.load(store.find(identity), device="cpu", room=0)
    store.save(identity, pack(change(kv)), label={})
    with VideoQA(resources=resources, warn=said.append) as qa:
        again = qa.ask(SAMPLE, QUESTION)
    assert "computing it anew" in " ".join(said)
    assert (again.cache_hit, again.text) == (False, right.text)
    with VideoQA(resources=resources, warn=pytest.fail) as qa:
        assert qa.ask(SAMPLE, QUESTION).cache_hit


def state(
    conv: Callable[[torch.Tensor], torch.Tensor] = lambda tensor: tensor,
    recurrent: Callable[[torch.Tensor], torch.Tensor] = lambda tensor: tensor,
) -> Callable[[PrefixKV], PrefixKV]:
    """Other states in all layers: a file has one shape for all."""

    def change(kv: PrefixKV) -> PrefixKV:
        states = {
            layer: LayerState(conv(each.conv.clone()), recurrent(each.recurrent.clone()))
            for layer, each in kv.states.items()
        }
        return replace(kv, states=states)

    return change


def spoilt(value: float) -> Callable[[torch.Tensor], torch.Tensor]:
    def change(tensor: torch.Tensor) -> torch.Tensor:
        tensor.view(-1)[-1] = value
        return tensor

    return change


STATES: dict[str, Callable[[PrefixKV], PrefixKV]] = {
    "a state is no number": state(recurrent=spoilt(float("nan"))),
    "a state is endless": state(recurrent=spoilt(float("inf"))),
    "an input of a convolution is no number": state(conv=spoilt(float("nan"))),
    "a longer convolution": state(conv=lambda tensor: torch.cat([tensor, tensor], 1)),
    "half the heads of states": state(recurrent=lambda tensor: tensor[:2].contiguous()),
    "keys for values in states": state(recurrent=lambda tensor: tensor.mT.contiguous()),
    "keys in a layer with a state": lambda kv: replace(
        kv,
        keys=[kv.keys[3].clone(), *kv.keys[1:]],
        values=[kv.values[3].clone(), *kv.values[1:]],
        lengths=(kv.lengths[3], *kv.lengths[1:]),
        states={layer: each for layer, each in kv.states.items() if layer},
    ),
    "a state in a layer with keys": lambda kv: replace(
        kv,
        keys=[*kv.keys[:5], kv.keys[0]],
        values=[*kv.values[:5], kv.values[0]],
        lengths=(*kv.lengths[:5], 0),
        sizes=None,
        states={**kv.states, 5: kv.states[0]},
    ),
}


@pytest.fixture(scope="module")
def recurrent(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[dict[str, Any], Resources]]:
    """A model with recurrent layers, loaded once."""
    folder = tmp_path_factory.mktemp("model") / "m"
    qwen_vl(folder, "qwen3_5", pixels=(256, 4 * 80 * 112))
    resources = Resources(LocalStore(tmp_path_factory.mktemp("cache"), warn=print))
    yield {"model": str(folder), "frames": 4, "max_new_tokens": 8}, resources
    resources.close()


@pytest.mark.parametrize("change", STATES.values(), ids=STATES)
def test_states_that_no_run_can_have_stored_are_a_miss(
    recurrent: tuple[dict[str, Any], Resources], change: Callable[[PrefixKV], PrefixKV]
) -> None:
    fields, resources = recurrent
    store, said = resources.store, list[str]()
    with VideoQA(**fields, resources=resources) as qa:
        right, identity = qa.ask(SAMPLE, QUESTION), qa.request(SAMPLE).identity
    kv = store.load(store.find(identity), device="cpu", room=0)
    assert store.save(identity, pack(change(kv)), label={}) is not None
    with VideoQA(**fields, resources=resources, warn=said.append) as qa:
        again = qa.ask(SAMPLE, QUESTION)
    assert "computing it anew" in " ".join(said)
    assert (again.cache_hit, again.text) == (False, right.text)
    with VideoQA(**fields, resources=resources, warn=pytest.fail) as qa:
        assert qa.ask(SAMPLE, QUESTION).cache_hit
