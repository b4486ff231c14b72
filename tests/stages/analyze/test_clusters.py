"""K-means against every partition there is, and what must hold of any result."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from stages.analyze.clusters import distances, kmeans
from stages.analyze.pictures import cluster_cells


def inertia(points: np.ndarray, labels: np.ndarray) -> float:
    """The sum of squared distances to the clusters' means."""
    return sum(
        float(((points[labels == k] - points[labels == k].mean(0)) ** 2).sum()) for k in np.unique(labels).tolist()
    )


@pytest.mark.parametrize("seed", range(6))
def test_blobs_are_found_as_by_trying_every_partition(seed: int) -> None:
    rng = np.random.default_rng(seed)
    blobs = zip(((0, 0), (4, 0), (0, 4)), (3, 2, 2), strict=True)
    points = np.concatenate([rng.normal(centre, 0.3, (count, 2)) for centre, count in blobs])
    best = min(inertia(points, np.array(labels)) for labels in product(range(3), repeat=7) if len(set(labels)) == 3)
    assert inertia(points, kmeans(points, 3, seed)) == pytest.approx(best)


def test_every_point_is_nearest_to_its_own_mean() -> None:
    points = np.random.default_rng(0).normal(size=(200, 5))
    labels = kmeans(points, 7, seed=1)
    assert sorted(set(labels.tolist())) == list(range(7))
    centres = np.stack([points[labels == k].mean(0) for k in range(7)])
    np.testing.assert_array_equal(distances(points, centres).argmin(1), labels)
    assert inertia(points, labels) < 0.8 * inertia(points, np.arange(200) % 7)
    np.testing.assert_array_equal(labels, kmeans(points, 7, seed=1))


def test_more_clusters_than_different_points() -> None:
    points = np.array([[0.0], [0.0], [1.0], [1.0], [1.0]])
    labels = kmeans(points, 4)
    assert len(set(labels.tolist())) == 2 and labels[0] == labels[1] != labels[2] == labels[3] == labels[4]
    assert kmeans(np.zeros((3, 2)), 2).tolist() == [0, 0, 0]


def test_cells_are_numbered_by_their_attention() -> None:
    rng = np.random.default_rng(0)
    maps = rng.normal(1, 0.01, (4, 6, 6))
    maps[:, :2] += 3
    maps[:, 4:] += 1
    cells = cluster_cells(maps, 3, seed=0)
    assert cells.tolist() == [[2] * 6] * 2 + [[0] * 6] * 2 + [[1] * 6] * 2
