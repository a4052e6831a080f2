"""Every file that is loaded is fingerprinted, wherever it is; no file outside the folder is."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from sttm_cli.base.errors import ModelError
from sttm_cli.models.checkpoint import (
    CHECKED,
    Checkpoint,
    check_unchanged,
    find_checkpoint,
    model_files,
)
from sttm_cli.models.loading import Placement, weight_bytes
from sttm_cli.models.registry import TINY, load
from tests.checkpoints_internvl import internvl
from tests.checkpoints_llava import llava_video
from tests.fakes import DictMemo
from tests.models.conftest import HERE

INDEX = "model.safetensors.index.json"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
OPENED = """
import json, os, sys
from pathlib import Path
from sttm_cli.models.checkpoint import find_checkpoint
from sttm_cli.models.loading import Placement
from sttm_cli.models.registry import load
from tests.fakes import DictMemo
opened = set()
sys.addaudithook(lambda event, given: opened.add(given[0]) if event == "open" else None)
for folder in map(Path, sys.argv[1:]):
    found = find_checkpoint("m", str(folder), revision=None, memo=DictMemo())
    load(found, Placement("cpu", "float32"))
names = [os.path.abspath(os.fspath(name)) for name in opened if isinstance(name, (str, Path))]
print(json.dumps(sorted(names)))
"""


def found(folder: Path) -> Checkpoint:
    return find_checkpoint("m", str(folder), revision=None, memo=DictMemo())


def below(folder: Path) -> Path:
    """The same checkpoint with its shards in a folder of their own."""
    (folder / "w").mkdir()
    index = json.loads((folder / INDEX).read_text())
    for shard in set(index["weight_map"].values()):
        (folder / shard).rename(folder / "w" / shard)
    index["weight_map"] = {name: f"w/{file}" for name, file in index["weight_map"].items()}
    (folder / INDEX).write_text(json.dumps(index))
    return folder


def naming(folder: Path, shard: str) -> Path:
    index = json.loads((folder / INDEX).read_text())
    first = next(iter(index["weight_map"]))
    index["weight_map"][first] = shard
    (folder / INDEX).write_text(json.dumps(index))
    return folder


def snapshot(hub: Path, name: str = "someone/tuned") -> Path:
    """The embedded checkpoint as a download leaves it in the hub's cache."""
    root = hub / f"models--{name.replace('/', '--')}"
    folder = root / "snapshots" / COMMIT
    for made in (root / "blobs", folder, root / "refs"):
        made.mkdir(parents=True)
    (root / "refs" / "main").write_text(COMMIT)
    for path in TINY.iterdir():
        content = path.read_bytes()
        blob = root / "blobs" / hashlib.sha256(content).hexdigest()
        if path.suffix != ".safetensors":
            git = b"blob %d\0" % len(content) + content
            blob = root / "blobs" / hashlib.sha1(git).hexdigest()
        blob.write_bytes(content)
        (folder / path.name).symlink_to(os.path.relpath(blob, folder))
    return folder


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return tmp_path / "hub"


def from_hub() -> Checkpoint:
    return find_checkpoint("m", "someone/tuned", revision=None, memo=DictMemo())


def test_every_file_that_is_opened_while_loading_is_fingerprinted(tmp_path: Path) -> None:
    folders = []
    for name, write in HERE.items():
        folders.append(write(tmp_path / name) or tmp_path / name)
        (folders[-1] / "additional_chat_templates").mkdir()
        (folders[-1] / "additional_chat_templates" / "rag.jinja").write_text("{{ 1 }}")
    below(tmp_path / "llava_video")
    code = [sys.executable, "-c", OPENED, *map(str, folders)]
    ran = subprocess.run(code, capture_output=True, text=True, check=True, timeout=240)
    opened = {Path(p) for p in json.loads(ran.stdout.splitlines()[-1]) if Path(p).is_file()}
    inside = {path for path in opened if path.is_relative_to(tmp_path)}
    fingerprinted = {path for folder in folders for path in model_files("m", folder)}
    assert len(inside) > 4 * len(folders)
    assert {path.name for path in inside} >= {"config.json", "rag.jinja", INDEX}
    assert inside <= fingerprinted
    assert any(path.parent.name == "w" for path in fingerprinted)


def test_a_shard_below_the_folder_is_measured_and_fingerprinted(tmp_path: Path) -> None:
    folder = llava_video(tmp_path / "model")
    flat = found(folder)
    deep = found(below(folder))
    assert weight_bytes(deep, "float32") == weight_bytes(flat, "float32") > 0
    shard = next((folder / "w").iterdir())
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    assert found(folder).fingerprint != deep.fingerprint
    with pytest.raises(ModelError, match="changed while it was read"):
        check_unchanged(deep, DictMemo())


@pytest.mark.parametrize(
    "shard",
    ["../model.safetensors", "w/../../a.safetensors", "/a.safetensors", "C:\\a.safetensors"],
)
def test_a_shard_outside_the_folder_is_refused_though_it_is_there(
    tmp_path: Path, shard: str
) -> None:
    folder = llava_video(tmp_path / "model")
    for place in (tmp_path / "model.safetensors", tmp_path / "a.safetensors"):
        shutil.copy(next(folder.glob("*.safetensors")), place)
    wanted = str(tmp_path / "a.safetensors") if shard == "/a.safetensors" else shard
    with pytest.raises(ModelError, match=r"index\.json .* names .* outside the folder"):
        found(naming(folder, wanted))


def with_adapter(folder: Path) -> Path:
    settings = {"peft_type": "LORA", "base_model_name_or_path": "m", "r": 2}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    return folder


def test_an_adapter_beside_the_weights_is_refused(tmp_path: Path) -> None:
    folder = with_adapter(Path(shutil.copytree(TINY, tmp_path / "m")))
    with pytest.raises(ModelError, match=r"holds an adapter, adapter_config\.json") as raised:
        found(folder)
    assert "merge the adapter into the weights first" in (raised.value.hint or "")


@pytest.mark.parametrize("write", [llava_video, internvl])
def test_an_adapter_that_comes_after_the_check_is_not_loaded(
    write: Callable[[Path], Path], tmp_path: Path
) -> None:
    checkpoint = found(write(tmp_path / "m"))
    with_adapter(checkpoint.folder)
    with pytest.raises(ModelError, match="holds an adapter"):
        load(checkpoint, Placement("cpu", "float32"))


def test_a_shard_that_is_a_pickle_is_refused(tmp_path: Path) -> None:
    folder = naming(llava_video(tmp_path / "model"), "pytorch_model.bin")
    (folder / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(ModelError, match=r"not a \.safetensors file"):
        found(folder)


@pytest.mark.parametrize("file", ["additional_chat_templates/a.jinja", "tokenizer.model.v3"])
def test_templates_and_vocabularies_are_fingerprinted(tmp_path: Path, file: str) -> None:
    folder = Path(shutil.copytree(TINY, tmp_path / "model"))
    before = found(folder).fingerprint
    (folder / file).parent.mkdir(exist_ok=True)
    (folder / file).write_text("1")
    first = found(folder).fingerprint
    (folder / file).write_text("2")
    assert len({before, first, found(folder).fingerprint}) == 3


def test_a_link_out_of_a_local_folder_is_followed_and_its_target_fingerprinted(
    tmp_path: Path,
) -> None:
    folder, weights = tmp_path / "model", tmp_path / "elsewhere.safetensors"
    shutil.copytree(TINY, folder)
    shutil.move(folder / "model.safetensors", weights)
    (folder / "model.safetensors").symlink_to(weights)
    memo = DictMemo()
    before = find_checkpoint("m", str(folder), revision=None, memo=memo)
    assert before.fingerprint == found(TINY).fingerprint
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    assert find_checkpoint("m", str(folder), revision=None, memo=memo) != before


def test_a_snapshot_of_the_hub_is_named_by_its_blobs_without_reading_the_weights(
    hub: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot(hub)
    monkeypatch.setattr("blake3.blake3.update_mmap", None, raising=False)
    monkeypatch.setattr("sttm_cli.models.checkpoint._hub_hash", None)
    assert from_hub().fingerprint.startswith(f"hub:someone/tuned@{COMMIT}:")


@pytest.mark.parametrize("file", ["model.safetensors", "chat_template.jinja"])
@pytest.mark.parametrize("how", ["written in place", "replaced by a file", "linked elsewhere"])
def test_a_snapshot_that_was_changed_here_is_another_model(hub: Path, file: str, how: str) -> None:
    path = snapshot(hub) / file
    before = from_hub()
    changed = path.read_bytes()[:-1] + b" "
    if how == "written in place":
        path.write_bytes(changed)
    else:
        path.unlink()
        other = path if how == "replaced by a file" else hub / "other"
        other.write_bytes(changed)
        if other != path:
            path.symlink_to(other)
    assert from_hub().fingerprint != before.fingerprint
    with pytest.raises(ModelError, match="changed while it was read"):
        check_unchanged(before, DictMemo())


def test_a_copied_cache_of_the_hub_is_the_same_model(hub: Path) -> None:
    folder = snapshot(hub)
    before = from_hub().fingerprint
    for path in folder.iterdir():
        os.utime(path.resolve())  # later than the links, as where links are copied first
    assert from_hub().fingerprint == before


def test_files_that_passed_are_not_checked_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    memo = DictMemo()
    first = find_checkpoint("m", str(TINY), revision=None, memo=memo)
    monkeypatch.setattr("sttm_cli.models.schema.problem", None)
    assert find_checkpoint("m", str(TINY), revision=None, memo=memo) == first


def test_each_checked_file_has_a_schema() -> None:
    from sttm_cli.models.schema import _FILES

    assert tuple(_FILES) == CHECKED
    assert CHECKED[0] == "config.json"


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("config.json", {"text_config": {"hidden_size": -1}}, "text_config.hidden_size must be"),
        ("config.json", {"vision_config": []}, "vision_config"),
        ("config.json", {"text_config": {"linear_key_head_dim": 1 << 30}}, "linear_key_head_dim"),
        ("config.json", {"text_config": {"layer_types": [1]}}, "layer_types"),
        ("config.json", {"sttm": {"positions": "none"}}, "sttm.positions"),
        ("config.json", {"transformers_weights": "w.safetensors"}, "transformers_weights"),
        ("generation_config.json", {"top_p": "x"}, "top_p must be"),
        ("tokenizer_config.json", {"fast_tokenizer_files": ["../tokenizer.1.json"]}, "same folder"),
        ("tokenizer_config.json", {"merges_file": "/elsewhere/merges.txt"}, "same folder"),
        ("tokenizer_config.json", {"gguf_file": "/elsewhere/a.gguf"}, "gguf_file"),
        ("tokenizer_config.json", {"vocab": "/elsewhere/vocab.json"}, "vocab"),
        ("tokenizer_config.json", {"merges": "/elsewhere/merges.txt"}, "merges"),
        ("processor_config.json", {"video_processor": {"size": {"height": 0}}}, "size"),
        ("processor_config.json", {"audio_tokenizer": {"a": 1}}, "audio_tokenizer"),
    ],
)
def test_a_field_of_another_type_is_refused_naming_file_and_field(
    tmp_path: Path, file: str, content: dict, message: str
) -> None:
    folder = Path(shutil.copytree(TINY, tmp_path / "model"))
    (folder / file).write_text(json.dumps(content))
    with pytest.raises(ModelError, match=rf"{file} is not valid: .*{message}"):
        found(folder)
