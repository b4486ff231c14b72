"""Sample and render one scene: stuff regions (sky, grass, …) with things (rings, stars, …) that may occlude each other.

A scene is a pure function of (split, index): every split owns a range of seeds of its own, so that the scenes a tiny
model was trained on, those a head is trained on and those of a test split cannot coincide. `tests/manifests/scenes`
checks that.

Frames: all coordinates are pixels of the rendered image, x to the right, y down; masks are bool [height, width].
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

COLOURS: Final = {
    "red": (214, 40, 40),
    "green": (30, 150, 60),
    "blue": (45, 75, 215),
    "yellow": (240, 210, 40),
    "purple": (150, 60, 185),
    "white": (242, 242, 242),
}
SHAPES: Final = ("circle", "square", "triangle", "star", "cross", "ring")
TEXTURES: Final = ("plain", "striped", "dotted")
STUFF: Final = ("sky", "brick", "grass", "water", "sand")
SIZES: Final = {"small": (11.0, 14.0), "large": (18.0, 24.0)}  # radius in pixels
IMAGE_SIZES: Final = ((144, 144), (144, 108), (108, 144))  # width, height

# Seeds: split -> first seed. A split has room for a thousand million scenes. `pretrain` is what the tiny LMM and the
# tiny SAM learn from; `train` and `val` are for heads; the rest is only ever evaluated. Seeds from 3e9 to 7e9 are
# spent: they were the test splits while the tiny LMM's curriculum was chosen, and some were looked at then.
SPLIT_SEEDS: Final = {
    "pretrain": 0,
    "train": 1_000_000_000,
    "val": 2_000_000_000,
    "testA": 7_000_000_000,
    "testB": 8_000_000_000,
    "narratives": 9_000_000_000,
    "shifted": 10_000_000_000,
}
# Never shown outside the split `shifted`: these colour-shape pairs, and the checkered texture.
HELD_OUT_PAIRS: Final = frozenset({("red", "star"), ("blue", "ring"), ("yellow", "cross"), ("green", "triangle")})
HELD_OUT_TEXTURE: Final = "checkered"


@dataclass(frozen=True, kw_only=True, slots=True)
class Thing:
    """One countable object. `x`, `y` is its centre, `r` its radius (pixels), `angle` its rotation (radians)."""

    shape: str
    colour: str
    size: str
    texture: str
    x: float
    y: float
    r: float
    angle: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Scene:
    """A rendered scene. `things` are ordered from back to front.

    image: uint8 [height, width, 3].  bands: uint8 [height, width], the stuff region of each pixel, things ignored.
    segments: uint8 [height, width], the panoptic truth: value k < len(stuff) is the visible part of stuff region k,
    value len(stuff) + i that of thing i.  columns: of a shelf, whose things stand row by row; 0: things are anywhere.
    """

    stuff: tuple[str, ...]
    things: tuple[Thing, ...]
    image: np.ndarray
    bands: np.ndarray
    segments: np.ndarray
    columns: int = 0

    @property
    def height(self) -> int:
        return int(self.image.shape[0])

    @property
    def width(self) -> int:
        return int(self.image.shape[1])

    def thing_mask(self, index: int) -> np.ndarray:
        """The visible pixels of thing `index`, bool [height, width]."""
        return self.segments == len(self.stuff) + index

    def stuff_mask(self, index: int) -> np.ndarray:
        """The visible pixels of stuff region `index`, bool [height, width]."""
        return self.segments == index

    def ground_of(self, index: int) -> str | None:
        """The stuff that lies behind at least 85 % of thing `index`, or None where it crosses a border."""
        share = np.bincount(self.bands[self.thing_mask(index)], minlength=len(self.stuff))
        best = int(share.argmax())
        return self.stuff[best] if share[best] >= 0.85 * share.sum() else None


def scene_seed(split: str, index: int) -> int:
    """The seed of scene `index` of a split; raises KeyError for an unknown split, ValueError outside its range."""
    if not 0 <= index < 1_000_000_000:
        raise ValueError(f"scene index {index} is outside [0, 1e9)")
    return SPLIT_SEEDS[split] + index


def make_scene(split: str, index: int, *, shelf: bool = False) -> Scene:
    """Scene `index` of a split (see `SPLIT_SEEDS`): deterministic on every machine.

    shelf: things in rows and columns, every cell filled, all looks independent: the scenes in which words are learned.
    """
    rng = random.Random(scene_seed(split, index))
    width, height = rng.choice(IMAGE_SIZES)
    stuff, layers = _stuff_layout(rng, width, height)
    if shelf:
        columns, things = _sample_shelf(rng, width, height)
        return replace(_render(rng, width, height, stuff, layers, things), columns=columns)
    return _render(rng, width, height, stuff, layers, _sample_things(rng, width, height, split == "shifted"))


def _stuff_layout(rng: random.Random, width: int, height: int) -> tuple[tuple[str, ...], np.ndarray]:
    """Horizontal bands from the top, with wavy borders: names and a uint8 [height, width] map of band numbers."""
    top = rng.choice(("sky", "sky", "brick"))
    low = rng.sample(("grass", "water", "sand"), 2)
    bands = (top, *low) if rng.random() < 0.35 else (top, low[0])
    cuts = sorted(rng.uniform(0.25, 0.75) for _ in range(len(bands) - 1))
    if len(cuts) == 2 and cuts[1] - cuts[0] < 0.2:
        cuts = [0.35, 0.65]
    x, y = np.arange(width), np.arange(height)[:, None]
    region = np.zeros((height, width), np.uint8)
    for cut in cuts:
        wave = rng.uniform(1, 4) * np.sin(x * rng.uniform(0.04, 0.12) + rng.uniform(0, 6.28))
        region += (y >= cut * height + wave).astype(np.uint8)
    return bands, region


def _sample_shelf(rng: random.Random, width: int, height: int) -> tuple[int, tuple[Thing, ...]]:
    """How many columns, and one thing in every cell of a grid of 2 or 3 columns and rows, row by row."""
    columns, rows = rng.choice(((2, 2), (width // 48, height // 48)))
    things = []
    for cell in range(columns * rows):
        looks = _sample_looks(rng, [], shifted=False)
        low, high = SIZES[looks["size"]]
        r = rng.uniform(low, min(high, 22.0))
        x, y = (cell % columns + 0.5) * width / columns, (cell // columns + 0.5) * height / rows
        slack_x, slack_y = max(0.0, width / columns / 2 - r), max(0.0, height / rows / 2 - r)
        x, y = x + rng.uniform(-slack_x, slack_x), y + rng.uniform(-slack_y, slack_y)
        things.append(Thing(**looks, x=x, y=y, r=r, angle=rng.uniform(-0.4, 0.4)))
    return columns, tuple(things)


def _sample_things(rng: random.Random, width: int, height: int, shifted: bool) -> tuple[Thing, ...]:
    """2 to 5 things. Most copy some attributes of an earlier one, so that single words do not decide."""
    wanted = rng.choice((2, 3, 3, 4, 4, 5))
    things: list[Thing] = []
    for _ in range(wanted):
        looks = _sample_looks(rng, things, shifted=shifted)
        low, high = SIZES[looks["size"]]
        for _attempt in range(30):
            r = rng.uniform(low, high)
            x, y = rng.uniform(r, width - r), rng.uniform(r, height - r)
            # centres at least 0.85 of the summed radii apart: occlusion happens, nothing disappears
            if all((x - t.x) ** 2 + (y - t.y) ** 2 > (0.85 * (r + t.r)) ** 2 for t in things):
                things.append(Thing(**looks, x=x, y=y, r=r, angle=rng.uniform(-0.4, 0.4)))
                break
    return tuple(things)


def _sample_looks(rng: random.Random, things: list[Thing], *, shifted: bool) -> dict[str, str]:
    """Attributes of the next thing: fresh, or those of an earlier thing with one or no attribute changed."""
    novel = shifted and rng.random() < 0.6  # the shifted split mixes in known looks, as distractors
    while True:
        looks = {
            "shape": rng.choice(SHAPES),
            "colour": rng.choice(list(COLOURS)),
            "size": rng.choice(list(SIZES)),
            "texture": rng.choice(TEXTURES),
        }
        if things and rng.random() < 0.6:
            source = rng.choice(things)
            changed = rng.choice(("shape", "colour", "size", "texture", "nothing"))
            looks = {name: value if name == changed else getattr(source, name) for name, value in looks.items()}
        if novel and looks["texture"] != "plain":
            looks["texture"] = HELD_OUT_TEXTURE
        twins = sum(all(getattr(t, name) == value for name, value in looks.items()) for t in things)
        if twins < 2 and ((looks["colour"], looks["shape"]) in HELD_OUT_PAIRS) == novel:
            return looks


def _render(
    rng: random.Random, width: int, height: int, stuff: tuple[str, ...], region: np.ndarray, things: tuple[Thing, ...]
) -> Scene:
    noise = np.random.default_rng(rng.getrandbits(63))
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    image = np.zeros((height, width, 3), np.float32)
    for k, name in enumerate(stuff):
        image = np.where((region == k)[..., None], _stuff_colours(name, rng, noise, x, y), image)
    segments = region.copy()
    for i, thing in enumerate(things):
        box = _bounding_box(thing, width, height)
        u, v = _local_frame(thing, x[box], y[box])
        mask = _inside(thing.shape, u, v, thing.r)
        image[box][mask] = _thing_colours(thing, rng, u, v)[mask]
        segments[box][mask] = len(stuff) + i
    image *= rng.uniform(0.88, 1.08)  # exposure
    image += 4 * noise.standard_normal(image.shape, np.float32)
    pixels = np.clip(image, 0, 255).astype(np.uint8)
    return Scene(stuff=stuff, things=things, image=pixels, bands=region, segments=segments)


def _bounding_box(thing: Thing, width: int, height: int) -> tuple[slice, slice]:
    """Rows and columns that hold all of a thing (a square's corner is 1.14 r from its centre)."""
    reach = 1.25 * thing.r
    rows = slice(max(0, int(thing.y - reach)), min(height, int(thing.y + reach) + 2))
    return rows, slice(max(0, int(thing.x - reach)), min(width, int(thing.x + reach) + 2))


def _stuff_colours(
    name: str, rng: random.Random, noise: np.random.Generator, x: np.ndarray, y: np.ndarray
) -> np.ndarray:
    """float32 [height, width, 3] colours of a whole image of this stuff."""
    grain = noise.standard_normal(x.shape, np.float32)
    phase = rng.uniform(0, 6.28)
    shade: np.ndarray
    if name == "sky":
        base, shade = (150, 195, 235), 0.25 * y - 12 + 2 * grain
    elif name == "grass":
        base, shade = (96, 140, 62), 15 * np.sin(1.9 * x + 0.4 * np.sin(y) + phase) + 12 * grain
    elif name == "water":
        base, shade = (62, 118, 150), 16 * np.sin(0.9 * y + 1.2 * np.sin(0.15 * x + phase)) + 3 * grain
    elif name == "sand":
        base, shade = (212, 186, 140), 14 * grain
    else:  # brick: courses of 7 pixels, bricks of 15, shifted by half a brick every other course
        course = np.floor(y / 7)
        joint = (np.mod(y, 7) < 1) | (np.mod(x + 7.5 * np.mod(course, 2) + phase, 15) < 1)
        base, shade = (160, 92, 74), np.where(joint, 45.0, 5 * grain)
    return np.asarray(base, np.float32) + np.asarray(shade, np.float32)[..., None]


def _local_frame(thing: Thing, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pixel coordinates in the thing's own frame: origin at its centre, rotated by its angle."""
    c, s = np.cos(thing.angle), np.sin(thing.angle)
    dx, dy = x - thing.x, y - thing.y
    return c * dx + s * dy, c * dy - s * dx


def _inside(shape: str, u: np.ndarray, v: np.ndarray, r: float) -> np.ndarray:
    """bool mask of the pixels of a shape with circumradius about `r`."""
    if shape == "circle":
        return u * u + v * v < (0.92 * r) ** 2
    if shape == "ring":
        d2 = u * u + v * v
        return (d2 < r * r) & (d2 > (0.5 * r) ** 2)
    if shape == "square":
        return np.maximum(np.abs(u), np.abs(v)) < 0.8 * r
    if shape == "cross":
        a, b = np.abs(u), np.abs(v)
        return (np.maximum(a, b) < r) & (np.minimum(a, b) < 0.33 * r)
    if shape == "triangle":
        return np.all([_beyond(k, 3, u, v) < 0.55 * r for k in range(3)], axis=0)
    # star: a pentagram is the set of points inside at least four of its five half planes
    return np.sum([_beyond(k, 5, u, v) < 0.37 * r for k in range(5)], axis=0) >= 4


def _beyond(k: int, n: int, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Distance from the centre along the normal of side k of a regular n-gon that stands on its base."""
    angle = 2 * np.pi * k / n + np.pi / 2
    return u * np.cos(angle) + v * np.sin(angle)


def _thing_colours(thing: Thing, rng: random.Random, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    base = np.asarray([c + rng.uniform(-12, 12) for c in COLOURS[thing.colour]], np.float32)
    if thing.texture == "striped":
        dark = np.mod(v, 6) < 2.6
    elif thing.texture == "dotted":
        dark = (np.mod(u, 7) - 3.5) ** 2 + (np.mod(v, 7) - 3.5) ** 2 < 4.5
    elif thing.texture == HELD_OUT_TEXTURE:
        dark = (np.mod(u, 8) < 4) ^ (np.mod(v, 8) < 4)
    else:
        dark = np.zeros(u.shape, bool)
    return np.where(dark[..., None], 0.35 * base, base)
