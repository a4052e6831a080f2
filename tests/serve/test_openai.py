"""The real OpenAI client, unchanged, asks about videos."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import torch

from sttm_cli import VideoQA
from sttm_cli.serve.app import make_app
from sttm_cli.serve.engine import Engine
from sttm_cli.serve.options import Options
from sttm_cli.serve.service import Service
from sttm_cli.serve.videos import Videos
from sttm_cli.settings.settings import Settings
from tests.serve.running import Running
from tests.web import Site, serving

SAMPLE = Path(__file__).parents[2] / "docs" / "sample.mp4"
COUNT, DIGIT = "how many shapes are there?", "which digit flashes?"


@pytest.fixture(scope="module")
def alone() -> dict[str, str]:
    """The answers as this process computes them."""
    with VideoQA(no_cache=True) as qa:
        prepared = qa.prepare(SAMPLE)
        answers = {q: qa.answer(prepared, q).text for q in (COUNT, DIGIT)}
        later = qa.answer(prepared, DIGIT, history=[(COUNT, answers[COUNT])])
        return {**answers, "later": later.text}


@pytest.fixture(scope="module")
def client(server: Running) -> Iterator[Any]:
    with server.openai() as client:
        yield client


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    with serving(SAMPLE) as site:
        yield site


def about(url: str | None, text: str, **part: Any) -> list[dict[str, Any]]:
    video = {"type": "video_url", "video_url": {"url": url}, **part}
    return [{"role": "user", "content": [video, {"type": "text", "text": text}]}]


def test_a_local_video_whole_and_streamed(
    client: Any, allowed: Path, alone: dict[str, str]
) -> None:
    messages = about((allowed / "sample.mp4").as_uri(), COUNT)
    whole = client.chat.completions.create(model="tiny", messages=messages)
    assert whole.choices[0].message.content == alone[COUNT]
    assert whole.choices[0].finish_reason == "stop"
    chunks = list(
        client.chat.completions.create(
            model="tiny", messages=messages, stream=True, stream_options={"include_usage": True}
        )
    )
    pieces = [c.choices[0].delta.content or "" for c in chunks if c.choices]
    assert "".join(pieces) == alone[COUNT]
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert {c.id for c in chunks} != {whole.id}
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "stop"


def test_an_http_video_and_a_follow_up(
    client: Any, site: Site, alone: dict[str, str], server: Running
) -> None:
    messages = about(site.at("video.mp4"), COUNT)
    first = client.chat.completions.create(model="tiny", messages=messages)
    messages += [
        {"role": "assistant", "content": first.choices[0].message.content},
        {"role": "user", "content": DIGIT},
    ]
    later = client.chat.completions.create(model="tiny", messages=messages)
    assert first.choices[0].message.content == alone[COUNT]
    assert later.choices[0].message.content == alone["later"]
    assert later.usage.prompt_tokens > first.usage.prompt_tokens
    details = later.usage.prompt_tokens_details
    assert details.cached_tokens == later.sttm["tokens"]["prefix"] > 0
    assert details.video_tokens <= 0.5 * details.video_tokens_full
    assert later.sttm["cache"]["tier"] == "device"


def test_a_video_in_the_request_is_known_by_its_uuid(client: Any, alone: dict[str, str]) -> None:
    url = "data:video/mp4;base64," + base64.b64encode(SAMPLE.read_bytes()).decode()
    first = client.chat.completions.create(model="tiny", messages=about(url, COUNT, uuid="film"))
    again = client.chat.completions.create(model="tiny", messages=about(None, DIGIT, uuid="film"))
    assert first.choices[0].message.content == alone[COUNT]
    assert again.choices[0].message.content == alone[DIGIT]
    with pytest.raises(openai.NotFoundError, match="uuid"):
        client.chat.completions.create(model="tiny", messages=about(None, DIGIT, uuid="other"))


def test_settings_of_the_video_come_in_an_extra_field(client: Any, allowed: Path) -> None:
    made = client.chat.completions.create(
        model="tiny",
        messages=about(str(allowed / "sample.mp4"), COUNT),
        extra_body={"sttm": {"budget": 0.25, "method": "evs", "frames": 4, "end": "0:06"}},
    )
    assert made.sttm["tokens"]["method"] == "evs"
    details = made.usage.prompt_tokens_details
    assert len(made.sttm["video"]["frame_times_s"]) == 4
    assert max(made.sttm["video"]["frame_times_s"]) < 6
    assert 0 < details.video_tokens <= 0.25 * details.video_tokens_full


def test_tokens_are_told_with_their_likelihood(
    client: Any, allowed: Path, alone: dict[str, str]
) -> None:
    asked = {
        "model": "tiny",
        "messages": about(str(allowed / "sample.mp4"), COUNT),
        "logprobs": True,
        "top_logprobs": 3,
    }
    (choice,) = client.chat.completions.create(**asked).choices
    tokens = choice.logprobs.content
    known: list[tuple[int, torch.Tensor]] = []
    with VideoQA(no_cache=True) as qa:
        qa.answer(qa.prepare(SAMPLE), COUNT, on_token=lambda *chosen: known.append(chosen))
    assert "".join(token.token for token in tokens).strip() == alone[COUNT]
    for token, (chosen, logits) in zip(tokens, known, strict=True):
        assert token.logprob == pytest.approx(float(logits.log_softmax(-1)[chosen]), abs=1e-4)
        likeliest = [other.logprob for other in token.top_logprobs]
        assert likeliest == sorted(likeliest, reverse=True)
        assert (len(likeliest), likeliest[0]) == (3, token.logprob)
    streamed = client.chat.completions.create(**asked, stream=True)
    chunks = [c.choices[0].logprobs.content for c in streamed if c.choices[0].logprobs]
    assert [token.token for part in chunks for token in part] == [t.token for t in tokens]


def test_a_seed_draws_the_same_answer_again(client: Any, allowed: Path) -> None:
    def draw(seed: int) -> str:
        made = client.chat.completions.create(
            model="tiny",
            messages=about(str(allowed / "sample.mp4"), COUNT),
            temperature=50.0,
            seed=seed,
            max_tokens=12,
        )
        assert made.usage.completion_tokens <= 12
        return str(made.choices[0].message.content)

    assert draw(1) == draw(1) != draw(2)


def test_a_model_is_listed_and_another_is_unknown(client: Any, allowed: Path) -> None:
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").id == "tiny"
    with pytest.raises(openai.NotFoundError, match="tiny"):
        client.chat.completions.create(model="gpt", messages=about("a.mp4", COUNT))


def test_failures_are_the_clients_own_exceptions(client: Any, allowed: Path, site: Site) -> None:
    def fail(url: str, kind: type[openai.APIStatusError], **more: Any) -> str:
        with pytest.raises(kind) as caught:
            client.chat.completions.create(model="tiny", messages=about(url, COUNT), **more)
        return str(caught.value)

    (allowed / "text.mp4").write_text("no video")
    assert "the file" in fail(str(allowed / "text.mp4"), openai.UnprocessableEntityError)
    fail(str(allowed / "none.mp4"), openai.UnprocessableEntityError)
    fail(site.at("empty"), openai.UnprocessableEntityError)
    fail(str(SAMPLE), openai.PermissionDeniedError)
    fail(str(allowed / "sample.mp4"), openai.BadRequestError, temperature=-1)
    fail(str(allowed / "sample.mp4"), openai.BadRequestError, stream=True, n=2)


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"top_k": 5}, "top_k"),
        ({"top_logprobs": 5}, "logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "0 to 20"),
        ({"stop": ["."]}, "stop"),
        ({"max_completion_tokens": 0}, "max-new-tokens 0"),
        ({"modalities": ["text", "audio"]}, "modalities"),
        ({"sttm": {"budgte": 0.3}}, "budgte"),
        ({"sttm": {"method": "evd"}}, "did you mean evs"),
    ],
)
def test_what_could_change_the_answer_is_refused_where_it_is_not_supported(
    client: Any, allowed: Path, fields: dict[str, Any], named: str
) -> None:
    messages = about(str(allowed / "sample.mp4"), COUNT)
    with pytest.raises(openai.BadRequestError, match=named):
        client.chat.completions.create(model="tiny", messages=messages, extra_body=fields)


def test_fields_that_change_no_answer_are_passed_over_and_those_of_a_video_are_not(
    client: Any, allowed: Path, alone: dict[str, str]
) -> None:
    path = str(allowed / "sample.mp4")
    made = client.chat.completions.create(
        model="tiny", messages=about(path, COUNT), user="me", store=False, n=1, stop=[]
    )
    assert made.choices[0].message.content == alone[COUNT]
    with pytest.raises(openai.BadRequestError, match="'fps' is not supported in a video part"):
        client.chat.completions.create(model="tiny", messages=about(path, COUNT, fps=2))


def test_a_model_in_a_folder_goes_by_the_folders_name(tmp_path: Path) -> None:
    async def ask() -> tuple[Any, Any]:
        engine = Engine(Settings(model=str(tmp_path)), Options())
        app = make_app(Service(engine, Videos(Options()), Options(), trusted=True))
        way = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=way, base_url="http://localhost") as http:
            listed, unknown = await http.get("/v1/models"), await http.get("/v1/models/other")
        engine.close()
        return listed.json(), unknown.json()

    listed, unknown = asyncio.run(ask())
    assert [model["id"] for model in listed["data"]] == [tmp_path.name]
    assert str(tmp_path) not in json.dumps([listed, unknown])


def test_health_and_metrics_tell_of_it(server: Running, client: Any, allowed: Path) -> None:
    with server.http() as http:
        assert http.get("/health").json()["status"] == "ready"
    before = server.metric('sttm_videos_total{tier="device"}')
    messages = about(str(allowed / "sample.mp4"), COUNT)
    for _ in range(2):
        client.chat.completions.create(model="tiny", messages=messages)
    assert server.metric('sttm_videos_total{tier="device"}') >= before + 1
    assert server.metric('sttm_requests_total{endpoint="/v1/chat/completions",status="200"}') > 0
    assert server.metric('sttm_held_bytes{tier="device"}') > 0
    assert server.metric('sttm_stage_seconds_count{stage="answer"}') > 0
    assert server.metric("sttm_queue") == 0
