"""How much memory KVs may take where nobody said."""

from __future__ import annotations

import os

from sttm_cli.serve.options import Options


def bounds(device: str, options: Options) -> tuple[int, int]:
    """Bytes for KVs on the device and in host memory: as given, else a share of what there is.

    An accelerator gives a fifth of its memory and the host another eighth of its own; where the
    device is the host, there is one tier with a quarter.
    """
    host = _host_bytes()
    if device.startswith("cuda"):
        import torch

        of_device, of_host = torch.cuda.mem_get_info(device)[1] // 5, host // 8
    elif device == "cpu":
        of_device, of_host = host // 4, 0
    else:
        of_device, of_host = host // 8, host // 8
    given = options.device_bytes, options.host_bytes
    return (
        of_device if given[0] is None else given[0],
        of_host if given[1] is None else given[1],
    )


def _host_bytes() -> int:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return 8 << 30
