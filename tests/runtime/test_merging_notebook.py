"""`merging` in a notebook's kernel, whose own threads run beside the cells."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

nbclient = pytest.importorskip("nbclient", reason="notebooks need nbclient")
nbformat = pytest.importorskip("nbformat", reason="notebooks need nbformat")
pytest.importorskip("ipykernel", reason="notebooks need ipykernel")

LOAD = """
import threading, torch, sttm_cli
from transformers import AutoModelForImageTextToText, AutoProcessor
from sttm_cli.models.registry import TINY
from tests.merged import SAMPLE, asking, inputs_of
from tests.runtime.test_merging_refusals import case_frames

model = AutoModelForImageTextToText.from_pretrained(TINY, dtype=torch.float32).eval()
processor = AutoProcessor.from_pretrained(TINY)
with asking(TINY) as qa:
    frames = case_frames(qa)
inputs = inputs_of(processor, frames, "how many shapes are there?")
print(threading.active_count() > 1)
"""
MERGE = """
with sttm_cli.merging(model, budget=0.3) as stats:
    out = model.generate(**inputs, do_sample=False, max_new_tokens=8)
print(processor.decode(out[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip())
print(stats.video_kept < stats.video_full / 2)
print(any(part._forward_hooks or part._forward_pre_hooks for part in model.get_decoder().layers))
"""


def test_a_block_in_a_cell_merges_and_runs_again(tmp_path: Path) -> None:
    # A cell that is run again enters a new block.
    cells = [nbformat.v4.new_code_cell(source) for source in (LOAD, MERGE, MERGE)]
    book = nbformat.v4.new_notebook(cells=cells)
    book.metadata.kernelspec = {"name": "sttm", "display_name": "sttm", "language": "python"}
    client = nbclient.NotebookClient(
        book,
        timeout=120,
        km=kernel(tmp_path),
        resources={"metadata": {"path": str(Path(__file__).parents[2])}},
    )
    client.execute()
    printed = ["".join(out.get("text", "") for out in cell.outputs if out.name == "stdout")
               for cell in book.cells]  # fmt: skip
    assert printed == ["True\n", "three\nTrue\nFalse\n", "three\nTrue\nFalse\n"]


def kernel(folder: Path) -> Any:
    """A kernel of this interpreter, whatever is installed for the user."""
    from jupyter_client.kernelspec import KernelSpec
    from jupyter_client.manager import AsyncKernelManager

    manager = AsyncKernelManager(connection_file=str(folder / "kernel.json"))
    manager._kernel_spec = KernelSpec(
        argv=[sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"],
        display_name="sttm",
        language="python",
    )
    return manager
