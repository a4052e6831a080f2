"""The report is one page that needs nothing from elsewhere and says what was measured."""

from __future__ import annotations

import base64
import io
import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sttm_cli.inspect import report_page
from tests.inspect.page import Page, sha256, unpacked
from tests.inspect.scene import everything, halves, view

HOSTILE = '</script></title><img src=//example.org/x onerror="window.ran=1">{{data}}&amp;\'.mp4'
NAMES = ("budget", "kept")


def report(name: str) -> dict[str, Any]:
    return {
        "video": {"path": name, "duration_s": 2.0},
        "grid": [2, 2, 4],
        "budgets": [
            {"budget": kept.budget, "video_full": 16, "video_kept": len(kept.boxes)}
            for kept in (everything(), halves())
        ],
        "sampled": {"asked_s": [0.0, 1.0], "times_s": [0.0, 1.02]},
    }


def page(name: str = "cat.mp4") -> str:
    return report_page(
        report(name),
        view(),
        [everything(), halves()],
        facts={"name": name, "model": "tiny", "grid": "2 x 2 x 4"},
        tables=[(NAMES, [("1", "16"), ("0.5", "2")], "a note about <both>")],
    )


def test_the_page_holds_what_inspect_tells_and_the_token_of_each_cell() -> None:
    data = Page(page()).data
    assert data["inspect"] == report("cat.mp4")
    assert data["times"] == [0.0, 1.0]
    for packed, kept in zip(data["tokens"], (everything(), halves()), strict=True):
        tokens = unpacked(packed, "<i4").cumsum().reshape(2, 2, 4)
        assert np.array_equal(tokens, kept.tokens)
    for packed, kept in zip(data["boxes"], (everything(), halves()), strict=True):
        assert np.array_equal(unpacked(packed, "<i4").reshape(-1, 5), kept.boxes)
    colours = unpacked(data["cells"], np.uint8).reshape(2, 2, 4, 3)
    assert np.array_equal(colours[0, 0], [[200, 0, 0]] * 2 + [[0, 0, 200]] * 2)
    pictures = [Image.open(io.BytesIO(base64.b64decode(image))) for image in data["images"]]
    assert [picture.size for picture in pictures] == [(data["width"], data["height"])] * 2


def test_tables_facts_and_times_are_there_without_a_script() -> None:
    found = Page(page())
    assert found.texts["th"] == ["budget", "kept", "1", "0.5"]
    assert found.texts["td"] == ["16", "2"]
    assert "a note about <both>" in found.texts["p"]
    assert found.texts["dd"] == ["cat.mp4", "tiny", "2 x 2 x 4"]
    assert any("0.00 1.02" in text for text in found.texts["p"])


def test_the_page_may_load_nothing_and_run_nothing_but_its_own_script() -> None:
    found = Page(page())
    assert [a for _, a in found.elements if a.get("src") or a.get("href")] == []
    script, style = found.texts["script"][1], found.texts["style"][0]
    assert found.policy == (
        f"default-src 'none'; img-src data:; style-src {sha256(style)}; script-src {sha256(script)}"
    )
    for loading in ("fetch(", "import(", "XMLHttp", "innerHTML", "eval(", "@import", "url("):
        assert loading not in script + style


def test_controls_have_labels() -> None:
    found = Page(page())
    needed = [a for tag, a in found.elements if tag in ("canvas", "input")]
    assert all(attributes.get("aria-label") for attributes in needed)
    assert found.texts["legend"] == ["Budget"]


def test_a_hostile_name_is_text_and_nothing_else() -> None:
    found = Page(page(HOSTILE))
    assert found.texts["h1"] == found.texts["dd"][:1] == [HOSTILE]
    assert found.data["inspect"]["video"]["path"] == HOSTILE
    plain = Page(page())
    assert [tag for tag, _ in found.elements] == [tag for tag, _ in plain.elements]
    assert found.policy == plain.policy


def test_frames_are_in_the_page_once_whatever_the_budgets() -> None:
    found = Page(page()).data
    assert len(found["images"]) == 2
    assert max(map(len, found["tokens"])) < 100


def browse(path: Path, *lines: str) -> dict[str, Any]:
    if find_spec("PyQt6") is None or find_spec("PyQt6.QtWebEngineWidgets") is None:
        pytest.skip("no browser to try the report in: pip install PyQt6-WebEngine brings one")
    done = subprocess.run(
        [sys.executable, "-m", "tests.inspect.browser", str(path), "1000", "900"],
        input="\n".join(lines),
        capture_output=True,
        text=True,
        timeout=60,
    )
    if "cannot open shared object" in done.stderr:
        pytest.skip(f"the browser lacks a library: {done.stderr.strip().splitlines()[-1]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


# Of a copy: Chromium warns of pixels that are read twice from one canvas.
PIXEL = (
    "(() => { const pen = document.createElement('canvas').getContext('2d'); "
    "pen.drawImage(document.getElementById('%s'), %s); "
    "return [...pen.getImageData(0, 0, 1, 1).data].join() })()"
)


def test_in_a_browser_slider_keys_strip_and_budgets_work_and_nothing_is_loaded(
    tmp_path: Path,
) -> None:
    path = tmp_path / "report.html"
    path.write_text(page(HOSTILE), encoding="utf-8")
    caption = "document.getElementById('caption').textContent"
    slider = "document.getElementById('step')"
    key = "document.dispatchEvent(new KeyboardEvent('keydown', {key: 'ArrowLeft'})); 1"
    found = browse(
        path,
        "document.documentElement.dataset.ready",
        "document.getElementById('kept').textContent",
        caption,
        f"{slider}.value = 1; {slider}.dispatchEvent(new Event('input')); 1",
        caption,
        PIXEL % ("cells", "-20, -20"),
        "document.querySelectorAll('#budgets input')[0].click(); 1",
        "document.getElementById('kept').textContent",
        caption,
        PIXEL % ("means", "-5, -5"),
        PIXEL % ("cells", "-200, -30"),
        key,
        caption,
        "document.querySelector('tr.chosen').dataset.budget",
        "String(window.ran)",
    )
    assert found["console"] == []
    assert found["requests"] == []
    values = [value for value in found["values"] if value != 1]
    assert values[:2] == ["yes", "2 of 16 tokens kept (12.5 %)"]
    assert values[2:4] == ["00:00  8 → 2 tokens", "00:01  8 → 0 tokens"]
    # Carried over: red, faded to the white of the card; then red itself.
    faded = [int(part) for part in values[4].split(",")]
    assert faded[0] > 200
    assert min(faded[1:3]) > 150
    # Nothing is merged: the edge of a cell is as red as the frame.
    edge = [int(part) for part in values.pop(8).split(",")]
    assert edge[0] > 150
    assert max(edge[1:3]) < 60
    assert values[5:] == [
        "16 of 16 tokens kept (100.0 %), nothing is merged",
        "00:01  8 → 8 tokens",
        "200,0,0,255",
        "00:00  8 → 8 tokens",
        "0",
        "undefined",
    ]
