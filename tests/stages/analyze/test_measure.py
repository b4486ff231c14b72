"""The numbers of an analysis against loops over cells and pixels that are written from their definitions."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from cache.priors import Priors
from manifests.errors import PipelineError
from manifests.masks import decode
from stages.analyze.labels import labels_of
from stages.analyze.measure import CONTROL, OBJECT, entropy, measure, touched
from stages.analyze.objects import Subjects, controls, subjects_of
from stages.analyze.results import ALL, Analysis, flat, group_records, layer_records, map_records, summarise
from stages.extract.images import Box
from stages.train_head.overlaps import THRESHOLDS, overlaps, spread
from stages.train_head.ranking import rank_maps
from tests.stages.analyze.planted import (
    FAINT,
    GRID,
    HEADS,
    HEIGHT,
    LAYERS,
    ROWS,
    STILL,
    TOP,
    TRUE,
    WIDTH,
    C,
    make_planted,
)


@pytest.fixture(scope="module")
def priors(tmp_path_factory: pytest.TempPathFactory) -> Priors:
    return make_planted(tmp_path_factory.mktemp("planted") / "cache", samples=40)


@pytest.fixture(scope="module")
def subjects(priors: Priors) -> Subjects:
    return subjects_of(priors, spread(priors, "train", 40), seed=0)


@pytest.fixture(scope="module")
def analysis(priors: Priors, subjects: Subjects) -> Analysis:
    return summarise(measure(priors, subjects), labels_of(priors.identity), subjects.controlled)


def shows(y: int, x: int) -> tuple[slice, slice]:
    """The pixels that a cell of the image's part of the grid lies on, partly ones too."""
    return (
        slice(math.floor(y * HEIGHT / ROWS), math.ceil((y + 1) * HEIGHT / ROWS)),
        slice(math.floor(x * WIDTH / GRID), math.ceil((x + 1) * WIDTH / GRID)),
    )


def of_object(maps: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray, list[bool]]:
    """Intersections and unions [C, T], and whether each map's maximum points at the mask: cell by cell."""
    both, either, hits = np.zeros((C, len(THRESHOLDS))), np.zeros((C, len(THRESHOLDS))), []
    for channel in range(C):
        most, place = -1.0, (0, 0)
        for y in range(ROWS):
            for x in range(GRID):
                value = float(maps[channel, TOP + y, x])
                truth = bool(mask[int((y + 0.5) * HEIGHT / ROWS), int((x + 0.5) * WIDTH / GRID)])
                for number, threshold in enumerate(THRESHOLDS):
                    both[channel, number] += value > threshold and truth
                    either[channel, number] += value > threshold or truth
                if value > most:
                    most, place = value, (y, x)
        hits.append(bool(mask[shows(*place)].any()))
    return both, either, hits


def groups_of(priors: Priors, subjects: Subjects) -> dict[str, list[int]]:
    """Group -> the numbers of its objects, from the manifest and the plan."""
    starts, found = [], {ALL: list(range(len(subjects.objects)))}
    for subject in subjects.objects:
        row = priors.rows[subject.sample]
        starts.append(row.token_positions[sum(row.token_counts[: subject.number])])
    first, second, third = np.quantile(starts, (0.25, 0.5, 0.75))
    for number, (subject, start) in enumerate(zip(subjects.objects, starts, strict=True)):
        item = priors.samples[subject.sample].objects[subject.number]
        share = decode(item.mask).mean()
        size = "small" if share < 1024 / 307200 else "medium" if share < 9216 / 307200 else "large"
        position = "earliest" if start <= first else "early" if start <= second else "late" if start <= third else ""
        for name in ("thing" if item.is_thing else "stuff", size, position or "latest"):
            found.setdefault(name, []).append(number)
    return found


def test_every_number_is_that_of_plain_loops(priors: Priors, subjects: Subjects, analysis: Analysis) -> None:
    counted = []  # [objects][OBJECT, CONTROL] -> both, either, hits
    for subject in subjects.objects:
        item = priors.read(subject.sample)
        assert item is not None and subject.other is not None
        truth = priors.samples[subject.sample].objects[subject.number].mask
        maps = item.attention[subject.number]
        counted.append([of_object(maps, decode(mask)) for mask in (truth, subject.other)])
    groups = groups_of(priors, subjects)
    assert set(groups) == set(analysis.groups) and len(groups) >= 6
    for which in (OBJECT, CONTROL):
        both = np.stack([found[which][0] for found in counted])  # [objects, C, T]
        either = np.stack([found[which][1] for found in counted])
        hits = np.array([found[which][2] for found in counted])
        for channel in range(C):
            ious = [both[:, channel, t].sum() / either[:, channel, t].sum() for t in range(len(THRESHOLDS))]
            best = ious.index(max(ious))
            assert analysis.threshold[which, channel] == THRESHOLDS[best]
            for name, members in groups.items():
                found = {score: values[which, channel] for score, values in analysis.groups[name].items()}
                inside, around = both[members, channel, best], either[members, channel, best]
                assert found["ciou"] == pytest.approx(inside.sum() / around.sum(), abs=1e-12)
                assert found["miou"] == pytest.approx((inside / around).mean(), abs=1e-12)
                assert found["pointing"] == pytest.approx(hits[members, channel].mean(), abs=1e-12)


def test_mass_and_entropy(priors: Priors, subjects: Subjects, analysis: Analysis) -> None:
    mass, spent = np.zeros(C), np.zeros(C)
    for subject in subjects.objects:
        item = priors.read(subject.sample)
        assert item is not None
        mass += item.attention_mass[subject.number]
        for channel in range(C):
            inside = [float(v) for v in item.attention[subject.number, channel, TOP : TOP + ROWS].flat]
            shares = [value / sum(inside) for value in inside]
            spent[channel] -= sum(p * math.log(p) for p in shares if p > 0) / math.log(len(inside))
    np.testing.assert_allclose(analysis.mass, mass / len(subjects.objects), rtol=1e-6)
    np.testing.assert_allclose(analysis.entropy, spent / len(subjects.objects), atol=1e-5)


def test_entropy_at_its_ends() -> None:
    import torch

    maps = torch.tensor([[1.0, 1, 1, 1], [9, 0, 0, 0], [0, 0, 0, 0]])
    np.testing.assert_allclose(entropy(maps), [1, 0, 1], atol=1e-6)


def test_the_planted_map_is_first_and_points_at_every_object(analysis: Analysis) -> None:
    assert analysis.order()[:2] == [TRUE, FAINT] and analysis.threshold[OBJECT, FAINT] > THRESHOLDS[0]
    scores = analysis.groups[ALL]
    assert scores["ciou"][OBJECT, TRUE] == scores["pointing"][OBJECT, TRUE] == 1
    assert scores["ciou"][CONTROL, TRUE] < 0.4 and scores["pointing"][CONTROL, TRUE] < 0.6
    first = map_records(analysis)[TRUE]
    assert (first["layer"], first["head"], first["ciou"]) == (1, 1, 1.0)


def test_controls_are_at_chance_and_show_a_position_bias(analysis: Analysis) -> None:
    """A map that never moves is worth as much on masks of other images; so is noise."""
    scores = analysis.groups[ALL]
    for channel in set(range(C)) - {TRUE, FAINT}:
        for score in ("ciou", "miou"):
            assert scores[score][OBJECT, channel] == pytest.approx(scores[score][CONTROL, channel], abs=0.06)
        assert scores["pointing"][OBJECT, channel] == pytest.approx(scores["pointing"][CONTROL, channel], abs=0.2)
    noise = [channel for channel in range(C) if channel not in (TRUE, STILL, FAINT)]
    assert scores["ciou"][CONTROL, STILL] > scores["ciou"][CONTROL, noise].max() + 0.05


def test_groups_hold_every_object_once(analysis: Analysis, subjects: Subjects) -> None:
    records = group_records(analysis)
    assert {kind: sum(counts.values()) for kind, counts in records.items()} == dict.fromkeys(records, 80)
    assert records["kind"] == {"thing": 40, "stuff": 40} and list(records) == ["kind", "size", "position"]
    row = flat(map_records(analysis)[0])
    assert {"thing_ciou", "stuff_control_pointing", "large_miou", "latest_ciou"} <= row.keys()
    assert not any(isinstance(value, dict) for value in row.values())


def test_layers(analysis: Analysis) -> None:
    ciou = analysis.groups[ALL]["ciou"][OBJECT].reshape(LAYERS, HEADS)
    for layer, record in enumerate(layer_records(analysis)):
        assert (record["layer"], record["maps"], record["best_head"]) == (layer, HEADS, ciou[layer].argmax())
        assert record["best_ciou"] == pytest.approx(ciou[layer].max(), abs=1e-6)
        assert record["mean_ciou"] == pytest.approx(ciou[layer].mean(), abs=1e-6)


def test_the_ranking_for_pruning_is_the_same(priors: Priors, analysis: Analysis) -> None:
    ranking = rank_maps(priors, most=40)
    np.testing.assert_array_equal(ranking.scores, analysis.groups[ALL]["ciou"][OBJECT])
    assert (ranking.samples, ranking.objects) == (40, 80) and ranking.best(1) == [TRUE]
    with pytest.raises(PipelineError, match=r"no sample of the split testA \(it has train\).*--channels 0,5,17"):
        rank_maps(priors, "testA")


def test_a_control_is_of_another_image_and_of_the_same_group_where_there_is_one() -> None:
    images, groups = ["a", "a", "b", "b", "c"], [(0, 0), (0, 1), (0, 0), (1, 0), (1, 1)]
    found = controls(images, groups, seed=3)
    assert [images[k] != images[other] for k, other in enumerate(found) if other is not None] == [True] * 5
    assert (found[0], found[2]) == (2, 0)
    assert found == controls(images, groups, seed=3)
    assert controls(["a", "a"], [(0, 0), (0, 0)], seed=0) == [None, None]


def test_without_another_image_there_is_no_control(tmp_path: Path) -> None:
    priors = make_planted(tmp_path / "cache", samples=3, images=1)
    subjects = subjects_of(priors, [0, 1, 2], seed=0)
    analysis = summarise(measure(priors, subjects), labels_of(priors.identity), subjects.controlled)
    assert not subjects.controlled and not any("control" in name for name in flat(map_records(analysis)[0]))
    assert analysis.order()[0] == TRUE


def test_samples_are_spread_and_failed_ones_left_out(tmp_path: Path) -> None:
    priors = make_planted(tmp_path / "cache", samples=9)
    assert spread(priors, "train", 3) == [0, 3, 6] and spread(priors, "train", 99) == list(range(9))
    priors.failures[3] = "made to fail"
    assert 3 not in spread(priors, "train", 99)


def test_a_small_object_has_a_cell_to_point_at() -> None:
    part = Box(top=1, left=0, height=5, width=8, size=8)
    mask = np.zeros((32, 48), bool)
    mask[0, 0] = True
    assert touched([mask], part).nonzero()[1].tolist() == [0]
    mask[6, 6] = True  # of 6.4 rows a cell: row 6 lies in the first and in the second
    assert touched([mask], part).nonzero()[1].tolist() == [0, 1, 9]
    tiny = np.zeros((2, 3), bool)
    tiny[0, 0] = True
    assert touched([tiny], part).sum() == 3 * 3  # an image smaller than the grid: cells on the edges touch both pixels


def test_overlaps_at_the_thresholds_themselves() -> None:
    """Above, not at; and masks that overlap one another are counted alone."""
    maps = np.array([[*THRESHOLDS, 0.0], [9.0] * 10], np.float16)
    masks = np.array([[True] * 10, [True] * 5 + [False] * 5, [False] * 10])
    both, either = overlaps(maps, masks)
    assert both.shape == (3, 2, 9)
    assert both[0, 0].tolist() == [8, 7, 6, 5, 4, 3, 2, 1, 0] and both[1, 0].tolist() == [4, 3, 2, 1, 0, 0, 0, 0, 0]
    assert (both[0, 1] == 10).all() and (both[1, 1] == 5).all() and (both[2] == 0).all()
    assert (either[0] == 10).all() and either[1, 0].tolist() == [9, 9, 9, 9, 9, 8, 7, 6, 5]
    assert either[2, 0].tolist() == [8, 7, 6, 5, 4, 3, 2, 1, 0]
