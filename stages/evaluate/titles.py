"""How protocols and metrics are called in tables; what is not listed is shown under its own name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, kw_only=True, slots=True)
class ProtocolTitle:
    """title: of the section.  about: how it was measured, one or two sentences.  items: what is counted.
    headline: (group, metric) of the number to show first; None: the first one there is.
    main: groups of the main table, the others are a breakdown; where a protocol has none of them, all are main.
    """

    title: str
    about: str = ""
    items: str = "objects"
    headline: tuple[str, str] | None = None
    main: tuple[str, ...] = ("all",)


_RES: Final = (
    "cIoU sums intersections and unions over all objects, mIoU weighs every object the same, P@t is the share of "
    "objects with an IoU of at least t."
)
_GCG: Final = (
    "The LMM writes a caption, its phrases are found and grounded. METEOR and CIDEr of the caption, AP50 of the masks, "
    "mean IoU over matched pairs, recall of true phrases (IoU and similarity of the texts at least one half)."
)
PROTOCOLS: Final = {
    "res-flmm": ProtocolTitle(
        title="Referring expressions, F-LMM's protocol",
        about=f"The first sentence of every object, all sentences of an image in one text. {_RES}",
        headline=("all", "ciou"),
    ),
    "res-lisa": ProtocolTitle(
        title="Referring expressions, LISA's protocol",
        about=f"Every sentence of every object, each alone. {_RES}",
        items="expressions",
        headline=("all", "ciou"),
    ),
    "png": ProtocolTitle(
        title="Panoptic narrative grounding",
        about="Average recall: the share of phrases with an IoU of at least t, integrated over t from 0 to 1. A plural "
        "phrase counts as a thing.",
        items="phrases",
        headline=("all", "average_recall"),
        main=("all", "thing", "stuff", "singular", "plural"),
    ),
    "reasonseg": ProtocolTitle(
        title="Reasoning segmentation",
        about="The LMM answers a question, its answer is grounded. gIoU is the mean IoU, 1 where nothing is there and "
        "nothing was found; cIoU sums intersections and unions.",
        items="questions",
        headline=("all", "giou"),
    ),
    "gcg": ProtocolTitle(
        title="Grounded conversation, as the public script counts",
        about=_GCG,
        items="captions",
        headline=("all", "miou"),
    ),
    "gcg-strict": ProtocolTitle(
        title="Grounded conversation, the script's faults mended",
        about=f"{_GCG} Not comparable with published numbers.",
        items="captions",
        headline=("all", "miou"),
    ),
    "keywords": ProtocolTitle(
        title="Keywords",
        about="Which words of a text are to be grounded. A phrase is right if exactly its words are a true phrase; "
        "under “overlap”, if it shares more than half of the words with one.",
        items="texts",
        headline=("word", "f1"),
        main=("word", "phrase", "overlap"),
    ),
}
METRICS: Final = {
    "ciou": "cIoU",
    "miou": "mIoU",
    "giou": "gIoU",
    "giou_flmm": "gIoU, F-LMM’s",
    "ciou_normalised": "cIoU, per image",
    "average_recall": "average recall",
    "meteor": "METEOR",
    "cider": "CIDEr",
    "ap50": "AP50",
    "f1": "F1",
}


def protocol_title(name: str) -> ProtocolTitle:
    """Of a protocol nobody listed: its name."""
    return PROTOCOLS.get(name, ProtocolTitle(title=name, items="items"))


def metric_title(name: str) -> str:
    """ "p@0.5" -> "P@0.5", "ap50[org/bert]" -> "AP50 (bert)", what is not known with spaces for "_"."""
    if name.startswith("p@"):
        return "P" + name[1:]
    kind, bracket, of = name.partition("[")
    kind = METRICS.get(kind, kind.replace("_", " "))
    return f"{kind} ({of.removesuffix(']').rpartition('/')[2]})" if bracket else kind
