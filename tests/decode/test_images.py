"""A folder of images read as a video."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sttm_cli.base.errors import VideoError
from sttm_cli.base.types import DecodeReport
from sttm_cli.decode import digest, plan_frames, probe, read_frames, remembered_probe
from tests.decode.made import number_of, numbered
from tests.fakes import DictMemo

NAMES = ["shot 1.png", "shot 2.png", "shot 10.png", "Shot 11.png", "shot 100.png", "итог.png"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number, name in enumerate(NAMES):
        Image.fromarray(numbered(number)).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / "._shot 1.png").write_bytes(b"what some systems leave behind")
    (tmp_path / "sub.png").mkdir()
    return tmp_path


def read(folder: Path, **choice: object) -> tuple[np.ndarray, DecodeReport]:
    info = remembered_probe(folder, DictMemo(), image_fps=float(choice.get("fps") or 1.0))
    plan = plan_frames(info, **{"max_frames": 99, **choice})
    report = DecodeReport()
    chunks = list(read_frames(folder, plan, report=report))
    return np.concatenate([chunk.frames for chunk in chunks]), report


def numbers(frames: np.ndarray) -> list[int]:
    return [number_of(frame) for frame in frames]


def test_images_come_in_natural_order(folder: Path) -> None:
    frames, report = read(folder)
    assert numbers(frames) == list(range(6))
    assert report.times_s == [0, 1, 2, 3, 4, 5]
    assert report.warnings == []


@pytest.mark.parametrize("fps", [0.1, 7, 29.97, 1000])
def test_fps_says_how_far_apart_they_are(folder: Path, fps: float) -> None:
    frames, report = read(folder, fps=fps)
    assert numbers(frames) == list(range(6))
    assert report.times_s == pytest.approx([i / fps for i in range(6)], abs=1e-6)


def test_range_and_number_of_frames_are_kept_to(folder: Path) -> None:
    assert numbers(read(folder, start=2.0, end=4.0)[0]) == [2, 3]
    assert numbers(read(folder, start=2.5, end=4.0)[0]) == [2, 3]
    assert numbers(read(folder, frames=3)[0]) == [0, 2, 5]


def test_other_sizes_are_fitted_undistorted_and_counted(folder: Path) -> None:
    Image.fromarray(numbered(1, 320, 192)).save(folder / NAMES[1])
    Image.fromarray(np.full((96, 48, 3), 200, np.uint8)).save(folder / NAMES[2])
    frames, report = read(folder)
    assert frames.shape == (6, 96, 160, 3)
    assert number_of(frames[1]) == 1
    assert frames[2][:, :50].max() == 0
    assert frames[2][:, 60:100].min() == 200
    assert "2 of 6 images have another size" in report.warnings[0]


def test_deep_grey_turned_and_transparent_images_look_right(tmp_path: Path) -> None:
    ramp = np.linspace(0, 65535, 80 * 60).reshape(60, 80).astype(np.uint16)
    Image.fromarray(ramp).save(tmp_path / "1.png")
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.fromarray(np.zeros((80, 60, 3), np.uint8)).save(tmp_path / "2.jpg", exif=turned)
    Image.new("LA", (80, 60), (90, 255)).save(tmp_path / "3.png")
    frames, report = read(tmp_path)
    assert report.warnings == []
    assert abs(frames[0].mean() - 127) < 2
    assert frames[2].mean() == 90


@pytest.mark.usefixtures("unhurried")
def test_the_digest_is_over_names_and_bytes_and_is_remembered(folder: Path) -> None:
    memo = DictMemo()
    before = digest(folder, memo)
    (row,) = memo.rows.values()
    row["blake3"] = "remembered"
    assert digest(folder, memo) == "remembered"
    (folder / "notes.txt").unlink()
    assert digest(folder, DictMemo()) == before
    one, other = folder / NAMES[0], folder / NAMES[1]
    swapped = one.read_bytes(), other.read_bytes()
    other.write_bytes(swapped[0])
    one.write_bytes(swapped[1])
    assert digest(folder, memo) not in (before, "remembered")


def test_a_decompression_bomb_is_one_lost_frame(folder: Path) -> None:
    header = (folder / NAMES[3]).read_bytes()
    bomb = bytearray(header)
    bomb[16:24] = (60000).to_bytes(4, "big") * 2
    (folder / NAMES[3]).write_bytes(bytes(bomb))
    frames, report = read(folder)
    assert numbers(frames) == [0, 1, 2, 4, 5]
    assert NAMES[3] in report.warnings[0]


def test_a_folder_without_images_is_refused(tmp_path: Path) -> None:
    (tmp_path / "film.mp4").write_bytes(b"")
    for call in (lambda: read(tmp_path), lambda: probe(tmp_path)):
        with pytest.raises(VideoError, match="folder"):
            call()
