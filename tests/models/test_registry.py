"""Names, defaults, memory and the hub's cache: all that is known before a weight is loaded."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from sttm_cli.base.errors import ModelError, OutOfMemoryError, UsageError
from sttm_cli.models.checkpoint import find_checkpoint
from sttm_cli.models.loading import Placement, free_bytes, place, weight_bytes
from sttm_cli.models.registry import aliases, families, family_of, load
from tests.checkpoints_llava import llava_video
from tests.cli.process import sttm, sttm_here
from tests.fakes import DictMemo

SAMPLE = Path(__file__).parents[2] / "docs" / "sample.mp4"


def source_of(folder: Path, name: str = "m"):
    return find_checkpoint(name, str(folder), revision=None, memo=DictMemo())


def folder_with(tmp_path: Path, config: dict) -> Path:
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").write_bytes(b"x")
    return tmp_path


def downloaded(hub: Path, repository: str, model: Path) -> Path:
    """Put a checkpoint into a hub cache as a download leaves it."""
    commit = "0123456789abcdef0123456789abcdef01234567"
    root = hub / f"models--{repository.replace('/', '--')}"
    (root / "snapshots").mkdir(parents=True)
    (root / "refs").mkdir()
    (root / "refs" / "main").write_text(commit)
    (root / "snapshots" / commit).symlink_to(model, target_is_directory=True)
    return root


def sttm_models(hub: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    code = (
        f"import sys; sys.argv = ['sttm', 'models', *{list(arguments)!r}]\n"
        "from sttm_cli.cli import main\n"
        "try: main()\n"
        "finally: assert not {'torch', 'transformers', 'numpy'} & set(sys.modules)"
    )
    environment = {"HF_HUB_CACHE": str(hub), "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(Path.cwd())}
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment
    )


def test_every_alias_stands_for_a_hub_id() -> None:
    assert aliases()["qwen2.5-vl-7b"] == "Qwen/Qwen2.5-VL-7B-Instruct"
    assert aliases()["llava-video-72b"] == "lmms-lab/LLaVA-Video-72B-Qwen2"
    assert all(where.count("/") == 1 for name, where in aliases().items() if name != "tiny")


@pytest.mark.parametrize(("layers", "merge_layer"), [(28, 2), (80, 0)])
def test_the_largest_llava_video_merges_at_its_first_layer(
    tmp_path: Path, layers: int, merge_layer: int
) -> None:
    folder = folder_with(tmp_path, {"model_type": "llava_qwen", "num_hidden_layers": layers})
    assert family_of(source_of(folder)).merge_layer == merge_layer


def test_a_checkpoint_may_state_its_own_defaults(tmp_path: Path) -> None:
    own = {"frames": 9, "merge_layer": 1, "positions": "survivors"}
    folder = folder_with(tmp_path, {"model_type": "llava_onevision", "sttm": own})
    family = family_of(source_of(folder))
    assert (family.frames, family.merge_layer, family.positions) == (9, 1, "survivors")


def test_a_default_that_a_checkpoint_states_as_null_is_the_familys(tmp_path: Path) -> None:
    config = {"model_type": "llava_onevision", "sttm": {"frames": None, "merge_layer": None}}
    bare = source_of(folder_with(tmp_path, {"model_type": "llava_onevision"}))
    plain = family_of(bare)
    assert family_of(source_of(folder_with(tmp_path, config))) == plain


def test_a_revision_of_a_folder_is_refused_naming_both_flags(random_model: Path) -> None:
    with pytest.raises(UsageError, match=r"--revision main.*--model"):
        find_checkpoint("m", str(random_model), revision="main", memo=DictMemo())


def test_weights_are_measured_before_loading_and_refused_where_they_do_not_fit(
    random_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch
    from safetensors.torch import load_file

    source = source_of(random_model)
    numbers = sum(t.numel() for t in load_file(random_model / "model.safetensors").values())
    assert weight_bytes(source, "float32") == 4 * numbers
    assert weight_bytes(source, "bfloat16") == 2 * numbers
    monkeypatch.setattr("sttm_cli.models.loading.free_bytes", lambda device: 3 * numbers)
    place(source, Placement("cpu", "bfloat16"))
    monkeypatch.setattr(torch.nn.Module, "__init__", lambda *a, **k: pytest.fail("it was built"))
    with pytest.raises(OutOfMemoryError, match="GiB are free on cpu") as error:
        load(source, Placement("cpu", "float32"))
    assert error.value.exit_code == 5
    assert "--dtype bfloat16" in error.value.hint


def test_a_video_whose_kv_does_not_fit_beside_the_weights_is_refused_before_loading(
    random_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = weight_bytes(source_of(random_model), "float32")
    monkeypatch.setattr("sttm_cli.models.loading.free_bytes", lambda device: weights + 1000)
    ended = sttm_here("ask", SAMPLE, "what?", "--model", random_model, "--json")
    assert ended.code == 5
    assert ended.json["error"]["kind"] == "memory"
    assert "KV about" in ended.json["error"]["message"]
    assert "--frames" in ended.json["error"]["hint"]


def test_free_memory_is_known_on_linux() -> None:
    free = free_bytes("cpu")
    assert free is None or 2**20 < free < 2**50
    assert sys.platform != "linux" or free is not None


@pytest.mark.parametrize("content", [b"", b"x", (2**40).to_bytes(8, "little"), b"\2" + b"\0" * 7])
def test_a_weights_file_that_is_none_is_refused(
    random_model: Path, tmp_path: Path, content: bytes
) -> None:
    for path in random_model.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(ModelError, match="not a safetensors file"):
        load(source_of(tmp_path), Placement("cpu", "float32"))


def test_models_lists_names_families_and_what_is_downloaded(
    random_model: Path, tmp_path: Path
) -> None:
    downloaded(tmp_path, "Qwen/Qwen2-VL-2B-Instruct", random_model)
    downloaded(tmp_path, "someone/finetuned", random_model)
    out = sttm_models(tmp_path, "--json")
    assert out.returncode == 0, out.stderr
    made = json.loads(out.stdout)
    assert made["schema"] == "sttm.models/1"
    rows = {row["alias"] or row["repository"]: row for row in made["models"]}
    size = (random_model / "model.safetensors").stat().st_size
    assert rows["qwen2-vl-2b"]["bytes"] == size
    assert rows["qwen2-vl-7b"] == {
        "alias": "qwen2-vl-7b",
        "repository": "Qwen/Qwen2-VL-7B-Instruct",
        "family": "qwen2-vl",
        "present": False,
        "bytes": None,
    }
    assert rows["someone/finetuned"]["family"] == "llava-onevision"
    assert {row["model_type"] for row in made["families"]} == {
        family.model_type for family in families()
    }


def test_models_prints_a_table(tmp_path: Path) -> None:
    out = sttm_models(tmp_path)
    assert "llava-video-7b" in out.stdout
    assert "qwen3_vl" in out.stderr
    assert sttm_models(tmp_path, "-q").stderr == ""


def test_a_downloaded_model_is_found_offline_by_its_hub_id(
    random_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    downloaded(tmp_path, "someone/finetuned", random_model)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    name = "someone/finetuned"
    source = find_checkpoint(name, name, revision=None, memo=DictMemo())
    assert source.fingerprint.startswith("hub:someone/finetuned@0123456789abcdef")
    assert load(source, Placement("cpu", "float32")).end_ids
    with pytest.raises(ModelError, match=r"someone/other.*not on this machine"):
        find_checkpoint("x", "someone/other", revision=None, memo=DictMemo())


def test_code_in_a_checkpoint_is_neither_run_nor_asked_about(tmp_path: Path) -> None:
    folder = llava_video(tmp_path / "model")
    (folder / "code.py").write_text(
        f"open({str(tmp_path / 'ran')!r}, 'w').close()\n"
        "from transformers import Qwen2TokenizerFast as Anything\n"
    )
    path = folder / "tokenizer_config.json"
    theirs = {"tokenizer_class": "Anything", "auto_map": {"AutoTokenizer": [None, "code.Anything"]}}
    path.write_text(json.dumps({**json.loads(path.read_text()), **theirs}))
    # A line that waits on stdin must not be taken for a yes.
    ended = sttm("ask", SAMPLE, "what?", "--model", folder, "--no-server", stdin=b"y\n" * 5)
    assert (ended.code, ended.out) == (4, "")
    assert "cannot be loaded" in ended.err
    assert "[y/N]" not in ended.err
    assert not (tmp_path / "ran").exists()
