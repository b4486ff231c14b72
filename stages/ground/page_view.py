"""The page's HTML: pure functions of what was grounded and how it is to be looked at.

Everything that a user, a file or an LMM wrote goes through `escaped`. What the script (page.js) needs to know is in
data attributes: a word has its turn, its number, its phrase (or -1) and a label; a layer has its turn and its phrase.
"""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

import numpy as np

from stages.ground import page_pictures as pictures
from stages.ground.results import PARTS, Grounding, Phrase

Kind = Literal["mean", "map", "kmeans"]
_PARTS: Final = dict(zip(PARTS, ("answer", "capture", "SAM", "selector", "decode"), strict=True))
HINT: Final = "Point at a word of an answer: its mask and its attention appear here."
_TEMPLATE: Final = str.maketrans({"{": "&#123;", "}": "&#125;", "$": "&#36;", "`": "&#96;", "\\": "&#92;"})


@dataclass(frozen=True, kw_only=True, slots=True)
class View:
    """How to look.

    layer, head: of `map`, counted from 1.  k: clusters of `kmeans`.  refined: the last mask, or the mask decoder's.
    """

    kind: Kind = "mean"
    layer: int = 1
    head: int = 1
    k: int = 4
    refined: bool = True


@dataclass(frozen=True, kw_only=True, slots=True)
class Maps:
    """Which attention maps there are. of: (layer, head), both from 1 -> the maps' numbers (one for each view)."""

    layers: int
    heads: int
    of: Mapping[tuple[int, int], Sequence[int]] = field(repr=False)


def escaped(text: str) -> str:
    """Text as HTML that is nothing but text, for Gradio's templates too, which read ${…} and {{…}}."""
    return html.escape(text).translate(_TEMPLATE)


def message(text: str, *, fault: bool = True) -> str:
    """The line that says what went wrong (or just what happened); "" for none."""
    role, kind = ("alert", "fault") if fault else ("status", "note")
    return f'<div class="gw-message {kind}" role="{role}">{escaped(text)}</div>' if text else ""


def scenes(labels: Sequence[tuple[str, str]], chosen: int | None) -> str:
    """Buttons of the pictures that can be picked. labels: (address of the picture, what it is)."""
    buttons = [
        f'<button type="button" class="gw-scene" data-scene="{number}" aria-pressed="{str(number == chosen).lower()}" '
        f'title="{escaped(label)}"><img src="{address}" alt="{escaped(label)}"></button>'
        for number, (address, label) in enumerate(labels)
    ]
    return f'<div class="gw-scenes">{"".join(buttons)}</div>'


def words(turn: int, grounding: Grounding) -> str:
    """The text with its phrases marked in their colours; every word can be pointed at."""
    numbers, parts, end = grounding.numbers, [], 0
    for number, word in enumerate(grounding.words):
        gap = escaped(grounding.text[end : word.start]).replace("\n", "<br>")
        before = numbers[number - 1] if number else -1
        if before >= 0 and before != numbers[number]:
            parts.append("</mark>")
        parts.append(gap)
        if numbers[number] >= 0 and before != numbers[number]:
            parts.append(f'<mark style="--c:{pictures.colour_of(numbers[number])}">')
        parts.append(_word(turn, number, numbers[number], grounding))
        end = word.end
    closed = "</mark>" if numbers and numbers[-1] >= 0 else ""
    return "".join(parts) + closed + escaped(grounding.text[end:])


def _word(turn: int, number: int, phrase: int, grounding: Grounding) -> str:
    word, label = grounding.words[number], ""
    if phrase >= 0:
        label = _label(grounding.phrases[phrase], grounding)
    elif word.score is not None:
        label = f"“{word.text}”: score {word.score:.2f}, not marked"
    return (
        f'<span class="gw-word" tabindex="0" data-turn="{turn}" data-word="{number}" data-phrase="{phrase}" '
        f'data-label="{escaped(label)}">{escaped(word.text)}</span>'
    )


def _label(phrase: Phrase, grounding: Grounding) -> str:
    share = f"{100 * phrase.area / (grounding.image.width * grounding.image.height):.1f} % of the image"
    score = "" if phrase.score is None else f"score {phrase.score:.2f}, "
    return f"“{phrase.text}”: {score}{share if phrase.area else 'no pixel'}"


def bubbles(turn: int, grounding: Grounding) -> str:
    """One turn of the chat: what was asked, what was said."""
    if grounding.question is None:
        return _asked("Where is this?") + f'<div class="gw-said">{words(turn, grounding)}</div>'
    note = "" if grounding.finished else '<span class="gw-cut"> … (cut off)</span>'
    said = words(turn, grounding) if grounding.text else "<em>(nothing)</em>"
    faded = ""
    if grounding.lam is not None and grounding.words and not len(grounding.attention):
        faded = f'<div class="gw-old">Stays marked by λ {grounding.lam:.2f}: its attention is not kept any more.</div>'
    return _asked(grounding.question) + f'<div class="gw-said">{said}{note}</div>{faded}'


def pending(question: str, text: str) -> str:
    """The turn that is being answered."""
    dots = '<span class="gw-typing" aria-label="answering"><i></i><i></i><i></i></span>'
    return _asked(question) + f'<div class="gw-said gw-pending">{escaped(text)} {dots}</div>'


def _asked(question: str) -> str:
    return f'<div class="gw-asked">{escaped(question)}</div>'


def chat(turns: Mapping[int, Grounding], live: str = "", dropped: bool = False) -> str:
    """All turns, by number. live: the turn that is being answered.  dropped: the first turns are not kept any more."""
    if not turns and not live:
        return '<div class="gw-chat gw-empty">Ask something about the picture.</div>'
    start = '<div class="gw-old">Earlier turns are not shown any more.</div>' if dropped else ""
    shown = "".join(bubbles(number, grounding) for number, grounding in turns.items())
    return f'<div class="gw-chat">{start}{shown}{live}</div>'


def turn_layers(turn: int, grounding: Grounding, view: View) -> str:
    """The masks of one turn: two layers a phrase, larger masks below smaller ones."""
    size, found = pictures.shown_size(grounding.image), []
    for number, phrase in sorted(enumerate(grounding.phrases), key=lambda item: -item[1].area):
        mask = phrase.mask if view.refined else phrase.coarse_mask
        if mask.any():
            fill, spot = pictures.layers(mask, number, size)
            about = f'data-turn="{turn}" data-phrase="{number}" alt=""'
            found.append(f'<img class="gw-fill" {about} src="{fill}"><img class="gw-spot" {about} src="{spot}">')
    return "".join(found)


def stage(photo: str, layers: Mapping[int, str], caption: str) -> str:
    """The picture with the layers of all turns (`turn_layers`); those of the last one are seen.

    photo: its address, or "" where no picture is chosen.
    """
    if not photo:
        return '<div class="gw-figure gw-nothing">Pick a scene, or upload a picture.</div>'
    last = max(layers, default=-1)
    seen = layers.get(last, "").replace('class="gw-fill"', 'class="gw-fill gw-on"')
    below = "".join(each for number, each in layers.items() if number != last)
    marked = " gw-marked" if seen else ""
    return (
        f'<figure class="gw-figure"><div class="gw-picture{marked}" data-last="{last}">'
        f'<img class="gw-photo" src="{photo}" alt="the picture">{below}{seen}</div>'
        f'<figcaption data-rest="{escaped(caption)}">{escaped(caption)}</figcaption></figure>'
    )


def attention(
    photo: str, grounding: Grounding | None, word: int, view: View, maps: Maps, kept: dict[tuple[int, int], str]
) -> str:
    """Where the LMM looked when it said a word, over the picture in grey.

    kept: pictures of clusters of this grounding, by (word, k); what is drawn is added.
    """
    if not photo or grounding is None:
        return f'<div class="gw-figure gw-nothing">{HINT if photo else "Attention of words"}</div>'
    picture, caption, kind = "", "", ""
    if not len(grounding.attention) and not grounding.phrases:
        caption = "No attention was kept: nothing is marked. Name something, and its attention appears here."
    elif not len(grounding.attention):
        caption = "The attention of this turn is not kept any more: ask again, or begin a new conversation."
    else:
        if view.kind == "kmeans":
            picture, caption = _clusters_picture(grounding, word, view.k, kept)
        else:
            picture, caption = _attention_picture(grounding.attention_of(word).astype(np.float32), view, maps)
        caption = f"“{_named(grounding, word)}”: {caption}"
        kind = "gw-cells" if view.kind == "kmeans" else "gw-heat"
    layer = f'<img class="{kind}" alt="attention" src="{picture}">' if picture else ""
    return (
        f'<figure class="gw-figure"><div class="gw-picture gw-grey"><img class="gw-photo" src="{photo}" alt="">{layer}'
        f"</div><figcaption>{escaped(caption)}</figcaption></figure>"
    )


def _attention_picture(found: np.ndarray, view: View, maps: Maps) -> tuple[str, str]:
    """Address and caption. found: float32 [C, h, w]."""
    if view.kind == "mean":
        return pictures.heat(found.mean(0)), f"mean of {len(found)} attention maps"
    name = f"layer {view.layer} of {maps.layers}, head {view.head} of {maps.heads}"
    chosen = maps.of.get((view.layer, view.head))
    if not chosen:
        return "", f"{name}: not among the maps that this head was trained with"
    return pictures.heat(found[list(chosen)].mean(0)), name


def _clusters_picture(grounding: Grounding, word: int, k: int, kept: dict[tuple[int, int], str]) -> tuple[str, str]:
    """Address and caption."""
    found = grounding.attention_of(word)
    if (word, k) not in kept:
        kept[word, k] = pictures.clusters(found.astype(np.float32), k)
    coarse = ", averaged to larger cells" if max(found.shape[1:]) > pictures.CLUSTERED_SIDE else ""
    return kept[word, k], f"cells that are alike in all {len(found)} maps ({k} clusters{coarse})"


def _named(grounding: Grounding, word: int) -> str:
    """A word, or the phrase where words were given: they have one map together."""
    if grounding.lam is None and grounding.numbers[word] >= 0:
        return grounding.phrases[grounding.numbers[word]].text
    return grounding.words[word].text


def seconds(grounding: Grounding | None) -> str:
    """What took how long."""
    if grounding is None:
        return ""
    times = {name: grounding.seconds.get(part, 0.0) for part, name in _PARTS.items()}
    cells = [f"<td>{value:.2f} s</td>" if value else "<td>–</td>" for value in (*times.values(), sum(times.values()))]
    names = "".join(f'<th scope="col">{name}</th>' for name in (*times, "together"))
    return f'<table class="gw-seconds"><thead><tr>{names}</tr></thead><tbody><tr>{"".join(cells)}</tr></tbody></table>'
