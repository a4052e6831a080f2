"""An HTML page, in one file without external resources, that shows a video at several budgets."""

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
"""JPEG quality of the frames."""

Table = tuple[Sequence[str], Sequence[Sequence[str]], str]
"""Column names, a row per budget, a note below."""


def report_page(
    report: InspectReport,
    view: View,
    budgets: Sequence[Kept],
    *,
    facts: Mapping[str, str],
    tables: Sequence[Table],
) -> str:
    """Build the page's HTML, with a time slider and a budget switch.

    `report` is the object that `sttm inspect --json` prints; `budgets` correspond to its rows. The
    page contains a thumbnail per grid step, the mean colour of each finest cell, and, per budget,
    the token of each cell and the box of each token; its script draws the rest from them.
    """
    script, style = _part("page.js"), _part("page.css")
    fields = {
        # Restricts the page to this script and style, whatever the data contain.
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
    # A single pass, so that values are not searched for fields.
    return re.sub(r"\{\{(\w+)\}\}", lambda match: fields[match[1]], _part("page.html"))


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
        # Tokens are numbered in the order of the cells, so the differences are small.
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
    """Encode JSON so that it cannot end the script element around it."""
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
