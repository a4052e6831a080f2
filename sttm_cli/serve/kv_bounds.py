"""Default bounds for the memory of KVs."""

from __future__ import annotations

import psutil

from sttm_cli.serve.options import Options


def bounds(device: str, options: Options) -> tuple[int, int]:
    """Bytes for KVs on the device and in host memory: as given, else a share of the memory.

    An accelerator gives a fifth of its memory and the host an eighth of its own; if the device is
    the host, there is one tier with a quarter.
    """
    host: int = psutil.virtual_memory().total
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
