"""Malformed checkpoints: every field of every JSON file replaced, files cut, templates that never
end, weights that are not numbers."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

GROUP = "checkpoints"
TINY = Path(__file__).parents[2] / "sttm_cli" / "tiny" / "checkpoint"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
SHARD = "model-00001-of-00001.safetensors"
MISSING = object()
VALUES: dict[str, Any] = {
    "null": None,
    "list": [],
    "list of lists": [[1, [2]]],
    "text": "x",
    "empty text": "",
    "object": {"a": {"b": [1]}},
    "true": True,
    "zero": 0,
    "negative": -3,
    "fraction": 2.5,
    "huge": 10**12,
    "beyond 64 bits": 10**30,
    "nan": float("nan"),
    "missing": MISSING,
}
TEMPLATES = {
    "never ends": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "one long text": "{{ 'x' * 10 ** 9 }}",
    "doubles": (
        "{% set ns = namespace(x='x') %}{% for i in range(99) %}{% set ns.x = ns.x ~ ns.x %}"
        "{% endfor %}{{ ns.x }}"
    ),
    "long format": "{{ '%999999999d' % 1 }}",
    "long number": "{{ 9 ** (9 ** 9) }}",
    "raises": "{{ raise_exception('no') }}",
    "divides by zero": "{{ 1 / 0 }}",
    "recursion": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "does not parse": "{% for",
    "unknown filter": "{{ messages | nothing }}",
    "private names": "{{ messages.__class__.__mro__[1].__subclasses__() }}",
    "empty": "",
    "without a video": "{% for m in messages %}{{ m.role }}{% endfor %}",
    "only a video": "<video>",
    "many videos": "{{ '<video>' * 1000 }}",
    "deeply nested": "{% if 1 %}" * 3000,
}
SHARDS = {
    "absolute": "/etc/hosts.safetensors",
    "above": "../model.safetensors",
    "above from below": "w/../../model.safetensors",
    "a pickle": "pytorch_model.bin",
    "of Windows": "C:\\model.safetensors",
    "with a zero byte": "a\0.safetensors",
    "not text": "\ud800.safetensors",
    "empty": "",
    "a folder": ".",
    "very long": "x" * 5000 + ".safetensors",
    "missing": "w/none.safetensors",
}


@dataclass(frozen=True)
class Case:
    """A malformed checkpoint: `write` makes its folder, which must not exist."""

    name: str
    write: Callable[[Path], None]


def cases(seed: int) -> Iterator[Case]:
    """Every case, in an order that follows from `seed`."""
    every = [*_fields(), *_whole_files(), *_templates(), *_shards(), *_weights()]
    random.Random(seed).shuffle(every)
    yield from every


def _fields() -> Iterator[Case]:
    for path in sorted(TINY.glob("*.json")):
        for place in _places(json.loads(path.read_text(encoding="utf-8"))):
            for kind, value in VALUES.items():
                name = f"{path.name}: {'.'.join(place)}: {kind}"
                yield Case(name, partial(_with_field, path.name, place, value))
    for field in ("weight_map", "metadata"):
        for kind, value in VALUES.items():
            yield Case(f"{INDEX}: {field}: {kind}", partial(_with_field, INDEX, (field,), value))


def _places(value: dict[str, Any], above: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The fields of an object, and those of the objects in it."""
    for key, inner in value.items():
        yield (*above, key)
        if isinstance(inner, dict) and len(inner) < 40:
            yield from _places(inner, (*above, key))


def _with_field(file: str, place: tuple[str, ...], value: Any, folder: Path) -> None:
    _copy(folder, sharded=file == INDEX)
    content = json.loads((folder / file).read_text(encoding="utf-8"))
    *above, last = place
    inside = content
    for key in above:
        inside = inside[key]
    if value is MISSING:
        del inside[last]
    else:
        inside[last] = value
    (folder / file).write_text(json.dumps(content), encoding="utf-8")


def _whole_files() -> Iterator[Case]:
    contents = {
        "empty": b"",
        "null": b"null",
        "a list": b"[[]]",
        "a number": b"1e999",
        "not JSON": b"{'a': 1}",
        "not text": b"\xff\xfe\x00",
        "deeply nested": b'{"a":' * 200_000,
        "a long number": b'{"model_type": ' + b"9" * 5000 + b"}",
        "an object": b"{}",
    }
    for file in [*sorted(path.name for path in TINY.glob("*.json")), INDEX]:
        for kind, content in contents.items():
            yield Case(f"{file}: {kind}", partial(_with_content, file, content))
        yield Case(f"{file}: a folder", partial(_with_folder, file))
        yield Case(f"{file}: missing", partial(_without, file))
        for part in (0.2, 0.5, 0.99):
            yield Case(f"{file}: the first {part:.0%}", partial(_cut, file, part))


def _templates() -> Iterator[Case]:
    for kind, text in TEMPLATES.items():
        yield Case(
            f"template: {kind}", partial(_with_content, "chat_template.jinja", text.encode())
        )
    yield Case("template: not text", partial(_with_content, "chat_template.jinja", b"\xff\xfe"))
    yield Case("template: missing", partial(_without, "chat_template.jinja"))


def _shards() -> Iterator[Case]:
    for kind, name in SHARDS.items():
        changed = dict.fromkeys(["lm_head.weight"], name)
        yield Case(f"shard: {kind}", partial(_with_field, INDEX, ("weight_map",), changed))


def _weights() -> Iterator[Case]:
    whole = (TINY / WEIGHTS).read_bytes()
    length = int.from_bytes(whole[:8], "little")
    header = json.loads(whole[8 : 8 + length])
    first = next(name for name in header if name != "__metadata__")
    rows: dict[str, Any] = {
        "shape: negative": {"shape": [-1, 4]},
        "shape: huge": {"shape": [10**9, 10**9]},
        "shape: text": {"shape": "x"},
        "shape: nested": {"shape": [[1]]},
        "shape: null": {"shape": None},
        "dtype: unknown": {"dtype": "F7"},
        "dtype: null": {"dtype": None},
        "offsets: beyond the end": {"data_offsets": [0, 10**12]},
        "offsets: backward": {"data_offsets": [8, 0]},
        "offsets: text": {"data_offsets": "x"},
    }
    for kind, row in rows.items():
        changed = json.dumps({**header, first: {**header[first], **row}}).encode()
        yield Case(f"weights: {kind}", partial(_with_content, WEIGHTS, _safetensors(changed)))
    for kind, text in {
        "list": b"[]",
        "not JSON": b"{",
        "empty": b"",
        "nested": b"[" * 9999,
    }.items():
        yield Case(f"weights: header: {kind}", partial(_with_content, WEIGHTS, _safetensors(text)))
    for part in (0, 4, 8, length // 2, length + 8, len(whole) // 2, len(whole) - 1):
        yield Case(f"weights: the first {part}", partial(_with_content, WEIGHTS, whole[:part]))
    renamed = whole[8 : 8 + length].replace(first.encode(), b"x" * len(first))
    swapped = whole[:8] + renamed + whole[8 + length :]
    yield Case("weights: one of another name", partial(_with_content, WEIGHTS, swapped))
    for kind, number in {"nan": float("nan"), "infinite": float("inf"), "zero": 0.0}.items():
        yield Case(f"weights: all {kind}", partial(_filled, number))
    yield Case("weights: noise", partial(_with_content, WEIGHTS, os.urandom(4096)))


def _safetensors(header: bytes) -> bytes:
    return len(header).to_bytes(8, "little") + header + bytes(4096)


def _copy(folder: Path, *, sharded: bool = False) -> None:
    shutil.copytree(TINY, folder)
    if sharded:
        (folder / WEIGHTS).rename(folder / SHARD)
        with (folder / SHARD).open("rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        names = [name for name in header if name != "__metadata__"]
        index = {"metadata": {"total_size": 0}, "weight_map": dict.fromkeys(names, SHARD)}
        (folder / INDEX).write_text(json.dumps(index), encoding="utf-8")


def _with_content(file: str, content: bytes, folder: Path) -> None:
    _copy(folder, sharded=file == INDEX)
    (folder / file).write_bytes(content)


def _with_folder(file: str, folder: Path) -> None:
    _without(file, folder)
    (folder / file).mkdir()


def _without(file: str, folder: Path) -> None:
    _copy(folder, sharded=file == INDEX)
    (folder / file).unlink()


def _cut(file: str, part: float, folder: Path) -> None:
    _copy(folder, sharded=file == INDEX)
    whole = (folder / file).read_bytes()
    (folder / file).write_bytes(whole[: int(len(whole) * part)])


def _filled(number: float, folder: Path) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    _copy(folder)
    weights = load_file(folder / WEIGHTS)
    filled = {name: torch.full_like(tensor, number) for name, tensor in weights.items()}
    save_file(filled, folder / WEIGHTS, metadata={"format": "pt"})
