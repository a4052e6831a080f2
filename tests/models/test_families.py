"""A family is one file: what each states, what importing it costs, and one from outside."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from sttm_cli.base.errors import ModelError, UsageError
from sttm_cli.models.checkpoint import Checkpoint, find_checkpoint
from sttm_cli.models.loading import Placement
from sttm_cli.models.registry import (
    NEAREST,
    TokenCount,
    aliases,
    families,
    family_of,
    find_family,
    load,
    token_count,
)
from sttm_cli.runtime.model_plan import options_of
from sttm_cli.settings.settings import Settings
from tests.checkpoints_internvl import internvl
from tests.checkpoints_perception import perception_lm
from tests.cli.process import sttm_here
from tests.fakes import DictMemo
from tests.installed import install, sttm
from tests.test_startup import HEAVY, modules_after

SAMPLE = Path(__file__).parents[2] / "docs" / "sample.mp4"

SPECS = {
    # model_type: name, frames, merge layer, positions, multiple, rotary axes, sizes
    "llava_onevision": ("llava-onevision", 32, 2, "reassigned", 1, 1, "0.5b 7b"),
    "llava_qwen": ("llava-video", 64, 2, "reassigned", 1, 1, "7b 7b-video-only 72b"),
    "qwen2_vl": ("qwen2-vl", 128, 2, "survivors", 2, 3, "2b 7b"),
    "qwen2_5_vl": ("qwen2.5-vl", 128, 2, "survivors", 2, 3, "3b 7b"),
    "qwen3_vl": ("qwen3-vl", 128, 3, "survivors", 2, 3, "2b 4b 8b"),
    "qwen3_vl_moe": ("qwen3-vl-moe", 128, 3, "survivors", 2, 3, "30b"),
    "qwen3_5": ("qwen3.5", 128, 3, "survivors", 2, 3, "0.8b 2b 4b 9b 27b"),
    "qwen3_5_moe": ("qwen3.5-moe", 128, 3, "survivors", 2, 3, "35b 122b 397b"),
    "smolvlm": ("smolvlm2", 64, 2, "reassigned", 1, 1, "256m 500m 2.2b"),
    "internvl": ("internvl3.5", 64, 2, "reassigned", 1, 1, "2b 4b 8b"),
    "glm4v": ("glm-v", 128, 2, "survivors", 2, 3, "4.1-9b 4.6-9b"),
    "glm4v_moe": ("glm-v-moe", 128, 2, "survivors", 2, 3, "4.5-106b 4.6-106b"),
    "glm46v": ("glm-4.6v", 128, 2, "survivors", 2, 3, ""),
    "video_llama_3": ("videollama3", 180, 2, "reassigned", 1, 1, ""),
    "minicpmv4_6": ("minicpm-v", 128, 3, "reassigned", 1, 1, "4.6 4.6-thinking"),
    "perception_lm": ("perception-lm", 32, 2, "reassigned", 1, 1, "1b 3b 8b"),
    "gemma4": ("gemma-4", 32, 2, "reassigned", 1, 1, "e2b e4b 26b 31b"),
    "gemma4_unified": ("gemma-4-unified", 32, 2, "reassigned", 1, 1, "12b"),
    "molmo2": ("molmo2", 64, 2, "reassigned", 1, 1, "4b 8b o-7b"),
}

TOY = '''
"""LLaVA-OneVision under another name, that answers with fewer frames."""
from dataclasses import replace

from sttm_cli.models.families import llava_onevision
from sttm_cli.models.loading import load_files, load_weights


def load(checkpoint, placement, options):
    from transformers import (
        LlavaOnevisionConfig,
        LlavaOnevisionForConditionalGeneration,
        LlavaOnevisionProcessor,
    )

    config = LlavaOnevisionConfig(**{**checkpoint.config, "model_type": "llava_onevision"})
    model = load_weights(
        LlavaOnevisionForConditionalGeneration, checkpoint, placement, config=config
    )
    return llava_onevision.LlavaOnevision(model, load_files(LlavaOnevisionProcessor, checkpoint))


FAMILY = replace(
    llava_onevision.FAMILY,
    name="toy",
    model_type="toy_vl",
    checkpoints={"1b": "someone/toy-1b"},
    frames=3,
    load=load,
)
'''


def checkpoint_of(model_type: str, **config: object) -> Checkpoint:
    return Checkpoint("m", Path(), None, "", {"model_type": model_type, **config})


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """That of a process in which the toy family's package is installed."""
    return add(tmp_path, "toy", TOY, "toy_vl = toy:FAMILY")


def add(folder: Path, package: str, source: str, entry: str) -> dict[str, str]:
    return install(folder, package, source, f"[sttm_cli.families]\n{entry}\n")


@pytest.fixture
def toy_model(random_model: Path, tmp_path: Path) -> Path:
    """The random LLaVA-OneVision, whose config names the family from outside."""
    folder = tmp_path / "model"
    folder.mkdir()
    for path in random_model.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "toy_vl"}))
    return folder


def test_the_specifications_are_those_of_the_paper_and_the_model_cards() -> None:
    found = {
        f.model_type: (
            f.name, f.frames, f.merge_layer, f.positions, f.multiple, f.rotary_axes,
            " ".join(f.checkpoints),
        )
        for f in families()
    }  # fmt: skip
    assert found == SPECS
    assert {f.template for f in families()} == {1}


def test_each_file_is_named_after_its_model_type_and_families_are_sorted_by_name() -> None:
    for family in families():
        assert find_family(family.model_type) is family
    names = [family.name for family in families()]
    assert names == sorted(names)


def test_a_type_from_a_config_reaches_no_other_module() -> None:
    for model_type in ("", ".", "..registry", "llava_qwen.LlavaVideo", "__init__", "os"):
        assert find_family(model_type) is None
    with pytest.raises(ModelError, match=r"type '\.\.registry', which is not supported"):
        family_of(checkpoint_of("..registry"))


@pytest.mark.parametrize(
    ("model_type", "nearest"),
    [
        ("qwen3_next", "qwen3.5-4b"),
        ("gemma3n", "gemma-4-e4b"),
        ("minicpmv4_7", "minicpm-v-4.6"),
        ("internvl_chat", "internvl3.5-8b"),
        ("llava_next_video", "llava-video-7b"),
        ("videollama3_qwen2", "perception-lm-8b"),
        ("smolvlm2", "smolvlm2-2.2b"),
        ("bert", "qwen3-vl-4b"),
        ("", "qwen3-vl-4b"),
    ],
)
def test_a_refused_type_names_the_nearest_checkpoint(model_type: str, nearest: str) -> None:
    with pytest.raises(ModelError, match="which is not supported") as error:
        family_of(checkpoint_of(model_type))
    assert f": {nearest};" in error.value.hint


def test_every_checkpoint_that_a_refusal_names_exists() -> None:
    assert set(NEAREST.values()) <= set(aliases())


@pytest.mark.parametrize("kind", ["sliding_attention", "linear_attention"])
def test_a_supported_model_around_a_decoder_of_other_layers_is_refused(
    tmp_path: Path, kind: str
) -> None:
    folder = internvl(tmp_path / "m")
    config = json.loads((folder / "config.json").read_text())
    kinds = ["full_attention", kind, "full_attention", "full_attention"]
    config["text_config"] |= {"layer_types": kinds, "sliding_window": 8, "use_sliding_window": True}
    (folder / "config.json").write_text(json.dumps(config))
    source = find_checkpoint("m", str(folder), revision=None, memo=DictMemo())
    with pytest.raises(ModelError, match=f"layers of the type '{kind}'"):
        load(source, Placement("cpu", "float32"))


def test_a_tower_of_another_library_takes_known_settings_only(tmp_path: Path) -> None:
    pytest.importorskip("timm", reason="Perception-LM's tower is timm's")
    folder = perception_lm(tmp_path / "m")
    config = json.loads((folder / "config.json").read_text())
    vision = config["vision_config"]
    for wrong in (
        {"architecture": "hf-hub:someone/else"},
        {"architecture": "resnet50"},
        {"model_args": {**vision["model_args"], "checkpoint_path": "/tmp/x.bin"}},
        {"model_args": {**vision["model_args"], "depth": 10**9}},
        {"model_args": {**vision["model_args"], "img_size": [10**6, 10**6]}},
    ):
        text = json.dumps({**config, "vision_config": {**vision, **wrong}})
        (folder / "config.json").write_text(text)
        source = find_checkpoint("m", str(folder), revision=None, memo=DictMemo())
        with pytest.raises(ModelError, match="settings are not supported"):
            load(source, Placement("cpu", "float32"))


def test_a_bound_of_a_whole_videos_pixels_is_taken_and_a_side_of_that_length_is_not() -> None:
    from sttm_cli.models.schema import problem

    size = {"shortest_edge": 4096, "longest_edge": 47_040_000}
    assert problem("video_preprocessor_config.json", {"size": size}) is None
    wrong = {"size": {"height": 47_040_000, "width": 384}}
    assert "height must be less" in (problem("video_preprocessor_config.json", wrong) or "")


@pytest.mark.parametrize("model_type", SPECS)
def test_a_familys_file_imports_without_torch_and_transformers(model_type: str) -> None:
    heavy = {*HEAVY, "safetensors", "sttm_cli.runtime"}
    assert not modules_after(f"import sttm_cli.models.families.{model_type}") & heavy


def test_finding_one_family_imports_no_other() -> None:
    code = (
        "import sys\n"
        "from sttm_cli.models.registry import find_family\n"
        "assert find_family('smolvlm').name == 'smolvlm2'\n"
        "loaded = [m for m in sys.modules if m.startswith('sttm_cli.models.families.')]\n"
        "assert loaded == ['sttm_cli.models.families.smolvlm'], loaded"
    )
    modules_after(code)


VISION = {"image_size": 384, "patch_size": 14}


@pytest.mark.parametrize(
    ("checkpoint", "count"),
    [
        (checkpoint_of("llava_onevision", vision_config=VISION), TokenCount(10 * 196, 0)),
        (checkpoint_of("llava_qwen", vision_config=VISION), TokenCount(10 * 196, 10 * 8)),
        (
            checkpoint_of("llava_qwen", mm_vision_tower="google/siglip-so400m-patch14-384"),
            TokenCount(10 * 196, 10 * 8),
        ),
        (checkpoint_of("internvl", image_seq_length=256), TokenCount(10 * 256, 10 * 8)),
        (
            checkpoint_of(
                "smolvlm", vision_config={"image_size": 512, "patch_size": 16}, scale_factor=4
            ),
            TokenCount(10 * 64, 10 * 12),
        ),
        (checkpoint_of("qwen2_vl", vision_config={"patch_size": 14}), TokenCount(5 * 23 * 13, 0)),
        (
            checkpoint_of("qwen3_vl_moe", vision_config={"patch_size": 16}),
            TokenCount(5 * 20 * 11, 5 * 9),
        ),
        (checkpoint_of("llava_qwen", mm_vision_tower="another"), None),
        (checkpoint_of("internvl"), None),
        (checkpoint_of("bert"), None),
    ],
    ids=lambda value: value.model_type if isinstance(value, Checkpoint) else "",
)
def test_tokens_are_counted_from_the_config_alone(
    checkpoint: Checkpoint, count: TokenCount | None
) -> None:
    assert token_count(checkpoint, 10, width=640, height=352) == count


@pytest.mark.parametrize(("model_type", "each"), [("qwen2_vl", 400), ("qwen3_vl", 40)])
def test_a_processors_bound_is_a_frames_or_that_of_all_frames_together(
    tmp_path: Path, model_type: str, each: int
) -> None:
    size = {"longest_edge": 400 * 16 * 16}
    (tmp_path / "video_preprocessor_config.json").write_text(json.dumps({"size": size}))
    checkpoint = replace(
        checkpoint_of(model_type, vision_config={"patch_size": 8}), folder=tmp_path
    )
    count = token_count(checkpoint, 10, width=1920, height=1080)
    assert count is not None
    assert count.visual == 5 * each


def test_an_option_of_another_family_is_refused_and_an_own_one_is_not() -> None:
    video, onevision = find_family("llava_qwen"), find_family("llava_onevision")
    assert video is not None
    assert onevision is not None
    wanted = Settings(options="newlines")
    assert options_of(wanted, video, model="--model m") == ("newlines",)
    assert options_of(Settings(), onevision, model="--model m") == ()
    with pytest.raises(UsageError, match="--options newlines cannot be combined with --model m"):
        options_of(wanted, onevision, model="--model m")
    renamed = replace(onevision, options={"newlines": "..."})
    assert options_of(wanted, renamed, model="--model m") == ("newlines",)


def test_a_family_of_another_package_is_listed(environment: dict[str, str]) -> None:
    made = json.loads(sttm(environment, "models", "--json").stdout)
    (family,) = [f for f in made["families"] if f["model_type"] == "toy_vl"]
    assert family == {
        "model_type": "toy_vl",
        "name": "toy",
        "frames": 3,
        "merge_layer": 2,
        "positions": "reassigned",
    }
    assert {"toy-1b", "qwen2-vl-7b"} <= {row["alias"] for row in made["models"]}


def test_a_family_of_another_package_answers(environment: dict[str, str], toy_model: Path) -> None:
    flags = ("--model", toy_model, "--max-new-tokens", 4, "--no-server", "--json")
    ended = sttm(environment, "ask", SAMPLE, "what colour is the circle ?", *flags)
    assert ended.returncode == 0, ended.stderr
    made = json.loads(ended.stdout)
    assert len(made["video"]["frame_times_s"]) == 3
    assert made["answers"][0]["answer"]


def test_without_its_package_the_type_is_not_supported(toy_model: Path) -> None:
    ended = sttm_here("ask", SAMPLE, "what?", "--model", toy_model, "--no-server")
    assert ended.code == 4
    assert "is of type 'toy_vl', which is not supported" in ended.err


@pytest.mark.parametrize(
    ("entry", "problem"),
    [
        ("bad_vl = nowhere:FAMILY", "cannot be imported: No module"),
        ("bad_vl = broken:FAMILY", "is not a model family of that name"),
        ("bad_vl = toy:FAMILY", "is not a model family of that name"),
    ],
)
def test_a_package_without_the_family_it_announces_is_named_and_stops_nothing_else(
    environment: dict[str, str], tmp_path: Path, entry: str, problem: str
) -> None:
    add(tmp_path, "broken", "FAMILY = 'nonsense'", entry)
    ended = sttm(environment, "models")
    assert ended.returncode == 0
    assert "toy-1b" in ended.stdout
    assert "model family 'bad_vl' of package broken" in ended.stderr
    assert problem in ended.stderr
