"""The plugin's parts that need no vLLM, and `sttm serve --engine vllm` up to vLLM's start."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest
import torch

import sttm_cli
from sttm_cli.base.errors import ModelError, UsageError
from sttm_cli.base.names import METHODS
from sttm_cli.merge import merge_tokens
from sttm_cli.merge.groups import filled_up
from sttm_cli.vllm.merger import merger_of, pruning_names
from sttm_cli.vllm.places import Medium, marked, placed, resized, unmarked, unmerged
from sttm_cli.vllm.versions import untested
from tests.cli.process import Ended, sttm

START, END, PAD, TEXT = 1, 2, 9, 5


def video(steps: int = 6, side: int = 8, seed: int = 0) -> torch.Tensor:
    return torch.randn(steps, side, side, 16, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("rate", [0.7, 0.5, 0.9])
@pytest.mark.parametrize("name", pruning_names())
def test_every_method_keeps_exactly_the_share_of_any_video(name: str, rate: float) -> None:
    merger = merger_of((name, rate))
    assert merger is not None
    still = video()[:1].expand(6, -1, -1, -1).contiguous()
    for features in (video(), still, torch.zeros_like(still)):
        roots, sources = merger.merge(features)
        assert len(roots) == sources.count == int(round(1 - rate, 6) * 6 * 64)
        assert merger.count((6, 8, 8)) == len(roots)
        assert torch.equal(roots, roots.sort().values.unique())
        whole = sources(torch.ones_like(features))
        assert torch.allclose(whole, torch.ones_like(whole))


def test_the_merge_is_that_of_the_method_itself() -> None:
    merger = merger_of(("sttm", 0.7))
    assert merger is not None
    features, alone = video(), merge_tokens(video(), budget=0.3)
    roots, sources = merger.merge(features)
    assert torch.equal(roots, alone.roots)
    assert torch.equal(sources(features), alone.features)


def test_filling_up_takes_cells_out_of_their_groups() -> None:
    features = torch.arange(4.0).repeat_interleave(4).view(1, 4, 4, 1)
    merged = merge_tokens(torch.ones(4, 4, 4, 16), budget=32)
    assert len(merged) < 32
    cells = torch.arange(64.0).view(4, 4, 4, 1)
    roots, sources = filled_up(merged, 32)
    assert int(sources.index.flatten()[roots].unique().numel()) == 32
    groups = [cells.flatten()[sources.index.flatten() == token].mean() for token in range(32)]
    assert torch.allclose(sources(cells).flatten(), torch.stack(groups))
    with pytest.raises(UsageError, match="more than 1"):
        filled_up(merge_tokens(features.repeat(4, 1, 1, 1), budget=1.0), 1)


def test_a_budget_that_a_video_cannot_meet_is_refused_before_it_is_encoded() -> None:
    merger = merger_of(("sttm", 0.999))
    assert merger is not None
    with pytest.raises(UsageError, match="keeps no token of a video of 64"):
        merger.count((1, 8, 8))


def test_the_names_are_those_of_all_methods_and_others_are_vllms_own() -> None:
    assert pruning_names()[0] == "sttm"
    assert len(pruning_names()) == len(METHODS.names())
    assert merger_of(None) is None
    assert merger_of(("evs", 0.5)) is None
    tome = merger_of(("sttm:tome", 0.5))
    assert tome is not None
    assert tome.identity.startswith("tome/")
    with pytest.raises(UsageError, match="--video-pruning-method"):
        merger_of(("sttm:nothing", 0.5))


def test_placeholders_of_one_run_are_resized() -> None:
    assert resized([3, PAD, PAD, 4], PAD, 3) == [3, PAD, PAD, PAD, 4]
    with pytest.raises(ValueError, match="one run"):
        resized([PAD, 3, PAD], PAD, 1)


def test_a_prompt_is_as_long_as_without_merging_and_text_keeps_its_place() -> None:
    # Timestamps between two steps of 3, all 4 placeholders behind the first; then one run of 6.
    first = [TEXT, START, PAD, PAD, PAD, PAD, END, TEXT, START, END]
    ids = [7, *first, 8, PAD, PAD, 6]
    media = [Medium(1, len(first), 2, 3), Medium(12, 2, 2, 3)]
    whole = unmerged(ids, media, token=PAD, start=START)
    step = [TEXT, START, PAD, PAD, PAD, END]
    assert whole.ids == [7, *step, *step, 8, *[PAD] * 6, 6]
    assert whole.media == [(1, 12), (14, 6)]
    assert [whole.ids[place] for place in whole.keep] == ids
    assert len(set(whole.keep)) == len(ids)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("cut", range(1, 12))
def test_positions_of_a_window_are_exact_in_any_dtype_and_wherever_it_begins(
    dtype: torch.dtype, cut: int
) -> None:
    ids = torch.tensor([7, TEXT, START, PAD, PAD, PAD, END, TEXT, START, END, 8, 8])
    relative = torch.tensor([0, 1, 4000, 4003, 4004, 4005, 4006, 70007, 70008]).expand(3, -1)
    rows = marked(torch.ones(9, 4, dtype=dtype), relative, lead=2)
    before = torch.arange(12).expand(3, -1) + 300
    positions, features = before, []
    for begin, end in ((0, cut), (cut, 12)):
        window = rows[max(begin - 1, 0) : max(min(end, 10) - 1, 0)]
        kept, values = unmarked(window)
        features.append(kept)
        media = [values] if len(values) else []
        positions = placed(positions, ids == PAD, begin, media)
    assert positions[0].tolist() == [300, *(relative[0] + 301).tolist(), 310, 311]
    assert torch.equal(torch.cat(features), torch.ones(9, 4, dtype=dtype))


def test_another_vllm_is_named_with_what_to_do() -> None:
    assert untested("0.32.0") is None
    assert untested("0.32.3+cpu") is None
    line = untested("0.33.0") or ""
    assert "0.32, this is 0.33.0" in line
    assert "\n" not in line


# `sttm serve --engine vllm`.


@pytest.fixture
def beside(tmp_path: Path) -> Path:
    """A folder for PATH with a vLLM that prints its arguments, and a Python of stated versions."""
    program = f"#!{sys.executable}\nimport json, os, sys\n"
    (tmp_path / "vllm").write_text(
        program + "print(json.dumps([sys.argv[1:], os.environ.get('VLLM_API_KEY')]))\n"
    )
    _versions(tmp_path, vllm="0.32.0", sttm_cli=sttm_cli.__version__)
    (tmp_path / "vllm").chmod(0o755)
    return tmp_path


def _versions(folder: Path, **versions: str) -> None:
    (folder / "python").write_text(f"#!{sys.executable}\nprint({json.dumps(versions)!r})\n")
    (folder / "python").chmod(0o755)


def serve(beside: Path, *arguments: object, **env: str) -> Ended:
    path = f"{beside}{os.pathsep}{os.environ['PATH']}"
    return sttm("serve", "--engine", "vllm", *arguments, PATH=path, **env)


def test_vllm_starts_with_the_flags_that_ours_stand_for(beside: Path, tmp_path: Path) -> None:
    from tests.checkpoints_qwen import qwen_vl

    model = qwen_vl(tmp_path / "qwen", "qwen2_5_vl")
    ended = serve(
        beside, "-m", model, "-b", "0.3", "--method", "tome", "--frames", 8, "--host-bytes", "1G",
        "--cache-dir", tmp_path / "cache", "--api-key", "secret", "--", "--max-model-len", "512",
    )  # fmt: skip
    assert ended.code == 0, ended.err
    argv, key = json.loads(ended.out)
    told = dict(zip(argv[2::2], argv[3::2], strict=True))
    assert argv[:2] == ["serve", str(model)]
    assert told["--video-pruning-method"] == "sttm:tome"
    assert told["--video-pruning-rate"] == "0.7"
    assert json.loads(told["--media-io-kwargs"]) == {"video": {"fps": 1, "num_frames": 8}}
    assert argv[-2:] == ["--max-model-len", "512"]
    assert key == "secret"
    assert "secret" not in ended.out.split("]")[0] + ended.err
    extra = json.loads(told["--kv-transfer-config"])["kv_connector_extra_config"]
    assert extra["cpu_bytes_to_use"] == 2**30
    [tier] = extra["secondary_tiers"]
    assert tier["root_dir"].startswith(str(tmp_path / "cache" / "vllm" / "0.32.0-"))
    whole = serve(beside, "-m", model, "-b", "1", "--attention-sizes", "off")
    assert "--video-pruning" not in whole.out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--attention-sizes", "on"], "--attention-sizes on cannot be combined"),
        (["--method", "anchors"], "--attention-sizes auto cannot be combined"),
        (["--method", "sttm:0.8/0.6", "-b", "1"], "--method sttm:0.8/0.6 has thresholds"),
        (["--merge-layer", "2"], "--merge-layer 2 cannot be combined"),
        (["-b", "512"], "--budget 512 cannot be combined"),
        (["--keep-alive", "5m"], "--engine vllm and --keep-alive cannot be combined"),
        (["--system", "Be brief."], "clients send a system message"),
        (["--cache-dir", "s3://bucket"], "--cache-dir s3://bucket cannot be combined"),
        (["--allow-path", "/a", "--allow-path", "/b"], "--allow-path given 2 times"),
    ],
)
def test_what_vllm_would_not_honour_is_refused_by_name(
    beside: Path, arguments: list[str], said: str
) -> None:
    ended = serve(beside, *arguments)
    assert ended.code == 2
    assert said in ended.err


def test_a_model_that_is_not_merged_there_is_refused(beside: Path, random_model: Path) -> None:
    from tests.checkpoints_internvl import internvl

    ended = serve(beside, "-m", internvl(beside / "model"))
    assert ended.code == ModelError.exit_code
    assert "is not merged there" in ended.err


def test_other_versions_are_refused_in_one_line(beside: Path, tmp_path: Path) -> None:
    _versions(beside, vllm="0.33.0", sttm_cli=sttm_cli.__version__)
    assert "tested with vLLM 0.32, this is 0.33.0" in serve(beside).err
    _versions(beside, vllm="0.32.0", sttm_cli="0.0.9")
    assert "beside vLLM is sttm-cli 0.0.9" in serve(beside).err
    _versions(beside, vllm="0.32.0")
    assert "beside vLLM is no sttm-cli" in serve(beside).err
    assert "no vllm beside this Python or on PATH" in sttm("serve", "--engine", "vllm").err


def test_flags_after_the_dashes_are_for_vllm_alone() -> None:
    ended = sttm("serve", "--", "--tensor-parallel-size", "2")
    assert ended.code == 2
    assert "flags after -- are for --engine vllm" in ended.err
    assert "--engine 'x' is not a server" in sttm("serve", "--engine", "x").err
