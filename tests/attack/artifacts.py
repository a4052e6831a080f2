"""Mutated artifacts, sealed anew or not: the answer is always the cold one, and what is stored can
be listed and verified."""

from __future__ import annotations

import json
import random
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from sttm_cli.store import LocalStore
from sttm_cli.store.artifact import seal_of
from tests.attack.asking import Tried, quiet
from tests.attack.stored import store
from tests.checkpoints_qwen import qwen_vl

LONGEST_LISTING_S = 10.0
"""For one small entry, on a machine that does other work as well."""
NUMBERS = (0, 1, -1, 2**16, 2**31, 2**40, 2**63, 1e30, None, "x", [], {}, True)
STRUCTURE = (
    "format", "key", "identity", "dtype", "kv_dtype", "lengths", "merge_layer", "grid", "tokens",
    "label", "checksum", "states",
)  # fmt: skip
"""Parts of the record that a reader must check against something else. Whoever can seal a whole
record anew can store any KV: the folder's owner alone writes it (docs/security.md)."""


def attack(rng: random.Random, folder: Path) -> Iterator[Tried]:
    """One KV of keys and values alone, and one with the states of recurrent layers."""
    recurrent = qwen_vl(folder / "model", "qwen3_5", pixels=(256, 2 * 80 * 112))
    (folder / "states").mkdir()
    both = [store(folder), store(folder / "states", "--model", recurrent)]
    while True:
        stored = rng.choice(both)
        (artifact,) = stored.cache.glob("kv/*/*")
        data = artifact.read_bytes()
        name, mutate = rng.choice(list(MUTATIONS.items()))
        seed = rng.randrange(1 << 32)
        changed = mutate(data, random.Random(seed))
        # In a folder of its own: a listing changes the index.
        problem = ""
        for ends in (listing, stored.problem):
            cache = stored.fresh()
            (cache / artifact.relative_to(stored.cache)).write_bytes(changed)
            problem = problem or ends(cache)
        yield Tried(f"{name} ({seed})", problem)


def listing(cache: Path) -> str:
    """The reason why `sttm cache ls` and `verify` fail with this cache; "" where they do not."""
    started = time.monotonic()
    try:
        with LocalStore(cache, warn=quiet) as store:
            store.entries()
            count, findings = store.verify()
    except Exception:
        return traceback.format_exc()
    seconds = time.monotonic() - started
    if seconds > LONGEST_LISTING_S:
        return f"listed and verified in {seconds:.0f} s"
    return "" if len(findings) <= count == 1 else f"{count} entries, {len(findings)} findings"


def _flipped(data: bytes, rng: random.Random) -> bytes:
    changed = bytearray(data)
    end = rng.choice([8, 8 + int.from_bytes(data[:8], "little"), len(data)])
    for _ in range(rng.randrange(1, 5)):
        changed[rng.randrange(end)] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _cut(data: bytes, rng: random.Random) -> bytes:
    return data[: rng.randrange(len(data))]


def _longer(data: bytes, rng: random.Random) -> bytes:
    at = rng.choice([rng.randrange(len(data)), len(data)])
    return data[:at] + rng.randbytes(rng.randrange(1, 4096)) + data[at:]


def _header_length(data: bytes, rng: random.Random) -> bytes:
    length = rng.choice([0, 1, 2**16, 2**31, 2**63, 2**64 - 1, rng.getrandbits(24)])
    return length.to_bytes(8, "little") + data[8:]


def _tensors_exchanged(data: bytes, rng: random.Random) -> bytes:
    start = 8 + int.from_bytes(data[:8], "little")
    at = rng.randrange(start + 1, len(data))
    return data[:start] + data[at:] + data[start:at]


def _header_value(data: bytes, rng: random.Random) -> bytes:
    """One value of safetensors' own header replaced."""
    header, body = _split(data)
    tensor = header[rng.choice([name for name in header if name != "__metadata__"])]
    field = rng.choice(list(tensor))
    tensor[field] = rng.choice((*NUMBERS, "F16", [1, 2, 3], [0, 2**60]))
    return _joined(header, body)


def _sealed_anew(data: bytes, rng: random.Random) -> bytes:
    """One part of the record replaced, and the record sealed as its writer would."""
    header, body = _split(data)
    record = json.loads(header["__metadata__"]["sttm"])
    part = rng.choice([name for name in STRUCTURE if name in record])
    record[part] = _replaced(record[part], rng)
    text = json.dumps(record, separators=(",", ":"))
    header["__metadata__"] |= {"sttm": text, "seal": seal_of(text.encode())}
    return _joined(header, body)


def _replaced(value: Any, rng: random.Random) -> Any:
    if isinstance(value, dict) and value and rng.random() < 0.8:
        name = rng.choice(list(value))
        return {**value, name: _replaced(value[name], rng)}
    if isinstance(value, list) and value and rng.random() < 0.8:
        at = rng.randrange(len(value))
        return [*value[:at], _replaced(value[at], rng), *value[at + 1 :]]
    return rng.choice([other for other in NUMBERS if other != value])


def _split(data: bytes) -> tuple[dict[str, Any], bytes]:
    start = 8 + int.from_bytes(data[:8], "little")
    return json.loads(data[8:start]), data[start:]


def _joined(header: dict[str, Any], body: bytes) -> bytes:
    text = json.dumps(header, separators=(",", ":")).encode()
    return len(text).to_bytes(8, "little") + text + body


MUTATIONS: dict[str, Callable[[bytes, random.Random], bytes]] = {
    "bits": _flipped,
    "cut off": _cut,
    "longer": _longer,
    "length of the header": _header_length,
    "tensors exchanged": _tensors_exchanged,
    "a value of the header": _header_value,
    "a record sealed anew": _sealed_anew,
}
