"""Frequent itemsets, mined exactly: Eclat over bitsets (Zaki, IEEE TKDE 12(3), 2000)."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np


def frequent_itemsets(
    transactions: np.ndarray, items: np.ndarray, threshold: int
) -> Iterator[tuple[tuple[int, ...], int]]:
    """Every set of items that at least ``threshold`` transactions hold, with that number; lazily, depth first.

    ``transactions`` and ``items``: int64 ``[p]``, which item is in which transaction (each pair once). A set lists its
    items in ascending order.
    """
    kept, support = np.unique(items, return_counts=True)
    kept = kept[support >= threshold]
    rows = int(transactions.max(initial=-1)) + 1
    bits = []
    for item in kept:
        mask = np.zeros(rows, dtype=bool)
        mask[transactions[items == item]] = True
        bits.append(int.from_bytes(np.packbits(mask).tobytes(), "big"))
    level = sorted(zip(bits, kept.tolist(), strict=True), key=lambda pair: (pair[0].bit_count(), pair[1]))
    yield from _grow((), level, threshold)


def _grow(
    prefix: tuple[int, ...], level: list[tuple[int, int]], threshold: int
) -> Iterator[tuple[tuple[int, ...], int]]:
    for place, (bits, item) in enumerate(level):
        itemset = (*prefix, item)
        yield tuple(sorted(itemset)), bits.bit_count()
        common = ((bits & other, later) for other, later in level[place + 1 :])
        yield from _grow(itemset, [pair for pair in common if pair[0].bit_count() >= threshold], threshold)
