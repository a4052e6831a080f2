"""One stored KV as one safetensors file, its own checksum inside; docs/cache-format.md.

safetensors has no checksum, and a KV half as long as its header says must not be read, so header
and sizes are checked here against the file before a byte of memory is taken.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

import torch

from sttm_cli.store.identity import canonical, key_of
from sttm_cli.types import Json, PrefixKV, TokenCounts

FORMAT = 1
"""Version of the file's layout; part of every identity."""

MOST_HEADER = 16 << 20
MOST_ROW = 1 << 16
"""Numbers in one token's key: bounds the memory that a header can ask for beyond its file."""
ALIGN = 64
DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}


class Damaged(Exception):
    """The file is not an artifact that may be used; the message says why."""


@dataclass(frozen=True)
class Header:
    """What an artifact says of itself, checked against the file's real size.

    `meta` is the project's own record; tensors lie one after another from byte `start` on, in
    the order layer 0 key, layer 0 value, layer 1 key, ...
    """

    meta: Json
    start: int
    dtype: torch.dtype
    kv_heads: int
    head_dim: int

    @property
    def lengths(self) -> list[int]:
        return list(self.meta["lengths"])

    @property
    def tokens(self) -> TokenCounts:
        return TokenCounts(**self.meta["tokens"])


def write(file: IO[bytes], identity: Json, kv: PrefixKV, label: Json) -> None:
    """Write `kv` with its identity; the caller owns fsync and rename."""
    parts = list(_parts(kv))
    meta = {
        "format": FORMAT,
        "identity": identity,
        "key": key_of(identity),
        "lengths": list(kv.lengths),
        "merge_layer": kv.merge_layer,
        "next_positions": list(kv.next_positions),
        "tokens": asdict(kv.tokens),
        "grid": list(kv.grid),
        "facts": kv.facts,
        "label": label,
        "checksum": "blake3:" + _checksum(part for _, part in parts),
    }
    record = canonical(meta)
    header: Json = {"__metadata__": {"sttm": record.decode(), "seal": _seal(record)}}
    offset = 0
    for name, part in parts:
        size = part.numel() * part.element_size()
        header[name] = {
            "dtype": _NAMES[part.dtype],
            "shape": list(part.shape),
            "data_offsets": [offset, offset + size],
        }
        offset += size
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-(len(text) + 8) % ALIGN)
    file.write(len(text).to_bytes(8, "little") + text)
    for _, part in parts:
        file.write(_bytes(part))


def open_artifact(path: Path) -> IO[bytes]:
    """Open for reading; a symbolic link is refused. Raises OSError."""
    descriptor = os.open(
        path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
    )
    # Unbuffered: tensors are read in one piece straight into their place.
    return os.fdopen(descriptor, "rb", buffering=0)


def read_header(file: IO[bytes], identity: Json | None = None) -> Header:
    """Read and check everything but the tensors' bytes; raises Damaged.

    With `identity`, the stored one must be equal to it in full.
    """
    size = os.fstat(file.fileno()).st_size
    try:
        length = int.from_bytes(_exactly(file, 8), "little")
        if not 2 <= length <= min(MOST_HEADER, size - 8):
            raise Damaged(f"its header cannot be {length} bytes long")
        header = json.loads(_exactly(file, length))
        record = header["__metadata__"]["sttm"].encode()
        if header["__metadata__"]["seal"] != _seal(record):
            raise Damaged("its record does not have its checksum")
        meta = json.loads(record)
        _check_meta(meta, identity)
        return _check_tensors(header, meta, 8 + length, size)
    except (ValueError, KeyError, TypeError, RecursionError, AttributeError, IndexError) as error:
        raise Damaged(f"its header is damaged ({type(error).__name__})") from error


def read_tensors(
    file: IO[bytes], header: Header, *, device: str | Sequence[str], room: int
) -> PrefixKV:
    """Read keys and values into buffers with `room` free rows behind them.

    One read per tensor, straight into its buffer on the CPU; for a GPU through pinned memory,
    the copy of one tensor running beside the read of the next. Raises Damaged where the file
    ends early; the checksum is `verify`'s.
    """
    file.seek(header.start)
    buffers = []
    devices = [device] * len(header.lengths) if isinstance(device, str) else device
    if len(devices) != len(header.lengths):
        raise Damaged(f"it has {len(header.lengths)} layers, the model {len(devices)}")
    for length, place in zip(header.lengths, devices, strict=True):
        for _ in range(2):
            buffers.append(_read_one(file, header, length, place, room))
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    meta = header.meta
    return PrefixKV(
        keys=buffers[::2],
        values=buffers[1::2],
        lengths=tuple(header.lengths),
        merge_layer=meta["merge_layer"],
        next_positions=(meta["next_positions"][0], meta["next_positions"][1]),
        tokens=header.tokens,
        grid=(meta["grid"][0], meta["grid"][1], meta["grid"][2]),
        facts=meta["facts"],
    )


def verify(kv: PrefixKV, header: Header) -> None:
    """Raise Damaged unless the tensors' bytes have the checksum that the header states."""
    if "blake3:" + _checksum(part for _, part in _parts(kv)) != header.meta["checksum"]:
        raise Damaged("its checksum does not match")


def _read_one(file: IO[bytes], header: Header, length: int, device: str, room: int) -> torch.Tensor:
    shape = (length + room, header.kv_heads, header.head_dim)
    on_cpu = device == "cpu"
    target = torch.empty(shape, dtype=header.dtype, device=device)
    place = target if on_cpu else _staging(length, header)
    view = memoryview(_bytes(place[:length]))
    done = 0
    while done < len(view):
        count = file.readinto(view[done:])  # type: ignore[attr-defined]
        if not count:
            raise Damaged("it ends before its tensors do")
        done += count
    if not on_cpu:
        target[:length].copy_(place, non_blocking=True)
    return target


def _staging(length: int, header: Header) -> torch.Tensor:
    return torch.empty(
        (length, header.kv_heads, header.head_dim),
        dtype=header.dtype,
        pin_memory=torch.cuda.is_available(),
    )


def _check_meta(meta: Json, identity: Json | None) -> None:
    if meta["format"] != FORMAT:
        raise Damaged(f"its format is {meta['format']!r}, not {FORMAT}")
    if key_of(meta["identity"]) != meta["key"]:
        raise Damaged("its key is not that of its identity")
    if identity is not None and canonical(meta["identity"]) != canonical(identity):
        raise Damaged("its identity is another's")
    numbers = [*meta["lengths"], *meta["next_positions"], *meta["grid"], meta["merge_layer"]]
    if not all(type(n) is int and 0 <= n < 2**40 for n in numbers):
        raise Damaged("its lengths are damaged")
    shapes = len(meta["next_positions"]) == 2 and len(meta["grid"]) == 3
    if not shapes or not meta["lengths"] or min(meta["lengths"]) < 1:
        raise Damaged("its lengths are damaged")
    facts, counts = meta["facts"], TokenCounts(**meta["tokens"])
    if not isinstance(facts, dict) or not isinstance(meta["label"], dict):
        raise Damaged("its record is damaged")
    _check_counts(counts)
    if not all(
        isinstance(value, (str, int, float, type(None))) for value in meta["label"].values()
    ):
        raise Damaged("its label is damaged")


def _check_counts(counts: TokenCounts) -> None:
    numbers = [counts.video_full, counts.video_kept, counts.prefix, counts.after_spatial or 0]
    thresholds = [counts.spatial_threshold, counts.temporal_threshold]
    if not all(type(n) is int and n >= 0 for n in numbers) or not counts.video_full:
        raise Damaged("its token counts are damaged")
    if not all(value is None or isinstance(value, (int, float)) for value in thresholds):
        raise Damaged("its thresholds are damaged")


def _check_tensors(header: Json, meta: Json, start: int, size: int) -> Header:
    names = [name for name in header if name != "__metadata__"]
    wanted = [name for i in range(len(meta["lengths"])) for name in _pair(i)]
    if names != wanted:
        raise Damaged("its tensors are not those of its layers")
    first = header[wanted[0]]
    heads, dim = first["shape"][1:]
    dtype, offset = DTYPES[first["dtype"]], 0
    for name, length in zip(wanted, [n for n in meta["lengths"] for _ in range(2)], strict=True):
        end = offset + length * heads * dim * dtype.itemsize
        entry = {
            "dtype": first["dtype"],
            "shape": [length, heads, dim],
            "data_offsets": [offset, end],
        }
        if header[name] != entry:
            raise Damaged(f"tensor {name} has another place or shape than it should")
        offset = end
    if not (type(heads) is int and type(dim) is int and 0 < heads * dim <= MOST_ROW and heads > 0):
        raise Damaged("its tensors' shapes are damaged")
    if start + offset != size:
        raise Damaged(f"it is {size} bytes long, its header says {start + offset}")
    return Header(meta, start, dtype, heads, dim)


def _pair(layer: int) -> tuple[str, str]:
    return f"layers.{layer}.key", f"layers.{layer}.value"


def _parts(kv: PrefixKV) -> Iterator[tuple[str, torch.Tensor]]:
    """Names and tensors [length, kv_heads, head_dim] on the CPU, in the file's order."""
    for layer, (key, value, length) in enumerate(zip(kv.keys, kv.values, kv.lengths, strict=True)):
        for name, tensor in zip(_pair(layer), (key, value), strict=True):
            yield name, tensor[:length].contiguous().cpu()


def _bytes(tensor: torch.Tensor) -> Any:
    """The tensor's own memory as a flat array of bytes; bfloat16 has no numpy type."""
    return tensor.reshape(-1).view(torch.uint8).numpy()


def _checksum(parts: Iterator[torch.Tensor]) -> str:
    from blake3 import blake3

    total = blake3(max_threads=blake3.AUTO)
    for part in parts:
        total.update(_bytes(part))
    return str(total.hexdigest())


def _seal(record: bytes) -> str:
    from blake3 import blake3

    return f"blake3:{blake3(record).hexdigest()}"


def _exactly(file: IO[bytes], count: int) -> bytes:
    data = b""
    while len(data) < count:
        piece = file.read(count - len(data))
        if not piece:
            raise Damaged("it ends inside its header")
        data += piece
    return data
