"""Pruned and encoded caches against their source, sample by sample, and against readers that know nothing of us."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from cache import log8
from cache.derive import Change, content_of, derive, encoded, pruned
from cache.priors import Priors
from cache.store import Store
from manifests.errors import CacheError, IdentityMismatch
from tests import s3
from tests.cache.caches import texts, tree
from tests.cache.test_damage import flip
from tests.cache.test_priors import COUNTS, GRID, C, make_images, make_priors

HOW = {"method": "by hand"}
CHANGES: dict[str, Callable[[Store], Change]] = {
    "prune": lambda source: pruned(source, [2, 0], HOW),
    "lz4": lambda source: encoded(source, "lz4"),
    "log8": lambda source: encoded(source, "log8"),
}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Three units, a sample that failed at planning, one in the LMM, an image that failed; not to be changed."""
    root = tmp_path_factory.mktemp("source") / "cache"
    make_priors(root, make_images(root / "images"))
    return Store.open(root)


def samples_of(store: Store) -> dict[int, dict[str, Any]]:
    """All that a reader gets of every sample that did not fail."""
    priors = Priors.open(store.name)
    items = {index: item for index in range(len(priors)) if (item := priors.read(index)) is not None}
    return {
        index: {field.name: getattr(item, field.name) for field in fields(item)}
        | {"embedding": priors.embedding(index), "image_box": priors.image_box(index)}
        for index, item in items.items()
    }


def assert_equal(found: dict[int, dict[str, Any]], expected: dict[int, dict[str, Any]], *but: str) -> None:
    assert found.keys() == expected.keys() and len(expected) >= 2
    for index, item in expected.items():
        for name in item.keys() - set(but):
            np.testing.assert_array_equal(found[index][name], item[name], strict=True)


@pytest.mark.parametrize("name", CHANGES)
def test_the_result_is_a_normal_cache_that_says_what_it_is(source: Store, tmp_path: Path, name: str) -> None:
    change = CHANGES[name](source)
    store = Store.open(derive(source, tmp_path / "a" / "b", change).name)
    assert store.complete and texts(store) == []
    assert (
        store.failures() == source.failures() and Priors.open(store.name).failures == Priors.open(source.name).failures
    )
    assert list(Priors.open(store.name).samples) == list(Priors.open(source.name).samples)
    (done,) = store.meta.identity["derived"]
    assert done["source"]["plan"] == source.commits.plan and {**source.meta.identity, "derived": [done]} == (
        store.meta.identity
    )
    found, expected = samples_of(store), samples_of(source)
    if name == "prune":
        assert (done["channels"], done["of"]) == ([2, 0], C) and store.meta.soft["prune"] == HOW
        for item in expected.values():
            item["attention"], item["attention_mass"] = item["attention"][:, [2, 0]], item["attention_mass"][:, [2, 0]]
    assert_equal(found, expected, *(["attention"] if name == "log8" else []))
    for index, item in expected.items():
        maps = found[index]["attention"]
        assert maps.dtype == np.float16 and maps.shape == item["attention"].shape
        np.testing.assert_allclose(maps.astype(np.float64).mean((-2, -1)), 1, atol=5e-4)


@pytest.mark.parametrize("name", CHANGES)
def test_a_run_that_stopped_goes_on_to_the_same_bytes(source: Store, tmp_path: Path, name: str) -> None:
    change = CHANGES[name](source)
    whole = tree(Path(derive(source, tmp_path / "x" / "whole", change).name))

    def stops(units: Sequence[int]) -> Any:
        yield units[0]
        raise KeyboardInterrupt

    to = tmp_path / "x" / "stopped"
    with pytest.raises(KeyboardInterrupt):
        derive(source, to, change, progress=stops)
    assert Store.open(to).missing_units() == [1, 2]
    asked: list[int] = []
    derive(source, to, CHANGES[name](source), progress=lambda units: asked.extend(units) or units)
    assert asked == [1, 2] and tree(to) == whole


def test_one_after_the_other(source: Store, tmp_path: Path) -> None:
    a = derive(source, tmp_path / "a", pruned(source, [3, 1, 2], HOW))
    b = derive(a, tmp_path / "b", encoded(a, "log8"))
    c = derive(b, tmp_path / "c", pruned(b, [1], HOW))
    d = derive(c, tmp_path / "d", encoded(c, "lz4"))
    assert [each.get("channels", each.get("encoding")) for each in d.meta.identity["derived"]] == [
        [3, 1, 2], "log8", [1], "lz4",
    ]  # fmt: skip
    assert_equal(samples_of(d), samples_of(c))
    once = derive(source, tmp_path / "e", pruned(source, [1], HOW))
    once = derive(once, tmp_path / "f", encoded(once, "log8"))
    assert_equal(samples_of(d), samples_of(once))
    assert texts(d) == [] and d.meta.soft["lz4"]["bit_equal"]


@pytest.mark.parametrize(
    ("channels", "says"),
    [([], "the maps 0 to 3"), ([0, 4], "the maps 0 to 3"), ([-1], "the maps 0 to 3"), ([1, 2, 1], "names 1 twice")],
)
def test_channels_that_there_are_not(source: Store, channels: list[int], says: str) -> None:
    with pytest.raises(CacheError, match=says):
        pruned(source, channels, HOW)


def test_other_caches_are_refused(source: Store, tmp_path: Path) -> None:
    derive(source, tmp_path / "a", pruned(source, [0, 1], HOW))
    before = tree(tmp_path / "a")
    with pytest.raises(
        IdentityMismatch, match=r"derived\[0\]\.channels\[1\]: cache has 1, this run 2.*Choose another --to"
    ):
        derive(source, tmp_path / "a", pruned(source, [0, 2], HOW))
    with pytest.raises(IdentityMismatch, match="another --to"):
        derive(source, source.name, pruned(source, [0], HOW))
    assert tree(tmp_path / "a") == before
    for encoding in ("lz4", "log8"):
        store = derive(source, tmp_path / encoding, encoded(source, encoding))
        with pytest.raises(CacheError, match=f"encoded as {encoding} already"):
            encoded(store, encoding)
    make_priors(tmp_path / "half", make_images(tmp_path / "half" / "images"), units=range(1))
    half = Store.open(tmp_path / "half")
    with pytest.raises(CacheError, match="2 of 3 units are missing"):
        derive(half, tmp_path / "x", pruned(half, [0], HOW))
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "thesis.tex").touch()
    with pytest.raises(CacheError, match=r"thesis\.tex"):
        derive(source, tmp_path / "foreign", pruned(source, [0], HOW))
    assert not (tmp_path / "x").exists()


def test_a_damaged_source_is_noticed_and_not_copied(tmp_path: Path) -> None:
    make_priors(tmp_path / "cache", None)
    source = Store.open(tmp_path / "cache")
    flip(tmp_path / "cache/priors.zarr/attention/c.1.0.0.0", 9)
    with pytest.raises(CacheError, match="array attention, unit 1 is damaged"):
        derive(source, tmp_path / "a", pruned(source, [0], HOW))
    assert Store.open(tmp_path / "a").committed_units() == [0]


def test_another_image_cache_is_refused_as_for_the_source(source: Store, tmp_path: Path) -> None:
    store = derive(source, tmp_path / "deep" / "a", pruned(source, [0], HOW))
    assert (Path(store.name) / store.meta.soft["images"]).resolve() == Path(source.name, "images").resolve()
    other = make_images(tmp_path / "other", weights="sam-2")
    with pytest.raises(IdentityMismatch, match=r"images\.identity\.sam\.weights"):
        Priors.open(store.name, images_dir=other.name)


def test_content_is_what_was_done_to_the_values(source: Store, tmp_path: Path) -> None:
    identity = source.meta.identity
    same = derive(source, tmp_path / "lz4", encoded(source, "lz4")).meta.identity
    one = derive(source, tmp_path / "a", pruned(source, [0], HOW)).meta.identity
    elsewhere = identity | {"images": identity["images"] | {"rows": "other"}, "derived": [
        one["derived"][0] | {"source": {"identity": "x", "plan": "y"}}]}  # fmt: skip
    assert content_of(identity) == content_of(same) != content_of(one) == content_of(elsewhere)
    assert "rows" in identity["images"]  # not changed in place


def test_any_zarr_reader_opens_lz4(source: Store, tmp_path: Path) -> None:
    store = derive(source, tmp_path / "a", encoded(source, "lz4"))
    assert {spec.name for spec in store.meta.arrays.values() if spec.codec == "lz4"} == {
        "attention", "hidden", "answer_hidden",
    }  # fmt: skip
    pytest.importorskip("tensorstore")
    for name, spec in store.meta.arrays.items():
        folder = tmp_path / "a" / "priors.zarr" / name
        expected = source.read(name, 0, 3 * spec.slots_per_unit)
        np.testing.assert_array_equal(zarr.open_array(folder, mode="r")[:], expected, strict=True)
        subprocess.run([sys.executable, "-c", _TENSORSTORE, folder, tmp_path / "found.npy"], check=True)
        np.testing.assert_array_equal(np.load(tmp_path / "found.npy"), expected, strict=True)
        np.testing.assert_array_equal(
            store.read(name, 1, spec.slots_per_unit + 1), expected[1 : spec.slots_per_unit + 1]
        )


_TENSORSTORE = """
import sys, numpy, tensorstore
store = {"driver": "zarr3", "kvstore": {"driver": "file", "path": sys.argv[1]}}
numpy.save(sys.argv[2], tensorstore.open(store).result().read().result())
"""


@pytest.mark.parametrize("position", [20, -1, -20])
def test_a_flipped_bit_of_a_compressed_shard_is_found(source: Store, tmp_path: Path, position: int) -> None:
    store = derive(source, tmp_path / "a", encoded(source, "lz4"))
    flip(tmp_path / "a/priors.zarr/attention/c.1.0.0.0", position)
    with pytest.raises(CacheError, match="array attention, unit 1 is damaged"):
        store.read("attention", 4, 5)
    assert "unit 1 is damaged" in texts(store)[0]
    np.testing.assert_array_equal(store.read("attention", 0, 4), source.read("attention", 0, 4))


def test_stored_bytes_are_those_of_the_files(source: Store, tmp_path: Path) -> None:
    for store in (source, derive(source, tmp_path / "a", encoded(source, "lz4"))):
        for name, size in store.stored_bytes().items():
            files = Path(store.name, "priors.zarr", name).glob("c.*")
            assert size == sum(path.stat().st_size for path in files)


def test_log8_is_decoded_by_what_the_zarr_array_says(source: Store, tmp_path: Path) -> None:
    store = derive(source, tmp_path / "a", encoded(source, "log8"))
    group = zarr.open_group(tmp_path / "a" / "priors.zarr", mode="r")
    codes = np.asarray(group[log8.CODES][:])
    formula = json.loads(json.dumps(dict(group[log8.CODES].attrs)))["encoding"]
    assert "attention_peak[slot, channel] * 10 ** (-5 * (255 - k) / 254)" in formula
    peaks = np.asarray(group[log8.PEAK][:])[..., None, None]
    maps = np.where(codes == 0, 0, peaks * 10.0 ** (-5 * (255 - codes.astype(np.float64)) / 254))
    expected = source.read("attention", 0, len(codes)).astype(np.float64)
    kept = codes > 0
    assert kept.mean() > 0.5 and np.abs(maps[kept] / expected[kept] - 1).max() < 0.024
    assert (expected[~kept] <= 1.0001e-5 * np.broadcast_to(peaks, expected.shape)[~kept] * 1.024).all()
    assert "attention" not in store.meta.arrays and "attention" not in group


@settings(max_examples=200, deadline=None)
@given(
    arrays(np.float16, (2, 3, 4), elements=st.floats(0, 60000, width=16)),
    st.floats(-6, 0),
)
def test_log8_keeps_every_value_within_its_bound(maps: np.ndarray, scale: float) -> None:
    maps = (maps.astype(np.float64) * 10.0**scale).astype(np.float16)
    codes, peaks = log8.encode(maps)
    assert codes.dtype == np.uint8 and peaks.dtype == np.float32
    for code, peak, one in zip(
        codes.reshape(-1, 12), peaks.reshape(-1), maps.astype(np.float64).reshape(-1, 12), strict=True
    ):
        assert peak == one.max() and (peak == 0 or code.max() == 255)
        for value, found in zip(one, code.tolist(), strict=True):
            if found:
                restored = float(peak) * 10.0 ** (-5 * (255 - found) / 254)
                assert abs(restored - value) <= value * (log8.HALF_STEP + 1e-4)
            else:
                assert value <= 1e-5 * float(peak)
    decoded = log8.decode(codes, peaks).astype(np.float64)
    means = decoded.mean((-2, -1))
    np.testing.assert_allclose(means, np.where(peaks > 0, 1, 0), atol=1e-3)
    assert pytest.approx(0.0229, abs=1e-4) == log8.HALF_STEP


def test_the_measured_error_is_that_of_the_maps(source: Store, tmp_path: Path) -> None:
    store = derive(source, tmp_path / "a", encoded(source, "log8"))
    about = store.meta.soft["log8"]
    before, after = samples_of(source), samples_of(store)
    worst, total, count, zeroed, values, off = 0.0, 0.0, 0, 0, 0, 0.0
    for index in before:
        for old, new in zip(
            before[index]["attention"].reshape(-1, *GRID), after[index]["attention"].reshape(-1, *GRID), strict=True
        ):
            p, q = (each.astype(np.float64) / each.astype(np.float64).sum() for each in (old, new))
            error = float(np.abs(p - q).sum())
            worst, total, count = max(worst, error), total + error, count + 1
            values, zeroed = values + p.size, zeroed + int(((q == 0) & (p > 0)).sum())
            off = max(off, max(abs(b / a - 1) for a, b in zip(p.ravel(), q.ravel(), strict=True) if a > 0 and b > 0))
    assert about["l1_error_max"] == pytest.approx(worst) and about["l1_error_mean"] == pytest.approx(total / count)
    assert about["value_error_max"] == pytest.approx(off) and about["values_zeroed"] == pytest.approx(zeroed / values)
    assert 0 < about["l1_error_mean"] < 0.02 and not about["bit_equal"]
    assert about["objects"] == sum(COUNTS[index][0] for index in before) == count // C
    cells = int(np.prod(GRID))
    assert about["attention_bytes_before"] == C * cells * 2 + 20 + C * 4 + 20
    assert about["attention_bytes_after"] == C * cells + 20 + 2 * (C * 4 + 20)
    lossless = derive(source, tmp_path / "b", encoded(source, "lz4")).meta.soft["lz4"]
    assert lossless["bit_equal"] and not any(lossless[n] for n in ("l1_error_max", "value_error_max", "values_zeroed"))


def test_verify_knows_what_codes_must_be(source: Store, tmp_path: Path) -> None:
    change = encoded(source, "log8")

    def spoilt(values: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        found = change.apply(values)
        found[log8.CODES] = found[log8.CODES] // 2
        return found

    wrong = Change(hard=change.hard, soft={}, arrays=change.arrays, apply=spoilt)
    assert any("largest code is not 255" in text for text in texts(derive(source, tmp_path / "a", wrong)))
    wrong = Change(hard=change.hard, soft={}, arrays=change.arrays,
                   apply=lambda values: {k: np.zeros_like(v) for k, v in change.apply(values).items()})  # fmt: skip
    assert any("holds nothing but zeros" in text for text in texts(derive(source, tmp_path / "b", wrong)))


@pytest.mark.parametrize("name", CHANGES)
def test_from_a_folder_into_a_bucket(source: Store, name: str) -> None:
    with s3.server() as url:
        store = Store.open(derive(source, f"{url}/{name}", CHANGES[name](source)).name)
        assert texts(store) == [] and sum(store.stored_bytes().values()) > 0
        assert store.meta.soft["images"] == str(Path(source.name, "images"))
        local, remote = Priors.open(source.name), Priors.open(store.name)
        np.testing.assert_array_equal(remote.embedding(0), local.embedding(0))
        for index in (0, 2, 4):
            if (item := local.read(index)) is None:
                assert remote.read(index) is None
                continue
            found = remote.read(index)
            assert found is not None
            np.testing.assert_array_equal(found.hidden, item.hidden)
            expected = item.attention[:, [2, 0]] if name == "prune" else item.attention
            np.testing.assert_allclose(found.attention, expected, rtol=0.05 if name == "log8" else 0, atol=2e-3)
