"""Cards: every dataset has one, the official numbers add up, and a difference is told with both numbers."""

from __future__ import annotations

from manifests.build import DATASETS
from manifests.cards import CARDS, differences, official_counts


def test_every_dataset_has_a_card() -> None:
    assert {name for name in DATASETS if not name.startswith(("scenes-", "shifted-"))} == CARDS.keys()
    for name, card in CARDS.items():
        assert card.what and card.licence and card.layout
        assert all(url.startswith(("http", "docs/")) for url in (*card.urls, *card.sources)), name
        assert not card.official or card.sources


def test_totals_are_those_that_others_publish() -> None:
    # Yu et al. 2016: RefCOCO has 142,209 expressions of 50,000 objects in 19,994 images, RefCOCO+ 49,856 in 19,992;
    # its pickle holds one expression more. RefCOCOg umd: 49,822 objects in 25,799 images
    def total(name: str, field: str) -> int:
        return sum((official_counts(name, split) or {})[field] for split in CARDS[name].official)

    names = ("refcoco", "refcoco+", "refcocog", "refcoco-google")
    totals = {name: {field: total(name, field) for field in ("objects", "images")} for name in names}
    assert totals["refcoco"] == {"objects": 50_000, "images": 19_994}
    assert totals["refcoco+"] == {"objects": 49_856, "images": 19_992}
    assert totals["refcocog"] == {"objects": 49_822, "images": 25_799}
    assert totals["refcoco-google"]["objects"] == 50_000
    assert total("refcoco", "expressions") == 142_210
    assert total("reasonseg", "images") == 1218


def test_differences() -> None:
    assert differences("refcoco", "val", {"images": 1500, "objects": 3811}) == []
    (line,) = differences("refcoco", "val", {"images": 1499, "objects": 3811})
    assert line.startswith("refcoco val: 1,499 images, officially 1,500")
    assert differences("png", "val", {"images": 1}) == differences("refcoco", "x", {"images": 1}) == []
    assert differences("None", "val", {"images": 1}) == []
