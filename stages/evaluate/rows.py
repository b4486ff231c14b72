"""Measures of the protocols' rows, until the protocols give measures themselves."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from stages.evaluate.bootstrap import Estimate
from stages.evaluate.keywords import KeywordRow
from stages.evaluate.measures import Measure
from stages.evaluate.png import PngRow
from stages.evaluate.res import ResRow


def as_measures(
    res: Sequence[ResRow] = (), png: Sequence[PngRow] = (), keywords: Sequence[KeywordRow] = ()
) -> Iterator[Measure]:
    for r in res:
        about: dict[str, Any] = {"protocol": f"res-{r.protocol}", "dataset": r.dataset, "split": r.split}
        about |= {"method": r.which, "images": r.images, "items": r.objects, "failed": r.failed}
        yield Measure(metric="ciou", value=r.ciou, **about)
        yield Measure(metric="miou", value=r.miou, **about)
        for t, value in r.precision_at.items():
            yield Measure(metric=f"p@{t}", value=_bare(value), **about)
    for p in png:
        about = {"protocol": "png", "dataset": p.dataset, "split": p.split, "method": p.which, "images": p.images}
        for group, of in p.groups.items():
            counts: dict[str, Any] = {"items": of.objects, "failed": of.failed}
            yield Measure(metric="average_recall", value=of.average_recall, group=group, **about, **counts)
    for k in keywords:
        method = k.method if k.lam is None else f"{k.method} λ={k.lam:g}"
        about = {"protocol": "keywords", "dataset": k.dataset, "split": k.split, "method": method}
        about |= {"images": k.samples, "items": k.samples, "failed": k.failed}
        for group, score in (("word", k.word), ("phrase", k.phrase), ("overlap", k.overlap)):
            yield Measure(metric="precision", value=_bare(score.precision), group=group, **about)
            yield Measure(metric="recall", value=_bare(score.recall), group=group, **about)
            yield Measure(metric="f1", value=score.f1, group=group, **about)


def _bare(value: float | None) -> Estimate | None:
    return None if value is None else Estimate(value=value, low=None, high=None)
