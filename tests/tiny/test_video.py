"""Scenes written as H.264: what decodes is what was drawn."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest

from sttm_cli.tiny.drawing import draw
from sttm_cli.tiny.scenes import make_scene
from sttm_cli.tiny.textures import textured
from sttm_cli.tiny.video import FPS, SIDE, film_frames, main, write_video

FILMS = Path(__file__).parents[3] / "shared" / "videos"


def test_a_written_scene_decodes_to_the_frames_drawn_at_their_times(tmp_path: Path) -> None:
    scene = make_scene(3, seconds=3)
    backdrop = textured(np.random.default_rng(3), side=SIDE)
    write_video(tmp_path / "scene.mp4", scene, backdrop)
    with av.open(str(tmp_path / "scene.mp4")) as container:
        stream = container.streams.video[0]
        assert stream.codec_context.name == "h264"
        frames = list(container.decode(stream))
    assert [round(float(f.time) * FPS) for f in frames] == list(range(3 * FPS))
    for frame in frames[::FPS]:
        t = round(float(frame.time) * FPS) / FPS
        drawn = draw(scene, t, backdrop(t)).astype(int)
        assert np.abs(frame.to_ndarray(format="rgb24").astype(int) - drawn).mean() < 8


def test_the_command_writes_a_small_video_and_prints_the_truth(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "sample.mp4"
    monkeypatch.setattr("sys.argv", ["video", "12", str(path), "--seconds", "2"])
    main()
    assert 0 < path.stat().st_size < 300_000
    assert "?" in capsys.readouterr().out


def test_a_film_becomes_square_background_frames() -> None:
    film = FILMS / "mdn_flower.webm"
    if not film.exists():
        pytest.skip("needs ../shared/videos/mdn_flower.webm")
    frames = film_frames(film, seconds=2)
    assert frames.shape == (2 * FPS, SIDE, SIDE, 3)
    assert np.abs(frames[0].astype(int) - frames[-1]).mean() > 1
