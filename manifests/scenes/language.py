"""What people would say about a scene: referring expressions, narratives with grounded phrases, questions.

All text is lower case, words separated by one space. A noun phrase is "the [size] [texture] [colour] shape", or says
some of it afterwards: "the ring that is small and red". What stands on something is said to float, lie, lean … on it.

A language model learns to look at a thing only while it has to say something about it. So that the words of a phrase
themselves look, they are followed by a verb that depends on where the thing is, or go on with more of its looks.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Sequence
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


def _noun_phrase(thing: Thing, names: tuple[str, ...], article: str = "the") -> str:
    words = [getattr(thing, name) for name in ATTRIBUTES if name in names]
    return " ".join([article, *words, *([] if "shape" in names else ["thing"])])


def _spoken(thing: Thing, names: tuple[str, ...], rng: random.Random) -> str:
    """A noun phrase with all attributes before the shape, or some of them after it."""
    later = [name for name in names if name != "shape" and rng.random() < 0.6]
    if not later or rng.random() < 0.4:
        return _noun_phrase(thing, names)
    rng.shuffle(later)
    first = _noun_phrase(thing, tuple(name for name in names if name not in later))
    return f"{first} that is {' and '.join(getattr(thing, name) for name in later)}"


def _linked(phrase: str, place: str, rng: random.Random) -> str:
    return f"{phrase} that is {place}" if rng.random() < 0.5 else f"{phrase} {place}"


def _alike(scene: Scene, index: int, names: tuple[str, ...]) -> list[int]:
    """Things that share the named attributes with thing `index`, itself included."""
    wanted = [getattr(scene.things[index], name) for name in names]
    return [i for i, t in enumerate(scene.things) if [getattr(t, name) for name in names] == wanted]


def _holds(scene: Scene, a: int, relation: str, b: int, margin: float) -> bool:
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


def _by_attributes(scene: Scene, index: int, rng: random.Random) -> str | None:
    """A noun phrase that only thing `index` satisfies, or None."""
    for names in _attribute_sets(rng):
        if _alike(scene, index, names) == [index]:
            return _noun_phrase(scene.things[index], names)
    return None


def _by_clause(scene: Scene, index: int, rng: random.Random) -> str | None:
    """The same, some of it perhaps in a clause: "the red ring that is small"."""
    for names in _attribute_sets(rng):
        if _alike(scene, index, names) == [index]:
            return _spoken(scene.things[index], names, rng)
    return None


def _by_place(scene: Scene, index: int, rng: random.Random) -> str | None:
    """ "the red ring on the left": the outermost of several alike, with a margin; or the one on its kind of ground."""
    for names in _attribute_sets(rng)[:5]:
        others = [i for i in _alike(scene, index, names) if i != index]
        phrase = _noun_phrase(scene.things[index], names)
        if not others:
            continue
        ground = scene.ground_of(index)
        if ground and all(scene.ground_of(i) not in (ground, None) for i in others):
            return _linked(phrase, f"on the {ground}", rng)
        places = [r for r in RELATIONS if all(_holds(scene, index, r, i, 14) for i in others)]
        if places:
            return _linked(phrase, PLACES[rng.choice(places)], rng)
    return None


def _by_relation(scene: Scene, index: int, rng: random.Random) -> str | None:
    """ "the ring left of the blue star": clearly true of this thing, clearly false of all that look alike."""
    anchors = [i for i in range(len(scene.things)) if i != index]
    rng.shuffle(anchors)
    for names in _attribute_sets(rng)[:4]:
        others = [i for i in _alike(scene, index, names) if i != index]
        for anchor in anchors:
            anchor_phrase = _by_attributes(scene, anchor, rng)
            if not others or anchor in others or anchor_phrase is None:
                continue
            for relation in rng.sample(RELATIONS, 4):
                if _holds(scene, index, relation, anchor, 14) and not any(
                    _holds(scene, i, relation, anchor, -4) for i in others
                ):
                    return _linked(_noun_phrase(scene.things[index], names), f"{relation} {anchor_phrase}", rng)
    return None


def expressions(scene: Scene, index: int, rng: random.Random, count: int = 3) -> list[str]:
    """Up to `count` different expressions that refer to thing `index` alone; empty where none was found."""
    makers = [_by_clause, _by_place, _by_relation]
    found: list[str] = []
    for _ in range(2 * count):
        rng.shuffle(makers)
        text = next((t for make in makers if (t := make(scene, index, rng))), None)
        if text and text not in found:
            found.append(text)
    return found[:count]


def _about(scene: Scene, index: int, said: str, rng: random.Random) -> str:
    """Something true and not yet `said` of a thing: "is striped", "is on the grass", "is left of the star"."""
    thing = scene.things[index]
    facts = [f"is {thing.texture}", f"is {thing.colour}", f"is {thing.size}", f"is a {thing.shape}"]
    ground = scene.ground_of(index)
    if ground:
        facts += [f"is on the {ground}"] * 2
    third_x, third_y = 3 * thing.x / scene.width, 3 * thing.y / scene.height
    place = [PLACES["left of"]] * (third_x < 1) + [PLACES["right of"]] * (third_x > 2)
    place += [PLACES["above"]] * (third_y < 1) + [PLACES["below"]] * (third_y > 2)
    facts += [f"is {p}" for p in place or ["in the middle"]]
    facts = [fact for fact in facts if fact.split()[-1] not in said.split()]
    for anchor in rng.sample(range(len(scene.things)), len(scene.things)):
        phrase = _by_attributes(scene, anchor, rng)
        relations = [r for r in RELATIONS if anchor != index and _holds(scene, index, r, anchor, 14)]
        if phrase and relations:
            facts += [f"is {rng.choice(relations)} {phrase}"] * 2
            break
    return rng.choice(facts or [f"is {thing.size}"])


def _all_about(scene: Scene, index: int, said: str) -> str:
    """Its verb, its place and every attribute that its phrase does not name: "floats at the top left , small , red"."""
    thing = scene.things[index]
    head = re.split(r" (?:on|at|left|right|above|below) ", said)[0].split()
    facts = [word for name in ATTRIBUTES if (word := getattr(thing, name)) not in head]
    column = ("left", "", "right")[min(2, int(3 * thing.x / scene.width))]
    row = ("top", "", "bottom")[min(2, int(3 * thing.y / scene.height))]
    place = f"at the {row} {column}".strip() if row else f"on the {column}" if column else "in the middle"
    return " , ".join([f"{VERBS[scene.ground_of(index)]} {place}", *facts])


def statements(scene: Scene, rng: random.Random, most: int = 5) -> str:
    """Expressions of up to `most` things, followed by all, one or none of what is true: what the tiny LMM reads.

    What follows makes the last words of an expression resolve what it refers to, and leaves little to chance.
    """
    order = rng.sample(range(len(scene.things)), len(scene.things))[:most]
    parts = []
    for index in order:
        for text in expressions(scene, index, rng, count=1):
            kind = rng.random()
            if kind < 0.6:
                parts.append(f"{text} {_all_about(scene, index, text)} .")
            else:
                parts.append(f"{text} {_about(scene, index, text, rng)} ." if kind < 0.8 else f"{text} .")
    return " ".join(parts)


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
    return text + [segment for sentence in sentences[:6] for segment in sentence]


def _thing_sentences(scene: Scene, rng: random.Random) -> Iterator[list[Segment]]:
    spoken: set[int] = set()
    for index in rng.sample(range(len(scene.things)), len(scene.things)):
        if index in spoken:
            continue
        names = rng.choice((("shape",), ("colour", "shape"), ("colour", "texture", "shape")))
        group = tuple(_alike(scene, index, names))
        if len(group) > 1 and rng.random() < 0.7:
            words = [getattr(scene.things[index], n) for n in ATTRIBUTES if n in names and n != "shape"]
            text = " ".join([NUMBERS[len(group)], *words, PLURALS[scene.things[index].shape]])
            spoken.update(group)
            yield [Segment(text="there are"), Segment(text=text, things=group, noun=True), Segment(text=".")]
            continue
        phrase = _by_attributes(scene, index, rng) or _by_place(scene, index, rng)
        if phrase is None:
            continue
        spoken.add(index)
        subject = Segment(text=phrase, things=(index,), noun=True)
        yield [*_predicate(scene, index, subject, rng), Segment(text=".")]


def _predicate(scene: Scene, index: int, subject: Segment, rng: random.Random) -> list[Segment]:
    """A sentence about one thing: with another thing, on its ground, beside a side of the picture, or a property."""
    thing, kind, ground = scene.things[index], rng.random(), scene.ground_of(index)
    verb = VERBS[ground]
    others = rng.sample(range(len(scene.things)), len(scene.things))
    if kind < 0.35:
        for anchor in others:
            phrase = _by_attributes(scene, anchor, rng)
            relations = [r for r in RELATIONS if anchor != index and _holds(scene, index, r, anchor, 14)]
            if phrase and relations:
                object_ = Segment(text=phrase, things=(anchor,), noun=True)
                return [subject, Segment(text=f"{verb} {rng.choice(relations)}"), object_]
    if kind < 0.6 and ground:
        place = Segment(text=f"the {ground}", stuff=(scene.stuff.index(ground),), noun=True)
        return [subject, Segment(text=f"{verb} on"), place]
    if kind < 0.8 and abs(thing.x / scene.width - 0.5) > 0.2:
        side = "left" if thing.x < scene.width / 2 else "right"
        return [subject, Segment(text=f"{verb} on the {side}"), Segment(text="side", noun=True)]
    return [subject, Segment(text=f"is {rng.choice((thing.texture, thing.size, thing.colour))}")]


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


def listing(scene: Scene, rng: random.Random) -> tuple[str, str]:
    """A question that asks for everything in reading order, and its answer with all attributes of every thing.

    Nothing in the answer is left to chance, so each of its words asks the tiny LMM to look at the right place.
    """
    order = rng.choice(("from left to right", "from top to bottom"))
    things = sorted(scene.things, key=lambda t: t.x if order == "from left to right" else t.y)
    return f"What is there {order}?", _list(things)


def shelf_listing(scene: Scene) -> tuple[str, str]:
    """The same for a scene whose things stand in rows and columns."""
    return "What is there row by row?", _list(scene.things)


def _list(things: Sequence[Thing]) -> str:
    return " , ".join(_noun_phrase(t, ATTRIBUTES, "a") for t in things) + " ."


def question(scene: Scene, rng: random.Random) -> tuple[str, str]:
    """A question about the scene and its short answer."""
    index = rng.randrange(len(scene.things))
    thing = scene.things[index]
    phrase = next(iter(expressions(scene, index, rng, count=1)), None)
    kind = rng.choice(("colour", "texture", "ground", "count", "exists"))
    if kind == "colour" and len(_alike(scene, index, ("shape",))) == 1:
        return f"what colour is the {thing.shape} ?", f"{thing.colour} ."
    if kind == "texture" and phrase and not any(t in phrase for t in ("plain", "striped", "dotted")):
        return f"is {phrase} plain , striped or dotted ?", f"{thing.texture} ."
    if kind == "ground" and phrase and scene.ground_of(index) and " on the " not in phrase:
        return f"where is {phrase} ?", f"on the {scene.ground_of(index)} ."
    if kind == "count":
        count = len(_alike(scene, index, ("shape",)))
        return f"how many {PLURALS[thing.shape]} are there ?", f"{NUMBERS.get(count, 'one')} ."
    shape = rng.choice(SHAPES)
    return f"is there a {shape} ?", "yes ." if any(t.shape == shape for t in scene.things) else "no ."
