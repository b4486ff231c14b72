"""A merged cache against its sources, sample by sample: different lengths, padding, failures and images."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cache.derive import derive, encoded, pruned
from cache.merge import merge
from cache.plan import IMAGE_SCHEMA, ImageRow, ImageRows, image_arrays, rows_bytes, rows_table
from cache.priors import Priors
from cache.store import Store
from manifests.errors import CacheError, IdentityMismatch
from tests.cache import test_priors
from tests.cache.caches import texts, tree
from tests.cache.test_priors import CE, E, make_images, make_priors


def images_at(root: Path, names: Sequence[int], failed: Sequence[int] = (), weights: str = "sam-1") -> Store:
    """An image cache whose image `name` has embeddings of that number, two to a unit."""
    rows = [
        ImageRow(image=f"{name:064x}", path=f"{name}.jpg", height=8, width=6, unit=i // 2, slot=i,
                 box=(0, 0, 4, 3, name + 4))
        for i, name in enumerate(names)
    ]  # fmt: skip
    store = Store.create_or_resume(
        root, kind="images", identity={"sam": {"weights": weights}}, soft={}, units=-(-len(names) // 2),
        arrays=image_arrays(channels=CE, side=E, images_per_unit=2),
        files={"rows.parquet": rows_bytes(rows_table(rows, IMAGE_SCHEMA))},
    )  # fmt: skip
    for unit in store.missing_units():
        content = np.zeros((2, CE, E, E), np.float16)
        failures = []
        for slot, name in enumerate(names[2 * unit : 2 * unit + 2]):
            if name in failed:
                failures.append({"image": 2 * unit + slot, "reason": f"image {name} is truncated"})
            else:
                content[slot] = name + 1
        store.write_unit(unit, {"embedding": content}, {"failures": failures})
    store.finish()
    return store


def second(root: Path, images: Store | None, monkeypatch: pytest.MonkeyPatch) -> Store:
    """Another dataset's cache: other counts (more tokens), other samples."""
    plain = test_priors.sample
    with monkeypatch.context() as patch:
        patch.setattr(test_priors, "COUNTS", [(1, 2, 9), (2, 3, 4), (4, 7, 9), (3, 3, 4), (1, 1, 2)])
        patch.setattr(test_priors, "IMAGES", [1, 2, 2, 2, 0])
        patch.setattr(test_priors, "FAILED_IN_THE_LMM", 2)
        patch.setattr(test_priors, "sample", lambda index: replace(plain(index), sample_id=f"b{index}", dataset="b"))
        make_priors(root, images)
    return Store.open(root)


@pytest.fixture
def sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Store]:
    """Two caches with image caches of their own, that share image 11; it failed in the first one, 12 in both."""
    make_priors(tmp_path / "a", images_at(tmp_path / "a/images", [10, 11, 12], failed=[11, 12]))
    b = second(tmp_path / "b", images_at(tmp_path / "b/images", [12, 11, 13], failed=[12]), monkeypatch)
    return [Store.open(tmp_path / "a"), b]


def require_equal(merged: Store, sources: Sequence[Store]) -> None:
    """Every sample of the merged cache is its source's, to the bit; `texts` is of every byte of it."""
    priors, at = Priors.open(merged.name), 0
    for source in map(Priors.open, (each.name for each in sources)):
        for index, sample in enumerate(source.samples):
            assert priors.samples[at] == sample
            expected, found = source.read(index), priors.read(at)
            if expected is not None:
                assert found is not None
                for field in fields(expected):
                    old, new = getattr(expected, field.name), getattr(found, field.name)
                    np.testing.assert_array_equal(new, old, strict=isinstance(old, np.ndarray))
                if source.images is not None:
                    np.testing.assert_array_equal(priors.embedding(at), source.embedding(index), strict=True)
                    assert priors.image_box(at) == source.image_box(index)
            at += 1
    assert at == len(priors) and texts(merged) == []


def test_the_merged_cache_has_every_sample_as_it_was(sources: list[Store], tmp_path: Path) -> None:
    merged = merge(sources, tmp_path / "c")
    require_equal(merged, sources)
    sizes = [{n: s.slots_per_unit for n, s in store.meta.arrays.items()} for store in (*sources, merged)]
    assert sizes[0] != sizes[1] and all(sizes[2][n] == max(sizes[0][n], sizes[1][n]) for n in sizes[2])
    assert merged.meta.units == sources[0].meta.units + sources[1].meta.units
    assert merged.meta.identity["lmm"] == "tiny" and "derived" not in merged.meta.identity


def test_an_image_that_several_have_is_kept_once_the_sound_one(sources: list[Store], tmp_path: Path) -> None:
    merged = merge(sources, tmp_path / "c")
    images = Store.open(tmp_path / "c/images")
    rows = list(ImageRows(images.file("rows.parquet")))
    assert [int(row.image, 16) for row in rows] == [10, 11, 12, 13] and texts(images) == []
    values = images.read("embedding", 0, 4)[:, 0, 0, 0].tolist()
    assert values == [11, 12, 0, 14]
    assert images.failures() == [{"image": 2, "reason": "image 12 is truncated"}]
    priors = Priors.open(merged.name)
    failures = [Priors.open(each.name).failures for each in (*sources, merged)]
    assert failures[0][4] == "its image has no embedding: image 11 is truncated"  # the second cache has it
    assert failures[0].keys() == {1, 3, 4} and failures[1].keys() == {1, 2, 4}
    truncated = "its image has no embedding: image 12 is truncated"
    assert failures[2] == {1: "no pixels", 3: "not finite", 6: "no pixels", 7: "not finite", 9: truncated}
    assert priors.embedding(4)[0, 0, 0] == 12 and priors.read(4) is not None
    told = [(entry["sample"], entry["reason"]) for entry in merged.failures()]
    assert told == [(1, "no pixels"), (3, "not finite"), (6, "no pixels"), (7, "not finite")]


def test_one_image_cache_stays_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = make_images(tmp_path / "a/images")
    make_priors(tmp_path / "a", images)
    b = second(tmp_path / "b", images, monkeypatch)
    shutil.copytree(tmp_path / "a/images", tmp_path / "b/images")  # soft["images"] says images/
    sources = [Store.open(tmp_path / "a"), b]
    merged = merge(sources, tmp_path / "x" / "c")
    require_equal(merged, sources)
    assert merged.meta.soft["images"] == "../../a/images" and not (tmp_path / "x/c/images").exists()
    assert merged.meta.identity == sources[0].meta.identity


def test_three_without_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_priors(tmp_path / "a", None)
    sources = [Store.open(tmp_path / "a"), second(tmp_path / "b", None, monkeypatch)]
    both = merge(sources, tmp_path / "ab")
    plain = test_priors.sample
    with monkeypatch.context() as patch:
        patch.setattr(test_priors, "sample", lambda index: replace(plain(index), sample_id=f"c{index}"))
        make_priors(tmp_path / "c", None)
    sources.append(Store.open(tmp_path / "c"))
    require_equal(merge(sources, tmp_path / "abc"), sources)
    twice = merge([both, sources[2]], tmp_path / "ab-c")
    require_equal(twice, sources)
    assert [each["cache"] for each in twice.meta.soft["merged"]] == [both.name, sources[2].name]


def test_a_merge_that_stopped_goes_on_to_the_same_bytes(sources: list[Store], tmp_path: Path) -> None:
    merge(sources, tmp_path / "x" / "c")
    whole = tree(tmp_path / "x" / "c")
    done: list[int] = []

    def one_more(units: Sequence[int]) -> Any:
        for unit in units:
            yield unit
            done.append(unit)
            raise KeyboardInterrupt

    while len(done) < 4:  # two units of images, then two of six of priors
        with pytest.raises(KeyboardInterrupt):
            merge(sources, tmp_path / "y" / "c", progress=one_more)
    assert done == [0, 1, 0, 1]
    merge(sources, tmp_path / "y" / "c")
    assert tree(tmp_path / "y" / "c") == whole


def test_encoded_and_pruned_caches_merge_if_they_mean_the_same(sources: list[Store], tmp_path: Path) -> None:
    made = [derive(each, tmp_path / f"p{n}", pruned(each, [2, 0], {})) for n, each in enumerate(sources)]
    made = [derive(each, tmp_path / f"l{n}", encoded(each, "log8")) for n, each in enumerate(made)]
    merged = merge(made, tmp_path / "c")
    require_equal(merged, made)
    assert merged.meta.identity["derived"] == [
        {"action": "prune", "channels": [2, 0], "of": 4}, {"action": "encode", "encoding": "log8"},
    ]  # fmt: skip
    other = derive(sources[1], tmp_path / "q", pruned(sources[1], [2, 1], {}))
    other = derive(other, tmp_path / "r", encoded(other, "log8"))
    with pytest.raises(IdentityMismatch, match=r"derived\[0\]\.channels\[1\]: .*l0 has 0, .*r 1"):
        merge([made[0], other], tmp_path / "d")
    packed = [derive(each, tmp_path / f"z{n}", encoded(each, "lz4")) for n, each in enumerate(sources)]
    require_equal(merge(packed, tmp_path / "e"), packed)
    with pytest.raises(IdentityMismatch, match=r'cache\.arrays\.attention\.codec: .*z0 has "lz4", .*b "raw"'):
        merge([packed[0], sources[1]], tmp_path / "f")


def test_what_can_not_be_one_is_refused(sources: list[Store], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CacheError, match=r"sample 0 is in .*a and in .*a2; merge caches of different samples"):
        shutil.copytree(tmp_path / "a", tmp_path / "a2")
        merge([sources[0], Store.open(tmp_path / "a2")], tmp_path / "c")
    with pytest.raises(CacheError, match="sample 0 is in"):
        merge([sources[0], sources[0]], tmp_path / "c")
    with pytest.raises(CacheError, match="two caches at least"):
        merge(sources[:1], tmp_path / "c")
    other = second(tmp_path / "d", images_at(tmp_path / "d/images", [1, 2, 3], weights="sam-2"), monkeypatch)
    with pytest.raises(IdentityMismatch, match=r'images\.identity\.sam\.weights: .*a has "sam-1", .*d "sam-2"'):
        merge([sources[0], other], tmp_path / "c")
    make_priors(tmp_path / "half", make_images(tmp_path / "half/images"), units=range(1))
    with pytest.raises(CacheError, match="2 of 3 units are missing"):
        merge([sources[1], Store.open(tmp_path / "half")], tmp_path / "c")
    assert not any((tmp_path / "c").glob("*.json"))


def test_what_is_not_equal_is_listed(sources: list[Store], tmp_path: Path) -> None:
    merged = merge(sources, tmp_path / "c")
    assert merged.meta.soft["merged"] == [{"cache": each.name} for each in sources]
    assert Priors.open(merged.name).samples.meta == {"merged": [{"cache": each.name} for each in sources]}
