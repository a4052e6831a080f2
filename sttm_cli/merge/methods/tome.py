"""ToMe: bipartite soft matching (Bolya et al., "Token Merging: Your ViT But Faster", ICLR 2023).

Tokens alternate between two sets; each token of the first set is matched with the most similar one
of the second, and the most similar pairs merge into averages weighted by size. A round at most
halves the number of tokens. Here all rounds run at one layer, over all tokens of the video.
"""

from __future__ import annotations

import torch
from torch.nn.functional import normalize

from sttm_cli.merge.groups import grouped, within_budget
from sttm_cli.merge.method import Method
from sttm_cli.merge.tokens import MergedTokens

CHUNK = 2048


def tome(features: torch.Tensor, keep: int) -> MergedTokens:
    """Merge `features` [T, H, W, C] to `keep` tokens, each at the place of its second-set cell."""
    rows = features.flatten(0, 2).float()
    sums, sizes = rows.clone(), torch.ones(len(rows), device=rows.device)
    parent = torch.arange(len(rows), device=rows.device)
    alive = parent.clone()
    while len(alive) > keep:
        ours, theirs = alive[::2], alive[1::2]
        means = sums / sizes[:, None]
        best, match = _matches(means[ours], means[theirs])
        count = min(len(alive) - keep, len(theirs))
        first = best.argsort(descending=True, stable=True)[:count]
        gone, into = ours[first], theirs[match[first]]
        parent[gone] = into
        sums.index_add_(0, into, sums[gone])
        sizes.index_add_(0, into, sizes[gone])
        alive = alive[torch.isin(alive, gone, invert=True)]
    while not torch.equal(parent, parent[parent]):
        parent = parent[parent]
    return grouped(features, parent)


def _matches(ours: torch.Tensor, theirs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the highest cosines to `theirs`, and their indices; in chunks to bound memory."""
    theirs = normalize(theirs, dim=1).T
    best = [(normalize(part, dim=1) @ theirs).max(1) for part in ours.split(CHUNK)]
    return torch.cat([b.values for b in best]), torch.cat([b.indices for b in best])


METHOD = Method("tome", 1, within_budget(tome))
