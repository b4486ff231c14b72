"""K-means, small and seeded: Lloyd's iterations from k-means++ centres."""

from __future__ import annotations

from typing import Final

import numpy as np

STEPS: Final = 100


def kmeans(points: np.ndarray, clusters: int, seed: int = 0) -> np.ndarray:
    """int64 [P]: the cluster of each of the points [P, F], numbered from 0; at most so many, none of them empty.

    Fewer where there are fewer different points. The same points and seed give the same clusters.
    """
    rng = np.random.default_rng(seed)
    points = np.asarray(points, np.float64)
    centres = points[[rng.integers(len(points))]]
    while len(centres) < clusters and (weights := distances(points, centres).min(1)).sum() > 0:
        chosen = rng.choice(len(points), p=weights / weights.sum())  # far points are likely: k-means++
        centres = np.concatenate([centres, points[[chosen]]])
    labels = distances(points, centres).argmin(1)
    for _ in range(STEPS):
        used = np.unique(labels)  # a cluster that lost its last point is gone
        centres = np.stack([points[labels == label].mean(0) for label in used])
        found = distances(points, centres).argmin(1)
        if np.array_equal(used[found], labels):
            break
        labels = found
    return np.unique(labels, return_inverse=True)[1].astype(np.int64)


def distances(points: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """[P, F], [K, F] -> [P, K]: squared Euclidean distances; exactly 0 where a point is a centre."""
    return np.stack([((points - centre) ** 2).sum(1) for centre in centres], axis=1)
