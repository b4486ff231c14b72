"""What people would say about a scene: referring expressions, narratives with grounded phrases.

All text is lower case, words separated by one space. A noun phrase is "the [size] [texture] [colour] shape", perhaps
with a place or a relation; most go on with more of its looks: "the red ring that is small and striped", "the ring left
of the star , small and red". What stands on something is said to float, lie, lean … on it.

A language model learns to look at a thing only while it has to say something about it. That is why phrases say more
than they need, as people do: the words that follow make those of the phrase itself look at what is meant.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from manifests.scenes.world import COLOURS, SHAPES, STUFF, Scene, Thing

ATTRIBUTES: Final = ("size", "texture", "colour", "shape")
PLURALS: Final = {shape: "crosses" if shape == "cross" else shape + "s" for shape in SHAPES}
NUMBERS: Final = {2: "two", 3: "three", 4: "four", 5: "five"}
RELATIONS: Final = ("left of", "right of", "above", "below")
VERBS: Final = {"sky": "hangs", "brick": "leans", "grass": "lies", "water": "floats", "sand": "rests", None: "stands"}
PLACES: Final = {"left of": "on the left", "right of": "on the right", "above": "at the top", "below": "at the bottom"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Segment:
    """A run of words of a narrative. `things` and `stuff` index what it grounds to; both empty: it is not grounded."""

    text: str
    things: tuple[int, ...] = ()
    stuff: tuple[int, ...] = ()
    noun: bool = False

    @property
    def plural(self) -> bool:
        return len(self.things) > 1


@dataclass(frozen=True, slots=True)
class Phrase:
    """What is said of a thing, and which of `ATTRIBUTES` that names."""

    text: str
    names: frozenset[str]


def noun_phrase(thing: Thing, names: tuple[str, ...], article: str = "the") -> str:
    """ "the small red ring": the named attributes in their order; "thing" where the shape is not named."""
    words = [getattr(thing, name) for name in ATTRIBUTES if name in names]
    return " ".join([article, *words, *([] if "shape" in names else ["thing"])])


def _extended(thing: Thing, names: tuple[str, ...], place: str, rng: random.Random, link: str = " , ") -> Phrase:
    """A noun phrase, its place, and most often some of the looks that are not yet said."""
    unsaid = [name for name in ATTRIBUTES if name not in (*names, "shape")]
    chosen = rng.sample(unsaid, min(len(unsaid), rng.choice((0, 1, 1, 2, 2, 3))))
    later = [name for name in ATTRIBUTES if name in chosen]  # always in the same order: less to guess
    text = f"{noun_phrase(thing, names)} {place}".strip()
    if later:
        text += link + " and ".join(getattr(thing, name) for name in later)
    return Phrase(text, frozenset((*names, *later)))


def alike(scene: Scene, index: int, names: tuple[str, ...]) -> list[int]:
    """Things that share the named attributes with thing `index`, itself included."""
    wanted = [getattr(scene.things[index], name) for name in names]
    return [i for i, t in enumerate(scene.things) if [getattr(t, name) for name in names] == wanted]


def holds(scene: Scene, a: int, relation: str, b: int, margin: float) -> bool:
    """Is thing a `relation` thing b, by at least `margin` pixels between the centres?"""
    p, q = scene.things[a], scene.things[b]
    gap = {"left of": q.x - p.x, "right of": p.x - q.x, "above": q.y - p.y, "below": p.y - q.y}[relation]
    return gap > margin


def _attribute_sets(rng: random.Random) -> list[tuple[str, ...]]:
    """Every set of attributes worth saying, few first; random order among equals; most name the shape."""
    extra = ("colour", "size", "texture")
    sets: list[tuple[str, ...]] = [("shape",), *((e, "shape") for e in extra), ("colour", "size", "shape")]
    sets += [("colour", "texture", "shape"), ("size", "texture", "shape"), ATTRIBUTES]
    if rng.random() < 0.15:
        sets += [("colour",), ("colour", "size")]
    return sorted(sets, key=lambda names: (len(names) if rng.random() < 0.7 else 3, rng.random()))


def by_attributes(scene: Scene, index: int, rng: random.Random) -> str | None:
    """A noun phrase that only thing `index` satisfies, or None."""
    for names in _attribute_sets(rng):
        if alike(scene, index, names) == [index]:
            return noun_phrase(scene.things[index], names)
    return None


def _by_looks(scene: Scene, index: int, rng: random.Random) -> Phrase | None:
    """The same and more: "the red ring that is small"."""
    for names in _attribute_sets(rng):
        if alike(scene, index, names) == [index]:
            return _extended(scene.things[index], names, "", rng, " that is ")
    return None


def _by_place(scene: Scene, index: int, rng: random.Random) -> Phrase | None:
    """ "the red ring on the left": the outermost of several alike, with a margin; or the one on its kind of ground."""
    thing = scene.things[index]
    for names in _attribute_sets(rng)[:5]:
        others = [i for i in alike(scene, index, names) if i != index]
        if not others:
            continue
        ground = scene.ground_of(index)
        if ground and all(scene.ground_of(i) not in (ground, None) for i in others):
            return _extended(thing, names, f"on the {ground}", rng)
        places = [r for r in RELATIONS if all(holds(scene, index, r, i, 14) for i in others)]
        if places:
            return _extended(thing, names, PLACES[rng.choice(places)], rng)
    return None


def _by_relation(scene: Scene, index: int, rng: random.Random) -> Phrase | None:
    """ "the ring left of the blue star": clearly true of this thing, clearly false of all that look alike."""
    anchors = [i for i in range(len(scene.things)) if i != index]
    rng.shuffle(anchors)
    for names in _attribute_sets(rng)[:4]:
        others = [i for i in alike(scene, index, names) if i != index]
        for anchor in anchors:
            anchor_phrase = by_attributes(scene, anchor, rng)
            if not others or anchor in others or anchor_phrase is None:
                continue
            for relation in rng.sample(RELATIONS, 4):
                if holds(scene, index, relation, anchor, 14) and not any(
                    holds(scene, i, relation, anchor, -4) for i in others
                ):
                    return _extended(scene.things[index], names, f"{relation} {anchor_phrase}", rng)
    return None


def expressions(scene: Scene, index: int, rng: random.Random, count: int = 3) -> list[str]:
    """Up to `count` different expressions that refer to thing `index` alone; empty where none was found."""
    return [phrase.text for phrase in phrases(scene, index, rng, count)]


def phrases(scene: Scene, index: int, rng: random.Random, count: int) -> list[Phrase]:
    """Up to `count` different phrases that refer to thing `index` alone, with what they say."""
    makers = [_by_looks, _by_place, _by_relation]
    found: list[Phrase] = []
    for _ in range(2 * count):
        rng.shuffle(makers)
        phrase = next((p for make in makers if (p := make(scene, index, rng))), None)
        if phrase and phrase.text not in [p.text for p in found]:
            found.append(phrase)
    return found[:count]


def narrative(scene: Scene, rng: random.Random) -> list[Segment]:
    """A localised narrative in the style of PNG: grounded phrases of things and stuff between ungrounded words.

    Nouns that are not to be grounded: "picture", "background", "side", and any shape or stuff that the text denies
    ("there is no star"), so that the same noun is sometimes grounded and sometimes not.
    """
    sentences = [*_thing_sentences(scene, rng), *_stuff_sentences(scene, rng), *_denials(scene, rng)]
    rng.shuffle(sentences)
    opening = rng.choice(
        (["in this", "*picture", "we see :"], ["this is a", "*picture", "with some", "*things", "."], [])
    )
    text = [Segment(text=t.lstrip("*"), noun=t.startswith("*")) for t in opening]
    return text + [segment for sentence in sentences[:5] for segment in sentence]


def _thing_sentences(scene: Scene, rng: random.Random) -> Iterator[list[Segment]]:
    spoken: set[int] = set()
    for index in rng.sample(range(len(scene.things)), len(scene.things)):
        if index in spoken:
            continue
        names = rng.choice((("shape",), ("colour", "shape"), ("colour", "texture", "shape")))
        group = tuple(alike(scene, index, names))
        if len(group) > 1 and rng.random() < 0.7:
            text = _plural(scene, group, names)
            spoken.update(group)
            yield [Segment(text="there are"), Segment(text=text, things=group, noun=True), Segment(text=".")]
            continue
        phrase = _by_looks(scene, index, rng) or _by_place(scene, index, rng)
        if phrase is None:
            continue
        spoken.add(index)
        yield [*_sentence(scene, index, phrase, rng), Segment(text=".")]


def _plural(scene: Scene, group: tuple[int, ...], names: tuple[str, ...]) -> str:
    """ "two red rings that are small": what all of the group have in common."""
    things = [scene.things[i] for i in group]
    words = [getattr(things[0], n) for n in ATTRIBUTES if n in names and n != "shape"]
    common = [getattr(things[0], n) for n in ATTRIBUTES if n not in names and len({getattr(t, n) for t in things}) == 1]
    clause = ["that are", " and ".join(common)] if common else []
    return " ".join([NUMBERS[len(group)], *words, PLURALS[things[0].shape], *clause])


def _sentence(scene: Scene, index: int, phrase: Phrase, rng: random.Random) -> list[Segment]:
    """A sentence about one thing: with another thing, on its ground, beside a side of the picture, or a property."""
    thing, kind, ground = scene.things[index], rng.random(), scene.ground_of(index)
    verb, subject = VERBS[ground], Segment(text=phrase.text, things=(index,), noun=True)
    others = rng.sample(range(len(scene.things)), len(scene.things))
    if kind < 0.35:
        for anchor in others:
            other = _by_looks(scene, anchor, rng)
            relations = [r for r in RELATIONS if anchor != index and holds(scene, index, r, anchor, 14)]
            if other and relations:
                object_ = Segment(text=other.text, things=(anchor,), noun=True)
                return [subject, Segment(text=f"{verb} {rng.choice(relations)}"), object_]
    if kind < 0.6 and ground:
        place = Segment(text=f"the {ground}", stuff=(scene.stuff.index(ground),), noun=True)
        return [subject, Segment(text=f"{verb} on"), place]
    if kind < 0.8 and abs(thing.x / scene.width - 0.5) > 0.2:
        side = "left" if thing.x < scene.width / 2 else "right"
        return [subject, Segment(text=f"{verb} on the {side}"), Segment(text="side", noun=True)]
    unsaid = [getattr(thing, name) for name in ATTRIBUTES if name not in (*phrase.names, "shape")]
    return [subject, Segment(text=f"is {rng.choice(unsaid)}" if unsaid else verb)]


def _stuff_sentences(scene: Scene, rng: random.Random) -> Iterator[list[Segment]]:
    for k, name in enumerate(scene.stuff):
        if rng.random() < 0.3:
            continue
        stuff = Segment(text=f"the {name}", stuff=(k,), noun=True)
        if k > 0 and rng.random() < 0.5:
            upper = Segment(text=f"the {scene.stuff[k - 1]}", stuff=(k - 1,), noun=True)
            yield [stuff, Segment(text="is below"), upper, Segment(text=".")]
        elif rng.random() < 0.5:
            yield [
                Segment(text="in the"),
                Segment(text="background", noun=True),
                Segment(text="is"),
                stuff,
                Segment(text="."),
            ]
        else:
            yield [Segment(text="we see"), stuff, Segment(text=".")]


def _denials(scene: Scene, rng: random.Random) -> Iterator[list[Segment]]:
    present = {t.shape for t in scene.things}
    absent = [s for s in SHAPES if s not in present]
    if absent and rng.random() < 0.7:
        noun = rng.choice(absent)
        if rng.random() < 0.5:
            yield [Segment(text="there is no"), Segment(text=noun, noun=True), Segment(text=".")]
        else:
            colour = rng.choice(list(COLOURS))
            yield [
                Segment(text="there are no"),
                Segment(text=f"{colour} {PLURALS[noun]}", noun=True),
                Segment(text="."),
            ]
    missing = [s for s in STUFF if s not in scene.stuff]
    if rng.random() < 0.4:
        yield [Segment(text="we do not see"), Segment(text=f"the {rng.choice(missing)}", noun=True), Segment(text=".")]
