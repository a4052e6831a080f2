"""The command `sttm`, also as `python -m sttm_cli`."""

from __future__ import annotations

import atexit
import os
import sys
from contextlib import suppress
from typing import NoReturn


def main() -> NoReturn:
    """Run the command line, interrupted in good order from its very first import on."""
    codes: list[int] = []
    # What is registered first is called last: then all else is in order.
    atexit.register(_leave, codes)
    try:
        from sttm_cli.cli import main as run

        run()
    except KeyboardInterrupt:
        codes.append(130)
        sys.exit(130)
    except SystemExit as end:
        codes.append(end.code if isinstance(end.code, int) else 1)
        raise


def _leave(codes: list[int]) -> None:
    """End the process as it is: Python would first take a million objects apart, one by one,
    while the user waits for the prompt."""
    with suppress(OSError, ValueError):
        sys.stdout.flush()
        sys.stderr.flush()
    if codes:
        os._exit(codes[0])


if __name__ == "__main__":
    main()
