"""From a KV to the bytes of an artifact."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from typing import BinaryIO

import torch

from sttm_cli.base.types import Json
from sttm_cli.store.artifact import FORMAT, Checksum, layout, seal_of
from sttm_cli.store.identity import canonical, key_of
from sttm_cli.store.packing import PackedKV, bytes_of

ALIGN = 64
"""Tensors begin at a multiple of so many bytes."""


def write(file: BinaryIO, identity: Json, packed: PackedKV, label: Json) -> None:
    """Write a KV with its identity to any binary file, front to back; raises OSError.

    The caller makes the bytes durable and visible.
    """
    parts, total = list(_parts(packed)), Checksum()
    for part in parts:
        total.update(bytes_of(part))
    record = canonical(_record(identity, packed, label) | {"checksum": str(total)})
    header: Json = {"__metadata__": {"sttm": record.decode(), "seal": seal_of(record)}}
    _, heads, dim = packed.kv.keys[0].shape
    for place in layout(list(packed.kv.lengths), heads, dim, packed.kv_dtype):
        header[place.name] = place.to_json()
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-(len(text) + 8) % ALIGN)
    _write_all(file, memoryview(len(text).to_bytes(8, "little") + text))
    for part in parts:
        _write_all(file, bytes_of(part))


def _record(identity: Json, packed: PackedKV, label: Json) -> Json:
    kv = packed.kv
    return {
        "format": FORMAT,
        "identity": identity,
        "key": key_of(identity),
        "lengths": list(kv.lengths),
        "dtype": str(kv.keys[0].dtype).removeprefix("torch."),
        "kv_dtype": packed.kv_dtype,
        "merge_layer": kv.merge_layer,
        "next_positions": list(kv.next_positions),
        "tokens": asdict(kv.tokens),
        "grid": list(kv.grid),
        "facts": kv.facts,
        "label": label,
    }


def _parts(packed: PackedKV) -> Iterator[torch.Tensor]:
    """All tensors on the CPU, in the file's order."""
    scales = [part for tensor in packed.tensors for part in tensor.parts[:-1]]
    for part in (*scales, *(tensor.stored for tensor in packed.tensors)):
        yield part.contiguous().cpu()


def _write_all(file: BinaryIO, data: memoryview) -> None:
    """An unbuffered file takes 2 GiB at most in one call."""
    while data:
        data = data[file.write(data) :]
