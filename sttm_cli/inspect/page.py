"""One page to look through a video and what budgets left of it: a single file, offline."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import zlib
from collections.abc import Mapping, Sequence
from html import escape
from importlib.resources import files
from io import BytesIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sttm_cli.base.reports import InspectReport
from sttm_cli.base.types import Json
from sttm_cli.inspect.png import LEVELS, SEAMS
from sttm_cli.inspect.view import Frames, Kept, View, cell_colours

QUALITY = 80
"""Of the frames, as JPEG."""

Table = tuple[Sequence[str], Sequence[Sequence[str]], str]
"""Names of the columns, a row for each budget, a note below."""


def report_page(
    report: InspectReport,
    view: View,
    budgets: Sequence[Kept],
    *,
    facts: Mapping[str, str],
    tables: Sequence[Table],
) -> str:
    """The page's HTML: with time slider and budget switch, needing nothing from elsewhere.

    `report` is the object that `sttm inspect --json` prints; `budgets` go with its rows. The page
    contains a small picture of each step of the grid, the mean colour of each finest cell once, and
    the token of each cell and the box of each token once per budget: its script draws the rest
    from them.
    """
    script, style = _part("page.js"), _part("page.css")
    fields = {
        # Only what was written here may run or be loaded, whatever a name in the data says.
        "policy": f"default-src 'none'; img-src data:; style-src '{_hash(style)}'; "
        f"script-src '{_hash(script)}'",
        "title": escape(facts["name"]),
        "about": escape(f"{facts['model']}; {facts['grid']}"),
        "style": style,
        "script": script,
        "facts": "".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in facts.items()),
        "tables": "".join(_table(table) for table in tables),
        "asked": _times(report["sampled"]["asked_s"]),
        "got": _times(report["sampled"]["times_s"]),
        "data": _json(_payload(report, view, budgets)),
    }
    # In one pass: a value is never searched for fields.
    return re.sub(r"\{\{(\w+)\}\}", lambda found: fields[found[1]], _part("page.html"))


def _payload(report: InspectReport, view: View, budgets: Sequence[Kept]) -> Json:
    _, height, width, _ = view.frames.shape
    return {
        "inspect": report,
        "times": [round(float(time), 3) for time in view.times_s],
        "width": width,
        "height": height,
        "levels": [f"rgb{colour}" for colour in LEVELS],
        "seams": [f"rgb{colour}" for colour in SEAMS],
        "images": [_jpeg(frame) for frame in view.frames],
        "cells": _packed(cell_colours(view.frames, budgets[0].tokens)),
        # Tokens are numbered in the order of the cells: the steps between them are small.
        "tokens": [
            _packed(np.diff(kept.tokens.ravel(), prepend=0).astype("<i4")) for kept in budgets
        ],
        "boxes": [_packed(kept.boxes.astype("<i4")) for kept in budgets],
    }


def _table(table: Table) -> str:
    names, rows, note = table
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in names)
    lines = []
    for number, (first, *cells) in enumerate(rows):
        line = "".join(f"<td>{escape(cell)}</td>" for cell in cells)
        lines.append(f'<tr data-budget="{number}"><th scope="row">{escape(first)}</th>{line}</tr>')
    return (
        f'<div class="table" tabindex="0" role="region" aria-label="{escape(", ".join(names))}">'
        f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table></div>"
        f'<p class="note">{escape(note)}</p>'
    )


def _times(times: Sequence[float]) -> str:
    return " ".join(f"{time:.2f}" for time in times)


def _json(value: Json) -> str:
    """JSON that cannot end the script element around it."""
    return json.dumps(value, separators=(",", ":")).replace("<", "\\u003c")


def _jpeg(frame: Frames) -> str:
    file = BytesIO()
    Image.fromarray(frame).save(file, "JPEG", quality=QUALITY, optimize=True)
    return base64.b64encode(file.getvalue()).decode()


def _packed(array: NDArray[np.generic]) -> str:
    return base64.b64encode(zlib.compress(array.tobytes(), 9)).decode()


def _hash(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def _part(name: str) -> str:
    return files("sttm_cli.inspect").joinpath(name).read_text(encoding="utf-8")
