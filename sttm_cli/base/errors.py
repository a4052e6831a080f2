"""The errors that a user can meet, with their exit codes.

SttmError                 1   any other error
├── UsageError            2   an invalid setting
│   └── ContextError      2   a question that does not fit the model's context
├── VideoError            3   the video cannot be read
│   └── DisturbedError    3   reading the video was disturbed; a retry may succeed
├── ModelError            4   the model is missing or not supported
├── OutOfMemoryError      5   out of memory
└── CacheError            1   the cache cannot be used as requested
"""

from __future__ import annotations


class SttmError(Exception):
    """An error: `message`, what to do (`hint`), and the exit code of the process."""

    kind = "error"
    exit_code = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message


class UsageError(SttmError, ValueError):
    """An invalid setting, or settings that cannot be combined."""

    kind = "usage"
    exit_code = 2


class ContextError(UsageError):
    """The question, with the turns before it, does not fit the model's context."""

    kind = "context"


class VideoError(SttmError):
    """The video is missing, damaged beyond use, or holds no video stream."""

    kind = "video"
    exit_code = 3


class DisturbedError(VideoError):
    """The file changed, or its reader was ended, during reading.

    The frames read so far are unreliable; nothing made from them may be stored.
    """


class ModelError(SttmError):
    """The model is missing, incomplete or of an architecture that is not supported."""

    kind = "model"
    exit_code = 4


class OutOfMemoryError(SttmError):
    """The machine or the device has not enough memory for these settings."""

    kind = "memory"
    exit_code = 5


class CacheError(SttmError):
    """The cache folder or an entry in it cannot be used as requested."""

    kind = "cache"
    exit_code = 1
