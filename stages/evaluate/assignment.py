"""The one-to-one pairing of rows and columns with the largest total."""

from __future__ import annotations

import numpy as np


def best_pairs(weights: np.ndarray) -> list[tuple[int, int]]:
    """(row, column) pairs, no row and no column twice, whose weights add up to the most; min(n, m) pairs, by row.

    weights: finite numbers [n, m]. With 0 and 1 as weights the pairs of weight 1 are as many as can be had at once.
    The Hungarian method by shortest augmenting paths (Jonker and Volgenant 1987): O(n² m).
    """
    if weights.shape[0] > weights.shape[1]:
        return sorted((row, column) for column, row in best_pairs(weights.T))
    cost = weights.max(initial=0) - np.asarray(weights, np.float64)
    rows, columns = cost.shape
    row_price, column_price = np.zeros(rows), np.zeros(columns)
    owner = np.full(columns, -1)  # the row that holds each column
    for start in range(rows):
        owner = _augmented(cost, row_price, column_price, owner, start)
    return sorted((int(row), column) for column, row in enumerate(owner) if row >= 0)


def _augmented(
    cost: np.ndarray, row_price: np.ndarray, column_price: np.ndarray, owner: np.ndarray, start: int
) -> np.ndarray:
    """`owner` with row `start` placed as well, others moved along the cheapest path; prices change in place."""
    columns = cost.shape[1]
    distance, came_from = np.full(columns, np.inf), np.full(columns, -1)
    done = np.zeros(columns, bool)
    row, last, reached = start, -1, 0.0
    while row >= 0:
        through = reached + cost[row] - row_price[row] - column_price
        nearer = ~done & (through < distance)
        distance[nearer], came_from[nearer] = through[nearer], last
        last = int(np.argmin(np.where(done, np.inf, distance)))
        reached, done[last] = float(distance[last]), True
        row = int(owner[last])
    scanned = np.flatnonzero(done)
    row_price[start] += reached
    for column in scanned:
        if owner[column] >= 0:
            row_price[owner[column]] += reached - distance[column]
        column_price[column] -= reached - distance[column]
    owner = owner.copy()
    while last >= 0:  # shift rows along the path
        before = int(came_from[last])
        owner[last] = start if before < 0 else owner[before]
        last = before
    return owner
