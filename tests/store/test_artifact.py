"""What was saved is restored bit for bit, from a file whose format is pinned."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from sttm_cli.store import LocalStore, pack
from tests.store.made import IDENTITY, another, kv, restored, same, with_states


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_what_was_saved_is_loaded_bit_for_bit_with_room_behind(store: LocalStore, dtype) -> None:
    saved = kv(dtype=dtype)
    assert store.save(IDENTITY, pack(saved), label={"video": "v.mp4"})
    other = another(store)
    entry = other.find(IDENTITY).entry
    loaded = restored(other, room=9)
    assert same(saved, loaded)
    assert [len(k) for k in loaded.keys] == [21, 21, 16]
    assert (loaded.merge_layer, loaded.next_positions, loaded.grid) == (2, (12, 7), (2, 1, 5))
    assert (loaded.tokens, loaded.facts) == (saved.tokens, saved.facts)
    assert entry.label == {"video": "v.mp4"}
    assert entry.bytes == Path(entry.location).stat().st_size


@pytest.mark.parametrize("kv_dtype", ["bfloat16", "float16", "int8"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_rounded_kv_is_restored_as_its_maker_goes_on_with_it(
    store: LocalStore, dtype: torch.dtype, kv_dtype: str
) -> None:
    lossless, made = kv(dtype=dtype), kv(dtype=dtype)
    made.keys[1][:3] *= 1e9
    packed = pack(made, kv_dtype)
    entry = store.save(IDENTITY, packed, label={})
    loaded = restored(another(store), room=3)
    assert same(made, loaded)
    assert loaded.keys[0].dtype is dtype
    assert all(t[:n].isfinite().all() for t, n in zip(made.keys, made.lengths, strict=True))
    assert (made.values[2][:7] - lossless.values[2][:7]).abs().max() < 0.03
    assert entry.kv_dtype == kv_dtype
    assert entry.saved_bytes == made.nbytes - packed.nbytes
    assert Path(entry.location).stat().st_size - entry.bytes == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_read_in_pieces_are_those_read_at_once(
    store: LocalStore, dtype: torch.dtype, monkeypatch
) -> None:
    made = kv(lengths=(300, 300, 41), dtype=dtype)
    store.save(IDENTITY, pack(made, "int8"), label={})
    monkeypatch.setattr("sttm_cli.store.reading.PIECE", 64)
    monkeypatch.setattr("sttm_cli.store.packing.BLOCK", 24)
    assert same(made, restored(another(store)))


@pytest.mark.parametrize("kv_dtype", ["auto", "bfloat16", "int8"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_states_are_stored_as_they_are_however_keys_are_rounded(
    store: LocalStore, dtype: torch.dtype, kv_dtype: str, monkeypatch
) -> None:
    lossless, made = with_states(dtype=dtype), with_states(dtype=dtype)
    packed = pack(made, kv_dtype)
    entry = store.save(IDENTITY, packed, label={})
    monkeypatch.setattr("sttm_cli.store.reading.PIECE", 64)
    loaded = restored(another(store), room=3)
    assert same(made, loaded)
    assert all(map(torch.equal, loaded.states[2], lossless.states[2]))
    assert [len(k) for k in loaded.keys] == [0, 15, 0, 15, 0, 10]
    assert {k.dtype for k in loaded.keys} == {dtype}
    assert entry.saved_bytes == made.nbytes - packed.nbytes
    with safe_open(Path(entry.location), "pt") as file:
        assert torch.equal(file.get_tensor("layers.4.recurrent"), made.states[4].recurrent)
        assert torch.equal(file.get_tensor("layers.4.conv"), made.states[4].conv)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("kv_dtype", ["auto", "int8"])
def test_a_gpu_gets_what_a_cpu_gets(store: LocalStore, kv_dtype: str, monkeypatch) -> None:
    made = kv(lengths=(300, 300, 41))
    store.save(IDENTITY, pack(made, kv_dtype), label={})
    monkeypatch.setattr("sttm_cli.store.reading.PIECE", 640)
    loaded = restored(another(store), room=7, device="cuda")
    assert all(tensor.is_cuda for tensor in loaded.keys + loaded.values)
    loaded.keys, loaded.values = ([t.cpu() for t in side] for side in (loaded.keys, loaded.values))
    assert same(made, loaded)


def test_a_staging_buffer_is_not_written_before_the_copy_out_of_it_is_done() -> None:
    from sttm_cli.store.reading import Slot

    class Event:
        waited = False

        def synchronize(self) -> None:
            self.waited = True

    slot = Slot(8, pinned=False)
    slot._copied = Event()
    assert len(slot.free(4)) == 4
    assert slot._copied.waited


def test_int8_tensors_are_plain_safetensors_with_their_scales(store: LocalStore) -> None:
    made = kv()
    entry = store.save(IDENTITY, pack(made, "int8"), label={})
    with safe_open(Path(entry.location), "pt") as file:
        stored, scale, offset = (
            file.get_tensor(f"layers.2.key{part}") for part in ("", ".scale", ".offset")
        )
    assert stored.dtype is torch.int8
    assert torch.equal(stored * scale + offset, made.keys[2][:7])


def test_the_file_is_plain_safetensors(store: LocalStore) -> None:
    saved = kv()
    entry = store.save(IDENTITY, pack(saved), label={})
    with safe_open(Path(entry.location), "pt") as file:
        assert torch.equal(file.get_tensor("layers.2.value"), saved.values[2][:7])


@pytest.mark.parametrize("make", [kv, with_states])
@pytest.mark.parametrize("kv_dtype", ["auto", "int8"])
def test_the_format_is_pinned_byte_for_byte(store: LocalStore, kv_dtype: str, make) -> None:
    from blake3 import blake3

    small = make()
    for layer, state in small.states.items():
        for tensor in state:
            tensor.copy_(torch.arange(tensor.numel()).reshape(tensor.shape) - layer)
    for i, tensor in enumerate(small.keys + small.values):
        tensor.copy_(torch.arange(tensor.numel()).reshape(tensor.shape) + i)
    entry = store.save(IDENTITY, pack(small, kv_dtype), label={"video": "v.mp4"})
    data = Path(entry.location).read_bytes()
    assert data[8:].startswith(b'{"__metadata__":{"sttm":"{\\"checksum\\":\\"blake3:')
    assert (b'"format\\":4' if small.states else b'"format\\":3') in data
    assert (8 + int.from_bytes(data[:8], "little")) % 64 == 0
    assert blake3(data).hexdigest() == PINNED[make.__name__, kv_dtype]


PINNED = {
    ("kv", "auto"): "08f2dd45a9adf9ddaf64b4a345305f800431711010c7db1a77df45a3bfba509a",
    ("kv", "int8"): "34d198bc5c384337284903ff938538bca98d10e5cd7d21a96b2a1b34d263a8aa",
    ("with_states", "auto"): "84b2de51933aee19da16cd2f3f53d11bb6eea89ecfe42b62322fae4da3eb3566",
    ("with_states", "int8"): "abe1ecf6074e851596b4553a82571e6230400b9ea630362c366a5716853448ec",
}
