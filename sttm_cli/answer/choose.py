"""Options scored as answers by their likelihood, on top of a shared prefix."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch

from sttm_cli.base.types import Continuation


def score(
    prefix: Continuation,
    question: torch.Tensor,
    options: Sequence[torch.Tensor],
    end_ids: Collection[int],
) -> list[float]:
    """Log-likelihood of each of `options` (token ids [n]) as the whole answer to `question`.

    The sum over its tokens and the token that ends an answer, so that an option which begins
    another is not favoured; not divided by length. The prefix is wound back in any case.
    """
    ends = torch.tensor(sorted(end_ids))
    try:
        first = prefix.extend(question)
        mark = prefix.appended
        scores = []
        for option in options:
            logits = torch.cat([first[None], prefix.extend_each(option)])
            prefix.rewind(mark)
            scores.append(_log_likelihood(logits, option, ends))
        return scores
    finally:
        prefix.rewind()


def _log_likelihood(logits: torch.Tensor, option: torch.Tensor, ends: torch.Tensor) -> float:
    """`logits` [n + 1, V]: before each token of `option` [n], and after its last."""
    logs = logits.double().log_softmax(-1)
    said = logs[:-1].gather(1, option.to(logs.device)[:, None]).sum()
    ended = logs[-1, ends.to(logs.device)].logsumexp(0)
    return float(said + ended)
