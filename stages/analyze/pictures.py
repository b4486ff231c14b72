"""Pictures of an analysis: layers and heads as a heat map, and what the maps of single objects have in common.

K-means: every cell of the grid has C values, one of each map; cells with like values are one cluster. Segments that
follow the objects of the image mean that the maps, together, know them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from cache.priors import Priors
from manifests.masks import decode
from stages.analyze.clusters import kmeans
from stages.analyze.measure import CONTROL, OBJECT
from stages.analyze.objects import Subject
from stages.analyze.results import ALL, Analysis
from stages.evaluate.metrics import intersection_union, iou
from stages.evaluate.pictures import (
    MUTED,
    REFINED,
    TRUTH,
    Panel,
    Row,
    draw_rows,
    enlarged,
    heat_picture,
    masked_picture,
)
from stages.extract.images import Box, open_image
from stages.train_head.overlaps import at_centres, attention_of, on_image

SIDE: Final = 300


def draw_heat_map(analysis: Analysis, shape: tuple[int, int, int], path: Path) -> Path:
    """A PNG of layers (down) by heads (across), one panel for cIoU and one for pointing; a row of panels per view.

    shape: (views, layers, heads). Maps that a pruned cache lacks stay grey; the best is marked.
    """
    views, layers, heads = shape
    height, width = min(14.0, 1.6 + 0.3 * layers), min(20.0, 4.0 + 0.6 * heads)
    figure = Figure(figsize=(width, views * height), layout="constrained")
    axes = figure.subplots(views, 2, squeeze=False)
    for column, (score, title) in enumerate((("ciou", "cIoU"), ("pointing", "Pointing accuracy"))):
        grid = np.full(shape, np.nan)
        values = 100 * analysis.groups[ALL][score][OBJECT]
        for label, value in zip(analysis.labels, values, strict=True):
            grid[label.view, label.layer, label.head] = value
        chance = 100 * analysis.groups[ALL][score][CONTROL].max()
        control = f"; control at most {chance:.0f}" if analysis.controlled else ""
        for view, axis in enumerate(axes[:, column]):
            axis.set_facecolor("lightgrey")
            shown = axis.imshow(grid[view], cmap="viridis", vmin=0, vmax=float(values.max()) or 1, aspect="auto")
            heading = f"{title}, percent" + (f", view {view}" if views > 1 else "")
            if not np.isnan(grid[view]).all():
                layer, head = np.unravel_index(np.nanargmax(grid[view]), grid[view].shape)
                axis.scatter([head], [layer], marker="o", s=60, facecolors="none", edgecolors="red", linewidths=1.5)
                heading += f"\nbest: L{layer} H{head}, {grid[view, layer, head]:.0f}{control}"
            axis.set_title(heading, fontsize=10)
            axis.set_xlabel("head")
            axis.set_ylabel("layer")
            for ticks, count in ((axis.xaxis, heads), (axis.yaxis, layers)):
                ticks.set_ticks(range(0, count, max(1, count // 16)))
        figure.colorbar(shown, ax=axes[:, column].tolist())
    figure.savefig(path, dpi=110)
    return path


def draw_clusters(
    priors: Priors, analysis: Analysis, subjects: Sequence[Subject], root: Path, path: Path, *, clusters: int, seed: int
) -> Path:
    """A PNG with a row per object: image, truth, clusters of its maps, mean attention, the analysis's best map.

    root: what the manifest's image paths are relative to. DatasetError for an image that is not there.
    """
    rows = [_row(priors, analysis, subject, root, clusters, seed) for subject in subjects]
    return draw_rows(rows, path, SIDE)


def _row(priors: Priors, analysis: Analysis, subject: Subject, root: Path, clusters: int, seed: int) -> Row:
    sample, best = priors.samples[subject.sample], analysis.order()[0]
    image = np.asarray(open_image(root / sample.image_path, (sample.width, sample.height)))
    stored, part = attention_of(priors, subject.sample)
    values, size = on_image(stored[subject.number], part), (part.height, part.width)
    truth, maps = decode(subject.mask), values.astype(np.float32).reshape(-1, *size)
    threshold = analysis.threshold[OBJECT, best]
    above = values[best] > threshold
    score = float(iou(*intersection_union(above[None], at_centres([truth], part))))
    pictures = {
        "Image": enlarged(image, SIDE).reduce(2),
        "Ground truth": masked_picture(image, truth, TRUTH, SIDE),
        f"{clusters} clusters of {len(maps)} maps": cluster_picture(image, cluster_cells(maps, clusters, seed)),
        "Mean attention": heat_picture(image, maps.mean(0), SIDE),
        f"Best map, {analysis.labels[best]}": heat_picture(image, maps[best], SIDE),
        f"Best map > {threshold:g} × mean": masked_picture(image, _at_size(above, part, image), REFINED, SIDE),
    }
    last = [*pictures][-1]
    colours = {"Ground truth": TRUTH, last: REFINED}
    panels = [
        Panel(
            title=title, note=f"IoU {100 * score:.0f}" if title == last else "", colour=colours.get(title, MUTED),
            picture=picture,
        )
        for title, picture in pictures.items()
    ]  # fmt: skip
    return Row(caption=sample.objects[subject.number].phrase, panels=panels)


def _at_size(cells: np.ndarray, part: Box, image: np.ndarray) -> np.ndarray:
    """bool [P] -> bool [height, width]: every pixel as the cell that it lies in."""
    grid = Image.fromarray(cells.reshape(part.height, part.width))
    return np.asarray(grid.resize((image.shape[1], image.shape[0]), Image.Resampling.NEAREST))


def cluster_cells(maps: np.ndarray, clusters: int, seed: int) -> np.ndarray:
    """float [C, h, w] -> int64 [h, w]: the cluster of every cell, numbered from the least mean attention to the most.

    Maps count alike: each is brought to mean 0 and deviation 1 over the cells, or the sharpest few would decide.
    """
    features = maps.reshape(len(maps), -1).T.astype(np.float64)
    deviation = features.std(0)
    labels = kmeans((features - features.mean(0)) / np.where(deviation > 0, deviation, 1), clusters, seed)
    strength = [features[labels == label].mean() for label in range(labels.max() + 1)]
    return np.argsort(np.argsort(strength))[labels].reshape(maps.shape[1:])


def cluster_picture(image: np.ndarray, cells: np.ndarray) -> Image.Image:
    """The grey image under its clusters: dark blue has the least attention, yellow the most."""
    base = enlarged(image, SIDE)
    shades = matplotlib.colormaps["viridis"](np.linspace(0, 1, int(cells.max()) + 1))[..., :3]
    colours = Image.fromarray((255 * shades[cells]).astype(np.uint8)).resize(base.size, Image.Resampling.NEAREST)
    return Image.blend(base.convert("L").convert("RGB"), colours, 0.6).reduce(2)


def chosen_subjects(subjects: Sequence[Subject], count: int) -> list[Subject]:
    """So many objects, evenly spread, no two of one image; fewer where there are few."""
    found: dict[str, Subject] = {}
    for number in range(count):
        rest = subjects[number * len(subjects) // count :]
        if (other := next((each for each in rest if each.image_id not in found), None)) is not None:
            found[other.image_id] = other
    return list(found.values())
