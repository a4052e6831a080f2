"""Other ways to shorten a video that need no question, each exact in how many tokens it keeps.

Written from their papers' descriptions. Each takes the visual tokens [T, H, W, C] and how many
to keep, and gives what prefill needs (`types.Merged`).
"""

from collections.abc import Callable

import torch

from sttm_cli.base.types import Merged
from sttm_cli.bench.peers.dycoke import dycoke
from sttm_cli.bench.peers.evs import evs
from sttm_cli.bench.peers.halves import spatial_only, temporal_only
from sttm_cli.bench.peers.tome import tome
from sttm_cli.bench.peers.uniform import dropped_at_random, fewer_frames, pooled
from sttm_cli.bench.peers.vidcom2 import vidcom2

Peer = Callable[[torch.Tensor, int], Merged]

PEERS: dict[str, Peer] = {
    "tome": tome,
    "dycoke": dycoke,
    "evs": evs,
    "vidcom2": vidcom2,
    "frames": fewer_frames,
    "pooling": pooled,
    "random": dropped_at_random,
    "spatial": spatial_only,
    "temporal": temporal_only,
}

__all__ = ["PEERS", "Peer"]
