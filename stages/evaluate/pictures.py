"""Pictures of single predictions: image, truth, attention, coarse and refined mask side by side, and the sheet of them.

    sheet = draw_sheet(cases, Path("sheet.png"))
    sheet = draw_rows([Row(caption="the ring", panels=[Panel(...), ...]), ...], Path("other.png"))

Panels are drawn at twice their size and reduced, so that outlines are smooth on images of any size.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from stages.evaluate.results import ObjectResult, columns

Colour = tuple[int, int, int]
TRUTH: Final[Colour] = (0, 150, 136)
COARSE: Final[Colour] = (230, 126, 0)
REFINED: Final[Colour] = (214, 31, 105)
INK: Final[Colour] = (24, 28, 36)
MUTED: Final[Colour] = (112, 120, 134)
LINE: Final[Colour] = (228, 231, 236)
PAPER: Final[Colour] = (255, 255, 255)

PANEL: Final = 300  # side of a panel's square, pixels
_GAP, _MARGIN, _HEADER, _CAPTION = 18, 36, 44, 52
_KINDS: Final = ("best", "median", "worst", "random")


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Case:
    """One object to draw. Masks and image are in pixels of the original image.

    image: uint8 [height, width, 3].  truth, refined: bool [height, width].
    coarse: bool [height, width], or None for a head with one mask.
    attention: float [h, w] of any grid that covers exactly the image (padding cut off), not negative; or None.
    caption: the expression.  iou, coarse_iou: in [0, 1].  kind: why it was chosen ("best", …), or "".
    """

    image: np.ndarray
    truth: np.ndarray
    refined: np.ndarray
    coarse: np.ndarray | None = None
    attention: np.ndarray | None = None
    caption: str
    iou: float
    coarse_iou: float | None = None
    kind: str = ""

    def __post_init__(self) -> None:
        for name in ("truth", "refined", "coarse"):
            mask = getattr(self, name)
            if mask is not None and (mask.dtype != bool or mask.shape != self.image.shape[:2]):
                raise ValueError(
                    f"{name} must be bool {self.image.shape[:2]} like the image, got {mask.dtype} {mask.shape}"
                )


@dataclass(frozen=True, kw_only=True, slots=True)
class Panel:
    """One RGB picture of a case with its title and, for a prediction, its IoU in percent as `note`."""

    title: str
    note: str
    colour: Colour
    picture: Image.Image


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """Pictures of one object, side by side. caption: the expression; kind: why it was chosen, or ""."""

    caption: str
    kind: str = ""
    panels: Sequence[Panel]


def choose_cases(results: Sequence[ObjectResult], each: int = 2, seed: int = 0) -> list[tuple[str, int]]:
    """Which objects to draw: `each` of best, median, worst and random refined IoU, as (kind, index into `results`).

    No object twice, no two of one image within a kind; failed objects have nothing to draw. Fewer where there are few.
    """
    table = columns(results, "refined")
    drawable = np.flatnonzero(~table.failed)
    chosen = pick(table.iou[drawable], table.images[drawable].tolist(), each, seed)
    return [(kind, int(drawable[place])) for kind, place in chosen]


def pick(quality: np.ndarray, images: Sequence[Hashable], each: int, seed: int = 0) -> list[tuple[str, int]]:
    """`each` of best, median, worst and random by float [n] `quality`, as (kind, place).

    Nothing twice, no two of one of `images` [n] within a kind.
    """
    if not len(quality):
        return []
    orders = {
        "best": np.argsort(-quality, kind="stable"),
        "median": np.argsort(np.abs(quality - np.median(quality)), kind="stable"),
        "worst": np.argsort(quality, kind="stable"),
        "random": np.random.default_rng(seed).permutation(len(quality)),
    }
    taken: set[int] = set()
    chosen: list[tuple[str, int]] = []
    for kind in _KINDS:
        seen: set[Hashable] = set()
        for place in orders[kind].tolist():
            if len(seen) == each:
                break
            if place not in taken and images[place] not in seen:
                taken.add(place)
                seen.add(images[place])
                chosen.append((kind, place))
    return chosen


def draw_panels(case: Case, side: int = PANEL) -> list[Panel]:
    """The pictures of a case from left to right, longer side `side` pixels; coarse mask and attention if given."""
    panels = [
        Panel(title="Image", note="", colour=MUTED, picture=enlarged(case.image, side).reduce(2)),
        Panel(title="Ground truth", note="", colour=TRUTH, picture=masked_picture(case.image, case.truth, TRUTH, side)),
    ]
    if case.attention is not None:
        heat = heat_picture(case.image, case.attention, side)
        panels.append(Panel(title="Mean attention", note="", colour=MUTED, picture=heat))
    if case.coarse is not None:
        note = "" if case.coarse_iou is None else f"IoU {100 * case.coarse_iou:.0f}"
        picture = masked_picture(case.image, case.coarse, COARSE, side)
        panels.append(Panel(title="Coarse mask", note=note, colour=COARSE, picture=picture))
    note, picture = f"IoU {100 * case.iou:.0f}", masked_picture(case.image, case.refined, REFINED, side)
    title = "Predicted mask" if case.coarse is None else "Refined mask"
    panels.append(Panel(title=title, note=note, colour=REFINED, picture=picture))
    return panels


def draw_sheet(cases: Sequence[Case], path: Path, side: int = PANEL) -> Path:
    """Write one PNG with a row per case under common column titles; returns `path`.

    A row is as high as its image with its longer side at `side` pixels. ValueError where there is no case, or where
    cases differ in which pictures they have.
    """
    return draw_rows([Row(caption=c.caption, kind=c.kind, panels=draw_panels(c, side)) for c in cases], path, side)


def draw_rows(rows: Sequence[Row], path: Path, side: int = PANEL) -> Path:
    """Write one PNG of rows whose panels have the same titles, at most `side` pixels wide; as `draw_sheet`."""
    if len({tuple(panel.title for panel in row.panels) for row in rows}) != 1:
        raise ValueError("a picture sheet needs one case or more, all with the same pictures")
    column = {panel.title: _MARGIN + k * (side + _GAP) for k, panel in enumerate(rows[0].panels)}
    tops = [_MARGIN + _HEADER]
    for row in rows:
        tops.append(tops[-1] + _CAPTION + row.panels[0].picture.height + _GAP)
    sheet = Image.new("RGB", (2 * _MARGIN + len(column) * (side + _GAP) - _GAP, tops[-1] + _MARGIN - _GAP), PAPER)
    draw = ImageDraw.Draw(sheet)
    for panel in rows[0].panels:
        _column_title(draw, panel, column[panel.title])
    for row, top in zip(rows, tops, strict=False):  # the last top is the end
        _caption(draw, row, column, top, sheet.width)
        for panel in row.panels:
            paste_rounded(sheet, panel.picture, column[panel.title], top + _CAPTION)
    sheet.save(path, optimize=True)
    return path


def _column_title(draw: ImageDraw.ImageDraw, panel: Panel, left: int) -> None:
    draw.rounded_rectangle((left, _MARGIN + 4, left + 14, _MARGIN + 18), 4, panel.colour)
    draw.text((left + 24, _MARGIN + 11), panel.title, INK, font(17, bold=True), anchor="lm")


def _caption(draw: ImageDraw.ImageDraw, row: Row, column: dict[str, int], top: int, width: int) -> None:
    """A thin line across, the expression at the left, and the IoU above each predicted mask."""
    draw.line((_MARGIN, top, width - _MARGIN, top), LINE, 1)
    noted = [panel for panel in row.panels if panel.note]
    for panel in noted:
        draw.text((column[panel.title], top + 27), panel.note, panel.colour, font(17, bold=True), anchor="lm")
    left, right = _MARGIN, min((column[panel.title] for panel in noted), default=width - _MARGIN) - _GAP
    if row.kind:
        draw.text((left, top + 27), row.kind, MUTED, font(15), anchor="lm")
        left += int(draw.textlength(row.kind, font(15))) + 12
    text = shortened(draw, f"“{' '.join(row.caption.split())}”", right - left)
    draw.text((left, top + 27), text, INK, font(18), anchor="lm")


def shortened(draw: ImageDraw.ImageDraw, text: str, width: int) -> str:
    """`text`, cut with an ellipsis to at most `width` pixels of the font of 18."""
    if draw.textlength(text, font(18)) <= width:
        return text
    while text and draw.textlength(text + " …", font(18)) > width:
        text = text[:-1]
    return text.rstrip() + " …"


def paste_rounded(sheet: Image.Image, picture: Image.Image, left: int, top: int) -> None:
    """Put a picture at (left, top), with rounded corners."""
    corners = Image.new("L", (4 * picture.width, 4 * picture.height))
    ImageDraw.Draw(corners).rounded_rectangle((0, 0, corners.width - 1, corners.height - 1), 40, 255)
    sheet.paste(picture, (left, top), corners.resize(picture.size, Image.Resampling.LANCZOS))


def _fitted(shape: tuple[int, ...], side: int) -> tuple[int, int]:
    """Width and height of an image [height, width, ...] with its longer side at 2 · `side`: panels are drawn double."""
    height, width = shape[:2]
    scale = side / max(height, width)
    return 2 * max(1, round(width * scale)), 2 * max(1, round(height * scale))


def enlarged(image: np.ndarray, side: int) -> Image.Image:
    """uint8 [height, width, 3] at twice a panel's size: `reduce(2)` when all is drawn."""
    return Image.fromarray(image).resize(_fitted(image.shape, side), Image.Resampling.LANCZOS)


def masked_picture(image: np.ndarray, mask: np.ndarray, colour: Colour, side: int) -> Image.Image:
    """The image, pale outside the mask, tinted inside, with an outline that has a white edge."""
    base = enlarged(image, side)
    grey = base.convert("L").convert("RGB")  # a tint on colours would be muddy
    pale = Image.blend(grey, Image.new("RGB", base.size, PAPER), 0.45)
    tinted = Image.blend(grey, Image.new("RGB", base.size, colour), 0.6)
    inside = enlarged_mask(mask, base.size)
    picture = Image.composite(tinted, pale, inside)
    outline(picture, inside, colour)
    return picture.reduce(2)


def outline(picture: Image.Image, inside: Image.Image, colour: Colour) -> None:
    """Draws the edge of a mask (mode L, 0 or 255, of the picture's size) in its colour, with a white edge around it."""
    if (found := inside.getbbox()) is None:
        return
    left, top, right, bottom = found
    near = (max(0, left - 4), max(0, top - 4), min(inside.width, right + 4), min(inside.height, bottom + 4))
    grown = [inside.crop(near)]
    core = np.asarray(grown[0].filter(ImageFilter.MinFilter(3)))
    for _ in range(4):  # what one filter of side 9 does, in a fraction of its time
        grown.append(grown[-1].filter(ImageFilter.MaxFilter(3)))
    for reach, ink in ((4, PAPER), (2, colour)):
        picture.paste(ink, near, mask=Image.fromarray(np.asarray(grown[reach]) & ~core))


def enlarged_mask(mask: np.ndarray, size: tuple[int, int]) -> Image.Image:
    """A mask at another size as mode L, 0 or 255: bilinear, cut at a half."""
    grey = Image.fromarray(mask.astype(np.uint8) * 255).resize(size, Image.Resampling.BILINEAR)
    return grey.point(lambda value: 255 * (value >= 128))


def heat_picture(image: np.ndarray, attention: np.ndarray, side: int) -> Image.Image:
    """The attention map over the grey image, from 0 to its own maximum."""
    base = enlarged(image, side)
    values = Image.fromarray(attention.astype(np.float32)).resize(base.size, Image.Resampling.BICUBIC)
    share = np.clip(np.asarray(values) / max(float(attention.max()), 1e-12), 0, 1)
    heat = (255 * matplotlib.colormaps["inferno"](share)[..., :3]).astype(np.uint8)
    grey = base.convert("L").convert("RGB")
    return Image.blend(grey, Image.fromarray(heat), 0.72).reduce(2)


@cache
def font(size: int, *, bold: bool = False) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which comes with matplotlib and knows most alphabets."""
    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    return ImageFont.truetype(folder / ("DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"), size)
