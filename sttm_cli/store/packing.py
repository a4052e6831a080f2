"""How a KV's numbers are stored: unchanged, in half precision, or as int8 with scales.

The process that computed a KV continues with the numbers that a later process will restore: `pack`
rounds them in place, so that a cold run and a hit give the same answer.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from math import prod
from typing import BinaryIO

import torch

from sttm_cli.base.types import Json, PrefixKV
from sttm_cli.store.artifact import (
    FORMAT,
    WITH_STATES,
    Checksum,
    Stated,
    canonical,
    key_of,
    layout,
    seal_of,
)

STORED = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "int8": torch.int8,
}
SCALED = torch.int8
"""The stored type with scales and offsets."""
TOKENS, DIM = 0, 2
"""Axes of [n, heads, dim]: one scale for all entries along TOKENS is one per channel."""
BLOCK = 1 << 15
"""Numbers unpacked at once: they stay in the processor's caches between the steps, and torch does
not split them among threads, which is slow on a busy machine."""
_STEPS = 127


@dataclass(frozen=True)
class Packed:
    """One tensor as it is stored: `stored` [n, heads, dim], a number as stored * scale + offset.

    `scale` and `offset` are float32, one per channel: [1, heads, dim]; None for stored types other
    than int8.
    """

    stored: torch.Tensor
    scale: torch.Tensor | None = None
    offset: torch.Tensor | None = None

    @property
    def parts(self) -> list[torch.Tensor]:
        """Return scale and offset, if any, then the stored numbers."""
        return [t for t in (self.scale, self.offset, self.stored) if t is not None]

    @property
    def nbytes(self) -> int:
        return sum(t.numel() * t.element_size() for t in self.parts)

    def unpack(self, out: torch.Tensor) -> None:
        """Write the numbers to `out` [n, heads, dim]; bit for bit the same for any rows."""
        if self.scale is None or self.offset is None:
            # Only CUDA reports the end of a copy, after which `stored` may be overwritten.
            out.copy_(self.stored, non_blocking=out.is_cuda)
        elif out.dtype is torch.float32:
            # Two rounded operations, never a fused one: a row must not depend on its neighbours.
            torch.mul(self.stored, self.scale, out=out).add_(self.offset)
        else:
            on_cpu = out.device.type == "cpu"
            step = max(1, BLOCK // prod(out.shape[1:])) if on_cpu else len(out)
            for rows, numbers in zip(self.stored.split(step), out.split(step), strict=True):
                numbers.copy_((rows * self.scale).add_(self.offset))


@dataclass(frozen=True)
class PackedKV:
    """A KV as it is restored, `kv`, and as it is stored: `tensors`, layer 0 key, layer 0 value,
    layer 1 key, ..., without layers that have states, which are stored as they are."""

    kv: PrefixKV
    kv_dtype: str
    tensors: list[Packed]

    @property
    def nbytes(self) -> int:
        """Bytes of all stored tensors."""
        return sum(packed.nbytes for packed in self.tensors) + self.kv.state_bytes

    @property
    def saved_bytes(self) -> int:
        """How many fewer bytes that is than the KV's own."""
        return self.kv.nbytes - self.nbytes


@torch.inference_mode()
def pack(kv: PrefixKV, kv_dtype: str = "auto") -> PackedKV:
    """Round `kv` in place to what `kv_dtype` keeps of it; "auto" keeps everything."""
    own = str(kv.keys[0].dtype).removeprefix("torch.")
    kv_dtype = own if kv_dtype == "auto" else kv_dtype
    tensors = []
    for key, value, length in zip(kv.keys, kv.values, kv.lengths, strict=True):
        for tensor in (key[:length], value[:length]) if length else ():
            tensors.append(pack_tensor(tensor, STORED[kv_dtype]))
            if kv_dtype != own:
                tensors[-1].unpack(tensor)
    return PackedKV(kv, kv_dtype, tensors)


def bytes_of(tensor: torch.Tensor) -> memoryview:
    """Return the memory of a contiguous CPU tensor; bfloat16 has no numpy type."""
    return tensor.reshape(-1).view(torch.uint8).numpy().data


def pack_tensor(tensor: torch.Tensor, stored: torch.dtype, *, axis: int = TOKENS) -> Packed:
    """Convert a tensor [n, heads, dim] to its stored form.

    `axis`: the axis whose entries share an int8 scale. Keys and values are stored with TOKENS,
    which was measured to lose least (docs/cache.md); DIM is for comparison.
    """
    if stored is SCALED:
        return _as_bytes(tensor.float(), axis)
    if stored is tensor.dtype:
        return Packed(tensor)
    # Numbers beyond half precision become its largest one, never infinity.
    most = torch.finfo(stored).max
    return Packed(tensor.float().clamp(-most, most).to(stored))


def _as_bytes(tensor: torch.Tensor, axis: int) -> Packed:
    high, low = tensor.amax(axis, keepdim=True), tensor.amin(axis, keepdim=True)
    scale, offset = (high - low) / (2 * _STEPS), (high + low) / 2
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    stored = tensor.sub(offset).div_(scale).round_().clamp_(-_STEPS, _STEPS).to(torch.int8)
    return Packed(stored, scale, offset)


# Writing a KV as an artifact.


ALIGN = 64
"""Alignment of tensors in bytes."""


def write(file: BinaryIO, identity: Json, packed: PackedKV, label: Json) -> None:
    """Write a KV with its identity to any binary file, front to back; raises OSError.

    The caller makes the bytes durable and visible.
    """
    parts, total = list(_parts(packed)), Checksum()
    for part in parts:
        total.update(bytes_of(part))
    record = canonical(_record(identity, packed, label) | {"checksum": str(total)})
    header: Json = {"__metadata__": {"sttm": record.decode(), "seal": seal_of(record)}}
    pairs = zip(packed.kv.lengths, packed.kv.keys, strict=True)
    shapes = [[length, *keys.shape[1:]] for length, keys in pairs]
    for place in layout(shapes, packed.kv_dtype, _stated(packed.kv)):
        header[place.name] = place.to_json()
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-(len(text) + 8) % ALIGN)
    _write_all(file, memoryview(len(text).to_bytes(8, "little") + text))
    for part in parts:
        _write_all(file, bytes_of(part))


def _record(identity: Json, packed: PackedKV, label: Json) -> Json:
    kv = packed.kv
    states = _stated(kv)
    more = {} if states is None else {"states": states.to_json()}
    return more | {
        "format": FORMAT if states is None else WITH_STATES,
        "identity": identity,
        "key": key_of(identity),
        "lengths": list(kv.lengths),
        "dtype": str(kv.keys[0].dtype).removeprefix("torch."),
        "kv_dtype": packed.kv_dtype,
        "merge_layer": kv.merge_layer,
        "next_positions": list(kv.next_positions),
        "tokens": asdict(kv.tokens),
        "grid": list(kv.grid),
        "sizes": None if kv.sizes is None else kv.sizes.tolist(),
        "facts": kv.facts,
        "label": label,
    }


def _stated(kv: PrefixKV) -> Stated | None:
    if not kv.states:
        return None
    layers = sorted(kv.states)
    conv, recurrent = kv.states[layers[0]]
    dtype = str(kv.keys[0].dtype).removeprefix("torch.")
    return Stated(layers, list(conv.shape), list(recurrent.shape), dtype)


def _parts(packed: PackedKV) -> Iterator[torch.Tensor]:
    """All tensors on the CPU, in the file's order."""
    scales = [part for tensor in packed.tensors for part in tensor.parts[:-1]]
    states = [state for _, state in sorted(packed.kv.states.items())]
    kept = [*(state.recurrent for state in states), *(state.conv for state in states)]
    for part in (*scales, *kept, *(tensor.stored for tensor in packed.tensors)):
        yield part.contiguous().cpu()


def _write_all(file: BinaryIO, data: memoryview) -> None:
    """Write everything: an unbuffered file accepts at most 2 GiB per call."""
    while data:
        data = data[file.write(data) :]
