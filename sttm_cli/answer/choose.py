"""Scoring of options as answers by their likelihood after a shared prefix."""

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
    """Compute the log-likelihood of each option (token ids [n]) as the whole answer to `question`.

    It is the sum over the option's tokens and the end token, so that an option which is a prefix
    of another is not favoured; it is not divided by length. The prefix is always rewound.
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
    """Sum the log-probabilities of `option` [n] and of the end, from `logits` [n + 1, V]."""
    logs = logits.double().log_softmax(-1)
    text = logs[:-1].gather(1, option.to(logs.device)[:, None]).sum()
    end = logs[-1, ends.to(logs.device)].logsumexp(0)
    return float(text + end)
