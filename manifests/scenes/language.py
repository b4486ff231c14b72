"""What people would say about a scene: referring expressions, narratives with grounded phrases, questions.

All text is lower case, words separated by one space. A noun phrase is "the [size] [texture] [colour] shape", perhaps
with a place or a relation; most go on with more of its looks: "the red ring that is small and striped", "the ring left
of the star , small and red". What stands on something is said to float, lie, lean … on it.

A language model learns to look at a thing only while it has to say something about it. That is why phrases say more
than they need, as people do: the words that follow make those of the phrase itself look at what is meant.
"""

from __future__ import annotations

import random
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


@dataclass(frozen=True, slots=True)
class _Phrase:
    """What is said of a thing, and which of `ATTRIBUTES` that names."""

    text: str
    names: frozenset[str]


def _noun_phrase(thing: Thing, names: tuple[str, ...], article: str = "the") -> str:
    words = [getattr(thing, name) for name in ATTRIBUTES if name in names]
    return " ".join([article, *words, *([] if "shape" in names else ["thing"])])


def _extended(thing: Thing, names: tuple[str, ...], place: str, rng: random.Random, link: str = " , ") -> _Phrase:
    """A noun phrase, its place, and most often some of the looks that are not yet said."""
    unsaid = [name for name in ATTRIBUTES if name not in (*names, "shape")]
    chosen = rng.sample(unsaid, min(len(unsaid), rng.choice((0, 1, 1, 2, 2, 3))))
    later = [name for name in ATTRIBUTES if name in chosen]  # always in the same order: less to guess
    text = f"{_noun_phrase(thing, names)} {place}".strip()
    if later:
        text += link + " and ".join(getattr(thing, name) for name in later)
    return _Phrase(text, frozenset((*names, *later)))


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


def _by_looks(scene: Scene, index: int, rng: random.Random) -> _Phrase | None:
    """The same and more: "the red ring that is small"."""
    for names in _attribute_sets(rng):
        if _alike(scene, index, names) == [index]:
            return _extended(scene.things[index], names, "", rng, " that is ")
    return None


def _by_place(scene: Scene, index: int, rng: random.Random) -> _Phrase | None:
    """ "the red ring on the left": the outermost of several alike, with a margin; or the one on its kind of ground."""
    thing = scene.things[index]
    for names in _attribute_sets(rng)[:5]:
        others = [i for i in _alike(scene, index, names) if i != index]
        if not others:
            continue
        ground = scene.ground_of(index)
        if ground and all(scene.ground_of(i) not in (ground, None) for i in others):
            return _extended(thing, names, f"on the {ground}", rng)
        places = [r for r in RELATIONS if all(_holds(scene, index, r, i, 14) for i in others)]
        if places:
            return _extended(thing, names, PLACES[rng.choice(places)], rng)
    return None


def _by_relation(scene: Scene, index: int, rng: random.Random) -> _Phrase | None:
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
                    return _extended(scene.things[index], names, f"{relation} {anchor_phrase}", rng)
    return None


def expressions(scene: Scene, index: int, rng: random.Random, count: int = 3) -> list[str]:
    """Up to `count` different expressions that refer to thing `index` alone; empty where none was found."""
    return [phrase.text for phrase in _phrases(scene, index, rng, count)]


def _phrases(scene: Scene, index: int, rng: random.Random, count: int) -> list[_Phrase]:
    makers = [_by_looks, _by_place, _by_relation]
    found: list[_Phrase] = []
    for _ in range(2 * count):
        rng.shuffle(makers)
        phrase = next((p for make in makers if (p := make(scene, index, rng))), None)
        if phrase and phrase.text not in [p.text for p in found]:
            found.append(phrase)
    return found[:count]


def _about(scene: Scene, index: int, said: _Phrase, rng: random.Random) -> str:
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
        phrase = _by_attributes(scene, anchor, rng)
        relations = [r for r in RELATIONS if anchor != index and _holds(scene, index, r, anchor, 14)]
        if phrase and relations:
            facts += [f"is {rng.choice(relations)} {phrase}"] * 2
            break
    return rng.choice(facts or [f"is {thing.size}"])


def _place(x: float, y: float) -> str:
    """ "at the top left", "on the right", "in the middle", …: thirds of the picture; x and y in [0, 1]."""
    column = ("left", "", "right")[min(2, int(3 * x))]
    row = ("top", "", "bottom")[min(2, int(3 * y))]
    return f"at the {row} {column}".strip() if row else f"on the {column}" if column else "in the middle"


def _all_about(scene: Scene, index: int, said: _Phrase) -> str:
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
        for phrase in _phrases(scene, index, rng, count=1):
            kind = rng.random()
            if kind < 0.6:
                parts.append(f"{phrase.text} {_all_about(scene, index, phrase)} .")
            else:
                parts.append(
                    f"{phrase.text} {_about(scene, index, phrase, rng)} ." if kind < 0.8 else f"{phrase.text} ."
                )
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
    return text + [segment for sentence in sentences[:5] for segment in sentence]


def _thing_sentences(scene: Scene, rng: random.Random) -> Iterator[list[Segment]]:
    spoken: set[int] = set()
    for index in rng.sample(range(len(scene.things)), len(scene.things)):
        if index in spoken:
            continue
        names = rng.choice((("shape",), ("colour", "shape"), ("colour", "texture", "shape")))
        group = tuple(_alike(scene, index, names))
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


def _sentence(scene: Scene, index: int, phrase: _Phrase, rng: random.Random) -> list[Segment]:
    """A sentence about one thing: with another thing, on its ground, beside a side of the picture, or a property."""
    thing, kind, ground = scene.things[index], rng.random(), scene.ground_of(index)
    verb, subject = VERBS[ground], Segment(text=phrase.text, things=(index,), noun=True)
    others = rng.sample(range(len(scene.things)), len(scene.things))
    if kind < 0.35:
        for anchor in others:
            other = _by_looks(scene, anchor, rng)
            relations = [r for r in RELATIONS if anchor != index and _holds(scene, index, r, anchor, 14)]
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
        parts.append(f"{place} {_noun_phrase(scene.things[cell], ATTRIBUTES, 'a')}")
    return "What is there place by place?", " , ".join(parts) + " ."


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
