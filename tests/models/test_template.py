"""Chat templates: the prompts that transformers renders, within bounds of time and memory."""

from __future__ import annotations

import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from sttm_cli.base.errors import ModelError
from sttm_cli.models import template
from sttm_cli.models.families.llava_qwen import TEMPLATE as LLAVA_VIDEO
from sttm_cli.models.registry import TINY
from tests import checkpoints, checkpoints_internvl, checkpoints_qwen
from tests.cli.process import sttm

SAMPLE = Path(__file__).parents[2] / "docs" / "sample.mp4"
SPECIAL = {"eos_token": "<|im_end|>", "pad_token": "</s>", "extra_special_tokens": ["<é>"]}
TURNS = [
    {"role": "user", "content": [{"type": "video"}, {"type": "text", "text": "wie viele? ü <b>"}]},
    {"role": "assistant", "content": [{"type": "text", "text": "drei\n"}]},
    {"role": "user", "content": [{"type": "text", "text": "{{ 1 }} '\"\\"}]},
]
TEMPLATES = {
    "tiny": (TINY / "chat_template.jinja").read_text(),
    "llava-onevision": checkpoints.TEMPLATE,
    "llava-video": LLAVA_VIDEO,
    "internvl": checkpoints_internvl.TEMPLATE,
    "qwen": checkpoints_qwen.TEMPLATE,
    "filters": "{{ messages | tojson(indent=2) }}{{ eos_token }}{{ extra_special_tokens | last }}",
    "namespace": (
        "{%- set ns = namespace(n=0) -%}\n  {%- for m in messages %}\n"
        "    {%- set ns.n = ns.n + 1 %}"
        "\n{% if loop.index > 1 %}{% break %}{% endif %}{{ m.role.upper().strip() }}{% endfor %}"
        "{{ ns.n }}{{ dict(a=1) }}{{ tools is none }}{{ documents }}{{ add_generation_prompt }}"
    ),
    "macro": (
        "{% macro part(c) %}{{ c.text if c.text is defined else '<video>' }}{% endmacro %}"
        "{% for m in messages %}{% for c in m.content %}{{ part(c) | trim }}{% endfor %}"
        "{% generation %}{{ m.role[::-1] }}{% endgeneration %}{% endfor %}"
    ),
    "day": "{{ strftime_now('%Y-%m-%d') }}{{ pad_token }}{{ nothing }}",
}


@pytest.mark.parametrize("name", TEMPLATES)
def test_prompts_are_those_of_transformers(name: str) -> None:
    from transformers.utils.chat_template_utils import render_jinja_template

    (theirs,), _ = render_jinja_template(
        [TURNS], chat_template=TEMPLATES[name], add_generation_prompt=True, **SPECIAL
    )
    assert template.render(TEMPLATES[name], TURNS, SPECIAL) == theirs


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{{ 'x' * 10 ** 9 }}", "memory"),
        ("{% set n = namespace(x='x') %}{% for i in range(99) %}{% set n.x = n.x ~ n.x %}"
         "{% endfor %}", "memory"),
        ("{{ '%999999999d' % 1 }}", "memory"),
        ("{{ 'x' * 3000000 }}", "a prompt of 3000000 characters"),
        ("{{ raise_exception('no video') }}", "no video"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "recursion"),
        ("{% for", "end of template"),
        ("{{ [].__class__.__base__.__subclasses__() }}", ""),
        ("{{ namespace(_a=1) }}", "cannot be stored"),
    ],
)  # fmt: skip
def test_a_template_that_fails_or_takes_too_much_memory_is_refused(text: str, reason: str) -> None:
    with pytest.raises(ModelError, match=f"cannot be rendered: .*{reason}"):
        template.render(text, TURNS, SPECIAL)
    assert "drei" in template.render(TEMPLATES["qwen"], TURNS, SPECIAL)


def test_a_template_that_never_ends_is_stopped_in_any_thread_and_the_next_prompt_is_right(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(template, "PATIENCE_S", 1.0)
    endless = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
    errors: list[str] = []

    def run() -> None:
        try:
            template.render(endless, TURNS, SPECIAL)
        except ModelError as error:
            errors.append(error.message)

    thread = threading.Thread(target=run)
    started = time.monotonic()
    thread.start()
    thread.join(60)
    assert time.monotonic() - started < 30
    assert errors == ["the model's chat template cannot be rendered: it takes too much time"]
    monkeypatch.undo()
    assert "drei" in template.render(TEMPLATES["qwen"], TURNS, SPECIAL)


def test_a_prompt_may_take_some_seconds_of_processor_time() -> None:
    resource = pytest.importorskip("resource")
    for _ in range(2):
        assert "drei" in template.render(TEMPLATES["qwen"], TURNS, SPECIAL)
        (child,) = (
            child
            for child in psutil.Process().children()
            if "sttm_cli.models.template_child" in child.cmdline()
        )
        spent = sum(child.cpu_times()[:2])
        assert spent < resource.prlimit(child.pid, resource.RLIMIT_CPU)[0] < spent + 10


def test_prompts_of_many_threads_are_not_mixed_up() -> None:
    def asked(number: int) -> str:
        turn = {"role": "user", "content": [{"type": "text", "text": f"question {number}"}]}
        return template.render(TEMPLATES["qwen"], [turn], SPECIAL)

    with ThreadPoolExecutor(8) as pool:
        prompts = list(pool.map(asked, range(100)))
    assert all(f"question {i}<|im_end|>" in prompt for i, prompt in enumerate(prompts))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked here")
def test_a_forked_process_starts_its_own() -> None:
    template.start()
    pid = os.fork()
    if pid == 0:
        ok = "drei" in template.render(TEMPLATES["qwen"], TURNS, SPECIAL)
        os._exit(0 if ok else 1)
    assert os.waitpid(pid, 0)[1] == 0
    assert "drei" in template.render(TEMPLATES["qwen"], TURNS, SPECIAL)


def test_a_command_with_an_endless_template_ends_with_4(tmp_path: Path) -> None:
    import shutil

    folder = Path(shutil.copytree(TINY, tmp_path / "model"))
    endless = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
    (folder / "chat_template.jinja").write_text(endless)
    ended = sttm("ask", SAMPLE, "how many?", "--model", folder, "--no-server", timeout=90)
    assert (ended.code, ended.out) == (4, "")
    assert "it takes too much time" in ended.err
    assert "Traceback" not in ended.err
