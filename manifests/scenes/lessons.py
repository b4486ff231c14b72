"""What the tiny LMM reads to learn its words: listings, statements and questions about a scene.

Of these texts an evaluation uses listings and questions, to ask (`stages.evaluate.qa`); `manifests.scenes.language` has
those that the datasets hold.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from manifests.scenes.language import (
    ATTRIBUTES,
    NUMBERS,
    PLACES,
    PLURALS,
    RELATIONS,
    VERBS,
    Phrase,
    alike,
    by_attributes,
    expressions,
    holds,
    noun_phrase,
    phrases,
)
from manifests.scenes.world import SHAPES, Scene, Thing


def _about(scene: Scene, index: int, said: Phrase, rng: random.Random) -> str:
    """Something true and not yet `said` of a thing: "is striped", "is on the grass", "is left of the star"."""
    thing = scene.things[index]
    facts = [f"is {getattr(thing, n)}" for n in ATTRIBUTES if n not in (*said.names, "shape")]
    facts += [] if "shape" in said.names else [f"is a {thing.shape}"]
    ground = scene.ground_of(index)
    if ground and f" on the {ground}" not in said.text:
        facts += [f"is on the {ground}"] * 2
    third_x, third_y = 3 * thing.x / scene.width, 3 * thing.y / scene.height
    place = [PLACES["left of"]] * (third_x < 1) + [PLACES["right of"]] * (third_x > 2)
    place += [PLACES["above"]] * (third_y < 1) + [PLACES["below"]] * (third_y > 2)
    facts += [f"is {p}" for p in place or ["in the middle"] if p not in said.text]
    for anchor in rng.sample(range(len(scene.things)), len(scene.things)):
        phrase = by_attributes(scene, anchor, rng)
        relations = [r for r in RELATIONS if anchor != index and holds(scene, index, r, anchor, 14)]
        if phrase and relations:
            facts += [f"is {rng.choice(relations)} {phrase}"] * 2
            break
    return rng.choice(facts or [f"is {thing.size}"])


def _place(x: float, y: float) -> str:
    """ "at the top left", "on the right", "in the middle", …: thirds of the picture; x and y in [0, 1]."""
    column = ("left", "", "right")[min(2, int(3 * x))]
    row = ("top", "", "bottom")[min(2, int(3 * y))]
    return f"at the {row} {column}".strip() if row else f"on the {column}" if column else "in the middle"


def _all_about(scene: Scene, index: int, said: Phrase) -> str:
    """Its verb, every attribute that is not yet said, its place: "floats small and red at the top left".

    The place comes last: once it is said, the looks can be read there without resolving the phrase.
    """
    thing = scene.things[index]
    facts = " and ".join(getattr(thing, name) for name in ATTRIBUTES if name not in said.names)
    return " ".join(
        f"{VERBS[scene.ground_of(index)]} {facts} {_place(thing.x / scene.width, thing.y / scene.height)}".split()
    )


def statements(scene: Scene, rng: random.Random, most: int = 5) -> str:
    """Expressions of up to `most` things, followed by all, one or none of what is true: what the tiny LMM reads.

    What follows makes the last words of an expression resolve what it refers to, and leaves little to chance.
    """
    order = rng.sample(range(len(scene.things)), len(scene.things))[:most]
    parts = []
    for index in order:
        for phrase in phrases(scene, index, rng, count=1):
            kind = rng.random()
            if kind < 0.6:
                parts.append(f"{phrase.text} {_all_about(scene, index, phrase)} .")
            else:
                parts.append(
                    f"{phrase.text} {_about(scene, index, phrase, rng)} ." if kind < 0.8 else f"{phrase.text} ."
                )
    return " ".join(parts)


def listing(scene: Scene, rng: random.Random) -> tuple[str, str]:
    """A question that asks for everything in reading order, and its answer with all attributes of every thing.

    Nothing in the answer is left to chance, so each of its words asks the tiny LMM to look at the right place.
    """
    order = rng.choice(("from left to right", "from top to bottom"))
    things = sorted(scene.things, key=lambda t: t.x if order == "from left to right" else t.y)
    return f"What is there {order}?", _list(things)


def shelf_listing(scene: Scene, columns: int, rng: random.Random) -> tuple[str, str]:
    """The same for a scene whose things stand in rows and `columns`: row by row, or place by place in any order.

    Only the second needs to know where in the picture a word like "left" is: nothing else says what comes next.
    """
    if rng.random() < 0.4:
        return "What is there row by row?", _list(scene.things)
    rows = len(scene.things) // columns
    parts = []
    for cell in rng.sample(range(len(scene.things)), len(scene.things)):
        row, column = divmod(cell, columns)
        place = _place((column + 0.5) / columns, (row + 0.5) / rows)
        parts.append(f"{place} {noun_phrase(scene.things[cell], ATTRIBUTES, 'a')}")
    return "What is there place by place?", " , ".join(parts) + " ."


def _list(things: Sequence[Thing]) -> str:
    return " , ".join(noun_phrase(t, ATTRIBUTES, "a") for t in things) + " ."


def question(scene: Scene, rng: random.Random) -> tuple[str, str]:
    """A question about the scene and its short answer."""
    index = rng.randrange(len(scene.things))
    thing = scene.things[index]
    phrase = next(iter(expressions(scene, index, rng, count=1)), None)
    kind = rng.choice(("colour", "texture", "ground", "count", "exists"))
    if kind == "colour" and len(alike(scene, index, ("shape",))) == 1:
        return f"what colour is the {thing.shape} ?", f"{thing.colour} ."
    if kind == "texture" and phrase and not any(t in phrase for t in ("plain", "striped", "dotted")):
        return f"is {phrase} plain , striped or dotted ?", f"{thing.texture} ."
    if kind == "ground" and phrase and scene.ground_of(index) and " on the " not in phrase:
        return f"where is {phrase} ?", f"on the {scene.ground_of(index)} ."
    if kind == "count":
        count = len(alike(scene, index, ("shape",)))
        return f"how many {PLURALS[thing.shape]} are there ?", f"{NUMBERS.get(count, 'one')} ."
    shape = rng.choice(SHAPES)
    return f"is there a {shape} ?", "yes ." if any(t.shape == shape for t in scene.things) else "no ."
