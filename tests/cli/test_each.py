"""`sttm ask --each`: every video of a folder gets its answers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image

from sttm_cli.runtime.compute import Compute
from tests.cli.process import Ended, sttm_here
from tests.cli.test_ask import QUESTION, SAMPLE

OTHER = "is there a circle?"


@pytest.fixture
def clips(tmp_path: Path) -> Path:
    """Two good videos, one of them in a folder below, a bad one, and a cover."""
    folder = tmp_path / "clips"
    (folder / "more").mkdir(parents=True)
    shutil.copy(SAMPLE, folder / "a.mp4")
    (folder / "more" / "b.mp4").write_bytes(SAMPLE.read_bytes() + b"\0")
    (folder / "bad.mp4").write_text("not a video")
    Image.new("RGB", (64, 64)).save(folder / "cover.png")
    return folder


def lines(ended: Ended) -> list[tuple[str, str]]:
    return [tuple(line.split("\t")) for line in ended.out.splitlines()]  # type: ignore[misc]


def test_a_folder_with_videos_is_not_taken_for_its_pictures(clips: Path) -> None:
    for command in (["ask", clips, QUESTION], ["chat", clips], ["inspect", clips]):
        ended = sttm_here(*command)
        assert (ended.code, ended.out) == (3, ""), command
        assert "it holds a.mp4, bad.mp4, more/b.mp4" in ended.err
        assert "--each" in ended.err
        assert "precompute" in ended.err


def test_a_folder_of_images_is_still_one_video(tmp_path: Path) -> None:
    for number in range(3):
        Image.new("RGB", (64, 64), (number * 80, 0, 0)).save(tmp_path / f"{number}.png")
    assert sttm_here("ask", tmp_path, QUESTION).code == 0


def test_every_video_is_answered_and_a_bad_one_costs_the_exit_code(clips: Path) -> None:
    ended = sttm_here("ask", clips, QUESTION, OTHER, "--each")
    assert ended.code == 1
    assert lines(ended) == [
        (str(clips / "a.mp4"), "three"),
        (str(clips / "a.mp4"), "yes"),
        (str(clips / "more" / "b.mp4"), "three"),
        (str(clips / "more" / "b.mp4"), "yes"),
    ]
    assert f"{clips / 'bad.mp4'}: failed" in ended.err
    assert "2 answered, 1 failed" in ended.err
    (clips / "bad.mp4").unlink()
    assert sttm_here("ask", clips, QUESTION, "--each").code == 0


def test_json_is_an_object_a_line_for_each_video_also_one_that_fails(clips: Path) -> None:
    sttm_here("precompute", clips)
    ended = sttm_here("ask", clips, QUESTION, "--each", "--json")
    reports = [json.loads(line) for line in ended.out.splitlines()]
    assert ended.code == 1
    assert [Path(r["video"]["path"]).name for r in reports] == ["a.mp4", "bad.mp4", "b.mp4"]
    failed = reports.pop(1)
    assert failed["schema"] == "sttm.error/1"
    assert failed["error"]["kind"] == "video"
    assert "is not a video" in failed["error"]["message"]
    assert failed["error"]["hint"]
    assert [r["schema"] for r in reports] == ["sttm.ask/1"] * 2
    assert [r["cache"]["hit"] for r in reports] == [True, True]
    assert [a["answer"] for r in reports for a in r["answers"]] == ["three", "three"]


def test_a_pattern_a_list_and_a_file_name_the_videos(clips: Path) -> None:
    one = [(str(clips / "a.mp4"), "three")]
    assert lines(sttm_here("ask", clips / "a.*", QUESTION, "--each")) == one
    assert lines(sttm_here("ask", clips / "a.mp4", QUESTION, "--each")) == one
    listed = f"{clips / 'a.mp4'}\n\n".encode()
    assert lines(sttm_here("ask", "-", QUESTION, "--each", stdin=listed)) == one
    asked = sttm_here("ask", clips / "a.mp4", "-", "--each", stdin=f"{QUESTION}\n")
    assert lines(asked) == one


def test_the_model_is_loaded_once_and_a_missing_one_ends_it(
    clips: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads, loading = [], Compute._loading

    def counted(self: Compute, clock: object) -> object:
        loads.append(1)
        return loading(self, clock)  # type: ignore[arg-type]

    monkeypatch.setattr(Compute, "_loading", counted)
    ended = sttm_here("ask", clips, QUESTION, "--each", "-m", "no-such")
    assert (ended.code, ended.out) == (4, "")
    assert sttm_here("ask", clips, QUESTION, "--each").code == 1
    assert len(loads) == 1


def test_choices_and_hostile_names_stay_one_line_each(clips: Path, tmp_path: Path) -> None:
    named = tmp_path / "two\twords\nand lines.mp4"
    shutil.copy(SAMPLE, named)
    ended = sttm_here("ask", named, QUESTION, "--each", "--choices", "two|three")
    (line,) = ended.out.splitlines()
    name, best, share = line.split("\t")
    assert name.endswith("two words and lines.mp4")
    assert best == "three"
    assert float(share) > 0.5


@pytest.mark.parametrize("flags", [["-c"], ["--subtitles", "a.srt"]])
def test_what_is_about_one_video_cannot_be_combined_with_each(
    clips: Path, flags: list[str]
) -> None:
    ended = sttm_here("ask", clips, QUESTION, "--each", *flags)
    assert ended.code == 2
    assert "--each" in ended.err
    assert flags[0] in ended.err


def test_an_address_is_not_a_folder() -> None:
    ended = sttm_here("ask", "http://127.0.0.1:1/a.mp4", QUESTION, "--each")
    assert ended.code == 2
    assert "is one video" in ended.err
