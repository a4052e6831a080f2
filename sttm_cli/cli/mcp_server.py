"""The tools of `sttm mcp` in the Model Context Protocol; imported by that command alone."""

from __future__ import annotations

import os
import signal
from collections.abc import Awaitable, Callable
from typing import Annotated, Any, NoReturn, TypeVar

import anyio
import anyio.from_thread
import anyio.to_thread
from mcp.server import MCPServer
from mcp.server.mcpserver import Context, Image
from mcp.server.mcpserver.exceptions import ToolError
from mcp.server.mcpserver.tools import Tool
from mcp_types import ToolAnnotations
from pydantic import Field

from sttm_cli import __version__
from sttm_cli.base.errors import SttmError
from sttm_cli.base.events import Progressed, Shown, TextPiece
from sttm_cli.cli.output import STAGES
from sttm_cli.cli.video_tools import (
    PreparedVideo,
    Show,
    VideoAnswer,
    VideoFacts,
    VideoList,
    VideoTools,
)

T = TypeVar("T")
INSTRUCTIONS = (
    "Ask about local videos. 'list_videos' gives their paths. A model reads a video once, which "
    "may take minutes for a long one on a slow machine; later questions about it start from its "
    "stored KV cache. Sound is not read."
)
PARTS = {"download": 0, "stdin": 0, "import": 0, "load": 10, "decode": 20, "prefill": 80}
"""Where the stages begin in the progress of a call, in percent."""
ANSWERING = 95

Video = Annotated[
    str, Field(description="Path of a video file as 'list_videos' gives it, or a folder of images.")
]
Question = Annotated[
    str, Field(description="One question in plain words. Questions do not know of each other.")
]
Budget = Annotated[
    str | float | None,
    Field(
        description="At most this share (0.3 or '30%') or number (16 or more) of the video's "
        "tokens is kept; less is faster and coarser. Leave it out for the server's own."
    ),
]
Frames = Annotated[
    int | None, Field(description="At most this many frames of the video are read.", ge=1)
]
Time = str | float | None
Start = Annotated[Time, Field(description="Begin here: seconds, or '[HH:]MM:SS'.")]
End = Annotated[Time, Field(description="End here: seconds, or '[HH:]MM:SS'.")]


class Stages:
    """What a client hears of a call in a thread: progress that only grows, to 100.

    Raises where the call was cancelled.
    """

    def __init__(self, context: Context[Any, Any]) -> None:
        self._context, self._last = context, -1.0

    def __call__(self, event: Shown) -> None:
        anyio.from_thread.check_cancelled()
        if isinstance(event, Progressed) and event.stage in PARTS:
            begin = PARTS[event.stage]
            end = min([p for p in (*PARTS.values(), ANSWERING) if p > begin])
            share = event.done / event.of if event.of else 0.0
            self._tell(begin + (end - begin) * min(1.0, share), STAGES[event.stage])
        elif isinstance(event, TextPiece):
            self._tell(ANSWERING, "answering")

    def _tell(self, progress: float, message: str) -> None:
        if progress > self._last:
            self._last = progress
            anyio.from_thread.run(self._context.report_progress, progress, 100.0, message)


def build(tools: VideoTools) -> MCPServer[Any]:
    """A server with the five tools, which `tools` carries out."""
    one_at_a_time = anyio.CapacityLimiter(1)

    async def worked(
        work: Callable[[Show], T], context: Context[Any, Any], limiter: anyio.CapacityLimiter | None
    ) -> T:
        """The result of `work` in a thread. Raises ToolError for what a user can meet."""
        try:
            return await anyio.to_thread.run_sync(work, Stages(context), limiter=limiter)
        except SttmError as error:
            raise ToolError(f"{error.message}\n{error.hint}".rstrip()) from error

    async def ask_video(
        video: Video,
        question: Question,
        context: Context[Any, Any],
        budget: Budget = None,
        frames: Frames = None,
        start: Start = None,
        end: End = None,
    ) -> VideoAnswer:
        choices = {"budget": budget, "frames": frames, "start": start, "end": end}
        return await worked(
            lambda show: tools.ask(video, question, choices, show), context, one_at_a_time
        )

    async def prepare_video(
        video: Video,
        context: Context[Any, Any],
        budget: Budget = None,
        frames: Frames = None,
        start: Start = None,
        end: End = None,
    ) -> PreparedVideo:
        choices = {"budget": budget, "frames": frames, "start": start, "end": end}
        return await worked(
            lambda show: tools.prepare(video, choices, show), context, one_at_a_time
        )

    async def list_videos(
        context: Context[Any, Any],
        folder: Annotated[
            str | None, Field(description="Only below this folder, as a path.")
        ] = None,
    ) -> VideoList:
        return await worked(lambda show: tools.listing(folder), context, None)

    async def frame_at(
        video: Video,
        time: Annotated[str | float, Field(description="Seconds, or '[HH:]MM:SS'.")],
        context: Context[Any, Any],
    ) -> list[Image | str]:
        picture, about = await worked(lambda show: tools.frame(video, time), context, None)
        return [Image(data=picture, format="jpeg"), about]

    async def video_info(video: Video, context: Context[Any, Any]) -> VideoFacts:
        return await worked(lambda show: tools.info(video), context, None)

    reads = ToolAnnotations(read_only_hint=True, open_world_hint=False)
    stores = ToolAnnotations(
        read_only_hint=False, destructive_hint=False, idempotent_hint=True, open_world_hint=False
    )
    return MCPServer(
        "sttm",
        title="Questions about videos",
        instructions=INSTRUCTIONS,
        version=__version__,
        log_level="ERROR",
        tools=[
            _tool(
                ask_video,
                stores,
                "Answer one question about a video's pictures (not its sound). The first "
                "question about a video takes longest; what the model made of it is stored, and "
                "later questions with the same settings are answered in a moment.",
            ),
            _tool(
                prepare_video,
                stores,
                "Have the model read a video ahead of questions, with the same settings that will "
                "be asked with, and store the result. Not needed before 'ask_video'.",
            ),
            _tool(
                list_videos,
                reads,
                "List the video files that can be asked about, with what is already prepared.",
            ),
            _tool(
                frame_at,
                reads,
                "The picture that a video shows at one time, as JPEG.",
                pictures=True,
            ),
            _tool(
                video_info,
                reads,
                "A video's duration, picture size, frame rate, codec and digest, and what is "
                "prepared of it.",
            ),
        ],
    )


def _tool(
    function: Callable[..., Awaitable[Any]],
    hints: ToolAnnotations,
    about: str,
    *,
    pictures: bool = False,
) -> Tool:
    """A tool that refuses arguments it does not know, rather than pass over them."""
    tool = Tool.from_function(
        function, description=about, annotations=hints, structured_output=not pictures
    )
    arguments = tool.fn_metadata.arg_model
    arguments.model_config["extra"] = "forbid"
    arguments.model_rebuild(force=True)
    tool.parameters = arguments.model_json_schema(by_alias=True)
    return tool


def run(tools: VideoTools) -> None:
    """Serve on stdin and stdout until stdin ends, or until a signal ends the process at once.

    The thread that waits for stdin would keep it from ending otherwise, and so would one that
    computes. What is stored survives it: nothing is published before it is whole.
    """

    def end(number: int, frame: object) -> NoReturn:
        tools.leave()
        os._exit(130 if number == signal.SIGINT else 128 + number)

    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        # Windows has no SIGHUP.
        if (number := getattr(signal, name, None)) is not None:
            signal.signal(number, end)
    build(tools).run("stdio")
