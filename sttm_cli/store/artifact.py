"""The format of a stored KV: a safetensors file with a record and a checksum of its own;
docs/cache-format.md.

safetensors has no checksum, and a file shorter than its header states must not be read: the header
and all sizes are checked against the size of the file before any memory is allocated. Imports no
torch.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

from sttm_cli.base.types import Json, TokenCounts

# The identity of a KV, as its canonical spelling, as a key and as readable differences.


_SHOWN = 60


class Spelled(NamedTuple):
    """The canonical spelling of an identity, and its key: the spelling's blake3, 64 hex digits."""

    text: bytes
    key: str


def canonical(identity: Json) -> bytes:
    """Return the canonical spelling: sorted keys, no spaces, UTF-8, with escapes for characters
    that UTF-8 cannot encode but file names may contain.

    Raises ValueError for NaN and infinities, TypeError for values that are not JSON.
    """
    text = json.dumps(
        identity, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )
    # Python's escape for a lone surrogate is also JSON's.
    return text.encode(errors="backslashreplace")


def spell(identity: Json) -> Spelled:
    """Return an identity's canonical spelling and key; raises as `canonical`."""
    from blake3 import blake3

    text = canonical(identity)
    return Spelled(text, str(blake3(text).hexdigest()))


def key_of(identity: Json) -> str:
    """Return an identity's key; raises as `canonical`."""
    return spell(identity).key


def difference(wanted: Json, stored: Json) -> list[str]:
    """Return each leaf in which two identities differ, as "merge.budget: asked 0.3, stored 0.5"."""
    one, other = _leaves(wanted), _leaves(stored)
    return [
        f"{name}: asked {_short(one.get(name))}, stored {_short(other.get(name))}"
        for name in [*one, *(set(other) - set(one))]
        if one.get(name) != other.get(name) or type(one.get(name)) is not type(other.get(name))
    ]


def _leaves(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        return {prefix: value}
    leaves: dict[str, Any] = {}
    for name, part in value.items():
        leaves |= _leaves(part, f"{prefix}.{name}" if prefix else str(name))
    return leaves


def _short(value: Any) -> str:
    if value is None:
        return "none"
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 1]}…"


FORMAT = 3
"""Version of the file's layout; part of every identity, so that a file of another one is a miss."""
WITH_STATES = 4
"""The version of files with states of recurrent layers; others are as before."""

MOST_HEADER = 4 << 20
"""Maximum bytes of a header. One with 1,024 layers and scales, for a prefix of 200,000 tokens, is
half as long."""
MOST_LAYERS = 1024
"""Checked before the tensors of a header are laid out, since each costs memory and time."""
MOST_ROW = 1 << 16
"""Maximum numbers in one token's key: bounds the memory that a header can claim beyond its file."""
MOST_COUNT = 1 << 40
"""Bounds every token count and every position."""
FIRST_READ = 32 << 10
"""Bytes read at first for the header; most headers are shorter."""
CODES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16", "int8": "I8"}
"""safetensors' names of the stored types."""
SCALED = "int8"
"""The type that is stored with scales and offsets."""
_ITEM_BYTES = {"F32": 4, "BF16": 2, "F16": 2, "I8": 1}
_MALFORMED = (ValueError, KeyError, TypeError, RecursionError, AttributeError, IndexError)


class Damaged(Exception):
    """The bytes are not a usable artifact; the message gives the reason."""


class Blob(Protocol):
    """The bytes of a stored artifact, open for reading, wherever the store keeps them."""

    @property
    def size(self) -> int:
        """The number of bytes."""
        ...

    def read_into(self, target: memoryview, offset: int) -> int:
        """Read from `offset` into the front of `target`; return the number of bytes read, 0 at the
        end. Called from several threads at once. Raises OSError."""
        ...

    def close(self) -> None:
        """Release the resources; a second call does nothing."""
        ...


class Place(NamedTuple):
    """The place of a tensor in the file: name, type, shape, first byte, and last byte + 1, counted
    from the end of the header."""

    name: str
    code: str
    shape: list[int]
    begin: int
    end: int

    def to_json(self) -> Json:
        """Return the tensor's entry in a safetensors header."""
        return {"dtype": self.code, "shape": self.shape, "data_offsets": [self.begin, self.end]}


@dataclass(frozen=True)
class Header:
    """An artifact's own description, checked against its real size.

    `meta` is the whole record, of which other fields are parts. `dtype` and `kv_dtype` name the
    type that keys and values are restored to and the one they are stored as. `scales` are scale
    and offset of each tensor, empty where there are none; `states` those of the recurrent layers,
    all `recurrent` first, then all `conv`; `tensors` are layer 0 key, layer 0 value, layer 1 key,
    ..., without layers that have states. They follow each other from byte `start` to byte `end`.
    `saved_bytes`: how many fewer bytes they take than as they are restored.
    """

    meta: Json
    key: str
    identity: Json
    tokens: TokenCounts
    dtype: str
    kv_dtype: str
    scales: list[Place]
    states: list[Place]
    tensors: list[Place]
    start: int
    end: int
    saved_bytes: int


B = TypeVar("B", bound=Blob)
B_co = TypeVar("B_co", bound=Blob, covariant=True)


class Artifact(NamedTuple, Generic[B_co]):
    """An open artifact with a checked header."""

    blob: B_co
    header: Header


def open_artifact(blob: B, wanted: Spelled | None = None) -> Artifact[B]:
    """Read and check everything but the tensor bytes; on Damaged or OSError, the blob is closed.
    With `wanted`, the full stored identity must equal it."""
    try:
        return Artifact(blob, read_header(blob, wanted))
    except BaseException:
        blob.close()
        raise


def read_header(blob: Blob, wanted: Spelled | None = None) -> Header:
    """Like `open_artifact`, but never closes the blob."""
    size = blob.size
    first = _read(blob, 0, min(size, FIRST_READ))
    length = int.from_bytes(first[:8], "little")
    if not 2 <= length <= min(MOST_HEADER, size - 8):
        raise Damaged(f"its header cannot be {length} bytes long")
    start = 8 + length
    text = first[8:start] + _read(blob, len(first), max(0, start - len(first)))
    try:
        header = json.loads(text)
        meta = _record(header.pop("__metadata__"))
        _check_meta(meta, wanted)
        return _check_tensors(header, meta, start, size)
    except _MALFORMED as error:
        raise Damaged(f"its header is damaged ({type(error).__name__})") from error


def fill(blob: Blob, target: memoryview, offset: int) -> None:
    """Fill `target` with the bytes from `offset` on; raises Damaged if the file ends too early."""
    done = 0
    while done < len(target):
        count = blob.read_into(target[done:], offset + done)
        if not count:
            raise Damaged("it ends before its tensors do")
        done += count


class Stated(NamedTuple):
    """The states in a file: the `layers` that have them, and their shapes and types."""

    layers: list[int]
    conv: list[int]
    recurrent: list[int]
    dtype: str

    def to_json(self) -> Json:
        """As the record has it; `conv` is of the type that keys and values are restored to."""
        return {"layers": self.layers, "conv": self.conv, "recurrent": self.recurrent}


def layout(shapes: Sequence[list[int]], kv_dtype: str, states: Stated | None = None) -> list[Place]:
    """All tensors in the order in which they are read: scales and offsets first, as float32,
    so that whatever follows can be turned into numbers at once; states, never rounded, next.
    `shapes`: [length, heads, dim] of each layer's key, and of its value; layers with states have
    the length 0 and no tensors of these."""
    named = [
        (f"layers.{layer}.{name}", shape)
        for layer, shape in enumerate(shapes)
        for name in ("key", "value")
        if shape[0]
    ]
    wanted = _state_places(states) + [(name, CODES[kv_dtype], shape) for name, shape in named]
    if kv_dtype == SCALED:
        wanted = [
            (f"{name}.{part}", CODES["float32"], [1, *shape[1:]])
            for name, shape in named
            for part in ("scale", "offset")
        ] + wanted
    places, begin = list[Place](), 0
    for name, code, shape in wanted:
        end = begin + prod(shape) * _ITEM_BYTES[code]
        places.append(Place(name=name, code=code, shape=shape, begin=begin, end=end))
        begin = end
    return places


def _state_places(states: Stated | None) -> list[tuple[str, str, list[int]]]:
    if states is None:
        return []
    kinds = {
        "recurrent": (CODES["float32"], states.recurrent),
        "conv": (CODES[states.dtype], states.conv),
    }
    return [
        (f"layers.{layer}.{name}", code, list(shape))
        for name, (code, shape) in kinds.items()
        for layer in states.layers
    ]


class Checksum:
    """blake3 of all tensor bytes in file order: call `update` with each piece, then `str`."""

    def __init__(self) -> None:
        from blake3 import blake3

        self._total = blake3(max_threads=blake3.AUTO)
        self.update = self._total.update

    def __str__(self) -> str:
        return f"blake3:{self._total.hexdigest()}"


def seal_of(record: bytes) -> str:
    """Return the checksum of the record."""
    from blake3 import blake3

    return f"blake3:{blake3(record).hexdigest()}"


def check_label(label: Json) -> None:
    """Raise Damaged unless the label is a JSON object of plain values."""
    plain = (str, int, float, type(None))
    if not isinstance(label, dict) or not all(isinstance(v, plain) for v in label.values()):
        raise Damaged("its label is damaged")


def check_counts(counts: TokenCounts) -> None:
    """Raise Damaged unless the counts are possible."""
    numbers = [counts.video_full, counts.video_kept, counts.prefix]
    # Tested for None: an empty or False value must be checked.
    numbers += [] if counts.after_spatial is None else [counts.after_spatial]
    thresholds = [counts.spatial_threshold, counts.temporal_threshold]
    whole = all(type(n) is int and 0 <= n < MOST_COUNT for n in numbers)
    if not whole or not counts.video_full:
        raise Damaged("its token counts are damaged")
    if not all(t is None or (type(t) in (int, float) and abs(t) < MOST_COUNT) for t in thresholds):
        raise Damaged("its thresholds are damaged")


def _read(blob: Blob, offset: int, count: int) -> bytes:
    data = bytearray(count)
    fill(blob, memoryview(data), offset)
    return bytes(data)


def _record(metadata: Json) -> Json:
    record = metadata["sttm"].encode()
    if metadata["seal"] != seal_of(record):
        raise Damaged("its record does not match its checksum")
    meta: Json = json.loads(record)
    return meta


def _check_meta(meta: Json, wanted: Spelled | None) -> None:
    version = meta["format"]
    if type(version) is not int or version not in (FORMAT, WITH_STATES):
        raise Damaged(f"its format is {version!r}, not {FORMAT} or {WITH_STATES}")
    stored = spell(meta["identity"])
    if stored.key != meta["key"]:
        raise Damaged("its key is not that of its identity")
    if wanted is not None and stored.text != wanted.text:
        raise Damaged("it has another identity")
    if not 1 <= len(meta["lengths"]) <= MOST_LAYERS:
        raise Damaged(f"it cannot have {len(meta['lengths']):,} layers")
    if len(meta["next_positions"]) != 2 or len(meta["grid"]) != 3:
        raise Damaged("its lengths are damaged")
    numbers = [*meta["lengths"], *meta["next_positions"], *meta["grid"], meta["merge_layer"]]
    if not all(type(n) is int and 0 <= n < MOST_COUNT for n in numbers):
        raise Damaged("its lengths are damaged")
    if (version == WITH_STATES) is not ("states" in meta):
        raise Damaged("its states are not those of its format")
    states = meta["states"] if version == WITH_STATES else {"layers": []}
    _check_states(states, meta["lengths"])
    # Layers with a window hold the last of the merged tokens only.
    _check_sizes(meta["sizes"], max(meta["lengths"][meta["merge_layer"] :], default=0))
    if not isinstance(meta["facts"], dict) or not isinstance(meta["identity"], dict):
        raise Damaged("its record is damaged")
    check_label(meta["label"])


def _check_states(states: Json, lengths: list[int]) -> None:
    """A layer has either tokens or states, and one at least has tokens."""
    without = [layer for layer, length in enumerate(lengths) if not length]
    if states["layers"] != without or len(without) == len(lengths):
        raise Damaged("its lengths are damaged")
    if any(type(layer) is not int for layer in states["layers"]):
        raise Damaged("its states are damaged")
    for name, axes in (("conv", 2), ("recurrent", 3)) if without else ():
        shape = states[name]
        whole = isinstance(shape, list) and all(
            type(n) is int and 0 < n < MOST_COUNT for n in shape
        )
        if not whole or len(shape) != axes:
            raise Damaged("its states are damaged")


def _check_sizes(sizes: Any, length: int) -> None:
    if sizes is None:
        return
    whole = isinstance(sizes, list) and all(type(n) is int and 0 < n < MOST_COUNT for n in sizes)
    if not whole or len(sizes) != length:
        raise Damaged("its sizes are damaged")


def _shape(header: Json, layer: int, length: int) -> list[int]:
    """[length, heads, dim] of a layer's key, as the header states it; zeros without tokens."""
    if not length:
        return [0, 0, 0]
    heads, dim = header[f"layers.{layer}.key"]["shape"][1:]
    if not (type(heads) is int and type(dim) is int and 0 < heads * dim <= MOST_ROW and heads > 0):
        raise Damaged("its tensors' shapes are damaged")
    return [length, heads, dim]


def _check_tensors(header: Json, meta: Json, start: int, size: int) -> Header:
    lengths, dtype, kv_dtype = meta["lengths"], meta["dtype"], meta["kv_dtype"]
    shapes = [_shape(header, layer, length) for layer, length in enumerate(lengths)]
    if dtype not in CODES or dtype == SCALED:
        raise Damaged("its numbers are of an unknown type")
    states = None
    if meta["format"] == WITH_STATES:
        states = Stated(**meta["states"], dtype=dtype)
    places = layout(shapes, kv_dtype, states)
    if list(header) != [place.name for place in places]:
        raise Damaged("its tensors are not those of its layers")
    for place in places:
        if header[place.name] != place.to_json():
            raise Damaged(f"tensor {place.name} has another place or shape than it should")
    end = start + places[-1].end
    if end != size:
        raise Damaged(f"it is {size} bytes long instead of {end}")
    tokens, count = TokenCounts(**meta["tokens"]), 2 * sum(length > 0 for length in lengths)
    check_counts(tokens)
    scales = 2 * count if kv_dtype == SCALED else 0
    stated = sum(place.end - place.begin for place in places[scales:-count])
    restored = 2 * sum(map(prod, shapes)) * _ITEM_BYTES[CODES[dtype]] + stated
    return Header(
        meta=meta,
        key=meta["key"],
        identity=meta["identity"],
        tokens=tokens,
        dtype=dtype,
        kv_dtype=kv_dtype,
        scales=places[:scales],
        states=places[scales:-count],
        tensors=places[-count:],
        start=start,
        end=end,
        saved_bytes=restored - places[-1].end,
    )
