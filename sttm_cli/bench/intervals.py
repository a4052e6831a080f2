"""Accuracies and their differences with 95 % intervals, by a paired bootstrap over videos.

Videos are resampled rather than questions, since questions about one video are not independent.
All methods use the same samples, so that common variation cancels in a difference.

Where all draws are the same, as where every answer is right, they say nothing: the interval comes
from the number of videos, of an accuracy by Wilson's score, of a difference by the rule of three.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

DRAWS = 2000
_Z = 1.96
_SAME = 1e-9


@dataclass(frozen=True)
class Estimate:
    """A value and the ends of its 95 % interval."""

    value: float
    low: float
    high: float

    def to_json(self) -> dict[str, float]:
        return {"value": self.value, "low": self.low, "high": self.high}


class Bootstrap:
    """Samples of videos with replacement, the same for every estimate.

    `video` [Q]: the index of each question's video.
    """

    def __init__(self, video: np.ndarray, *, draws: int = DRAWS) -> None:
        self._video = video
        count = int(video.max()) + 1
        rng = np.random.default_rng(0)
        self._times = rng.multinomial(count, np.full(count, 1 / count), size=draws)

    def accuracy(self, right: np.ndarray, among: np.ndarray) -> Estimate:
        """Estimate the share of `right` [Q] bool among the questions in the mask `among` [Q]."""
        found = _estimate(float(right[among].mean()), self._share(right, among))
        return _wilson(found.value, self.videos(among)) if _is_flat(found) else found

    def kept(self, right: np.ndarray, full: np.ndarray, among: np.ndarray) -> Estimate:
        """Estimate the accuracy as a share of that of `full` [Q] bool."""
        whole = self._share(full, among)
        drawn = self._share(right, among) / np.maximum(whole, 1e-9)
        value = right[among].mean() / max(full[among].mean(), 1e-9)
        return _estimate(float(value), drawn)

    def ahead(self, right: np.ndarray, other: np.ndarray, among: np.ndarray) -> Estimate:
        """Estimate the accuracy of `right` minus that of `other`."""
        drawn = self._share(right, among) - self._share(other, among)
        found = _estimate(float(right[among].mean() - other[among].mean()), drawn)
        if not _is_flat(found):
            return found
        most = 3 / self.videos(among)
        return Estimate(found.value, max(-1.0, found.value - most), min(1.0, found.value + most))

    def videos(self, among: np.ndarray) -> int:
        """Return how many videos the questions that `among` [Q] bool names are about."""
        return len(set(self._video[among].tolist()))

    def tells(self, among: np.ndarray) -> bool:
        """Whether these questions are about several videos: one says nothing of others."""
        return self.videos(among) > 1

    def _share(self, right: np.ndarray, among: np.ndarray) -> np.ndarray:
        """Return the share in each draw, nan in one without any of these questions."""
        size = self._times.shape[1]
        hits = np.bincount(self._video[among], weights=right[among], minlength=size)
        counts = np.bincount(self._video[among], minlength=size)
        drawn = self._times @ counts
        share: np.ndarray = (self._times @ hits) / np.where(drawn == 0, np.nan, drawn)
        return share


def _estimate(value: float, drawn: np.ndarray) -> Estimate:
    low, high = np.nanpercentile(drawn, (2.5, 97.5))
    return Estimate(value, float(low), float(high))


def _is_flat(estimate: Estimate) -> bool:
    return estimate.high - estimate.low < _SAME


def _wilson(share: float, count: int) -> Estimate:
    """Estimate a share of `count` by Wilson's score interval."""
    square = _Z**2 / count
    middle = share + square / 2
    half = _Z * math.sqrt(share * (1 - share) / count + square / (4 * count))
    low, high = ((middle + side * half) / (1 + square) for side in (-1, 1))
    return Estimate(share, max(0.0, low), min(1.0, high))
