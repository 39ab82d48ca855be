"""Weights of loss terms over the epochs."""

from __future__ import annotations


def linear_ramp(epoch: int, length: int) -> float:
    """``min(1, (epoch + 1) / length)``; 1 when ``length`` is 0. ``epoch`` counts from 0."""
    return min(1.0, (epoch + 1) / length) if length else 1.0
