"""What the words about a scene mean, written from their plain sense: no helper of `manifests.scenes.language`.

A noun phrase is "the" + adjectives + a shape or "thing", then perhaps "that is" with more adjectives joined by "and";
or a place ("on the left", "on the grass", "left of" + noun phrase), then perhaps a comma and more adjectives.
Positions are the centres of things, x to the right, y down.
"""

from __future__ import annotations

import numpy as np

from manifests.scenes.world import Scene

SHAPES = {"circle", "square", "triangle", "star", "cross", "ring"}
COLOURS = {"red", "green", "blue", "yellow", "purple", "white"}
TEXTURES = {"plain", "striped", "dotted", "checkered"}
SIZES = {"small", "large"}
GROUNDS = {"sky", "brick", "grass", "water", "sand"}
NUMBERS = {"two": 2, "three": 3, "four": 4, "five": 5}


def singular(word: str) -> str:
    return "cross" if word == "crosses" else word.removesuffix("s") if word.removesuffix("s") in SHAPES else word


def look_alikes(scene: Scene, words: list[str]) -> set[int]:
    """Things that every word of ["red", "ring"] is true of; raises on a word that says nothing about looks."""
    found = set(range(len(scene.things)))
    for word in words:
        if word != "thing":
            assert word in SHAPES | COLOURS | TEXTURES | SIZES, word
            found = {i for i in found if word in _looks(scene, i)}
    return found


def _looks(scene: Scene, index: int) -> tuple[str, ...]:
    thing = scene.things[index]
    return thing.shape, thing.colour, thing.texture, thing.size


def standing_on(scene: Scene, index: int) -> str:
    """The stuff behind most of a thing's visible pixels."""
    behind = scene.bands[scene.segments == len(scene.stuff) + index]
    return scene.stuff[int(np.bincount(behind).argmax())]


def adjectives(text: str) -> list[str]:
    """ "small and red" -> ["small", "red"]"""
    found = text.split(" and ")
    assert all(word in COLOURS | TEXTURES | SIZES for word in found), text
    return found


def denoted(scene: Scene, text: str) -> set[int]:
    """All things that "the small red ring left of the star , striped and red" is true of."""
    assert text.startswith("the "), text
    text, comma, more = text.partition(" , ")
    if comma:
        return denoted(scene, text) & look_alikes(scene, adjectives(more))
    words = text.split()[1:]
    noun = next(i for i, word in enumerate(words) if word in SHAPES | {"thing"})
    found, rest = look_alikes(scene, words[: noun + 1]), words[noun + 1 :]
    if rest[:2] == ["that", "is"]:
        return found & look_alikes(scene, adjectives(" ".join(rest[2:])))
    if not rest:
        return found
    x = {i: scene.things[i].x for i in range(len(scene.things))}
    y = {i: scene.things[i].y for i in range(len(scene.things))}
    place = " ".join(rest)
    if place == "on the left":
        return {i for i in found if x[i] == min(x[j] for j in found)}
    if place == "on the right":
        return {i for i in found if x[i] == max(x[j] for j in found)}
    if place == "at the top":
        return {i for i in found if y[i] == min(y[j] for j in found)}
    if place == "at the bottom":
        return {i for i in found if y[i] == max(y[j] for j in found)}
    if rest[:2] == ["on", "the"]:
        assert rest[2] in GROUNDS and len(rest) == 3, text
        return {i for i in found if standing_on(scene, i) == rest[2]}
    relation, _, anchor_text = place.partition("the ")
    (anchor,) = denoted(scene, "the " + anchor_text)
    holds = {
        "left of ": lambda i: x[i] < x[anchor],
        "right of ": lambda i: x[i] > x[anchor],
        "above ": lambda i: y[i] < y[anchor],
        "below ": lambda i: y[i] > y[anchor],
    }[relation]
    return {i for i in found if i != anchor and holds(i)}
