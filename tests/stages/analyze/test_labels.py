"""A map's layer and head, in whole and pruned caches."""

from __future__ import annotations

from stages.analyze.labels import labels_of, shape_of


def test_layer_by_layer_head_by_head() -> None:
    labels = labels_of({"lmm": {"layers": 2, "heads": 3}})
    assert [(each.layer, each.head) for each in labels] == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2)]
    assert str(labels[5]) == "L1 H2" and [each.map for each in labels] == list(range(6))


def test_two_views_of_a_hybrid() -> None:
    """Views first; only layers with attention are there."""
    identity = {"lmm": {"layers": 5, "attention_layers": 2, "heads": 2, "views": 2}}
    assert shape_of(identity) == (2, 2, 2)
    labels = labels_of(identity)
    assert [(each.view, each.layer, each.head) for each in labels[3:6]] == [(0, 1, 1), (1, 0, 0), (1, 0, 1)]
    assert len(labels) == 8 and str(labels[7]) == "L1 H1 view 1"


def test_pruned_twice_and_encoded() -> None:
    derived = [
        {"action": "prune", "channels": [5, 1, 3], "of": 6},
        {"action": "encode", "encoding": "log8"},
        {"action": "prune", "channels": [2, 0], "of": 3},
    ]
    labels = labels_of({"lmm": {"layers": 2, "heads": 3}, "derived": derived})
    assert [(each.map, each.original, each.layer, each.head) for each in labels] == [(0, 3, 1, 0), (1, 5, 1, 2)]
