"""A whole priors cache with its image cache, from known float32 values, read back sample by sample."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cache.memory import Memory
from cache.plan import (
    IMAGE_SCHEMA,
    ROW_SCHEMA,
    ImageRow,
    PlanRow,
    image_arrays,
    pack,
    priors_arrays,
    rows_bytes,
    rows_table,
)
from cache.priors import Priors, SamplePriors, merged
from cache.store import Store
from manifests.errors import CacheError, IdentityMismatch
from manifests.manifest import write_manifest
from manifests.masks import encode
from manifests.schema import Object, Piece, Sample

C, GRID, M, D, CE, E = 4, (3, 5), 2, 6, 2, 4
COUNTS = [(2, 3, 5), (1, 1, 2), (3, 4, 6), (1, 2, 3), (2, 2, 4)]  # objects, object tokens, answer tokens
IMAGES = [0, 1, 0, 2, 1]  # the image of every sample
FAILED_AT_PLANNING, FAILED_IN_THE_LMM, FAILED_IMAGE = 1, 3, 2


def truth(index: int) -> dict[str, np.ndarray]:
    """What the LMM would give for a sample, in float32."""
    objects, tokens, answer = COUNTS[index]
    rng = np.random.default_rng(index)
    return {
        "maps": (rng.random((objects, C, *GRID)) * 10.0 ** rng.integers(-6, 0, (objects, C, 1, 1))).astype(np.float32),
        "hidden": (rng.normal(size=(tokens, M, D)) * 1e5).astype(np.float32),
        "answer": rng.normal(size=(answer, D)).astype(np.float32),
    }


def plan_rows(packing: Any) -> list[PlanRow]:
    rows = []
    for index, (objects, tokens, answer) in enumerate(COUNTS):
        if packing.errors[index]:
            rows.append(PlanRow(sample=index, image=IMAGES[index], error=packing.errors[index]))
            continue
        counts = [1] * (objects - 1) + [tokens - objects + 1]
        row = PlanRow(
            sample=index, unit=int(packing.unit[index]), batch=0, length=answer, slot=int(packing.slot[index]),
            objects=objects, token_slot=int(packing.token_slot[index]), token_counts=tuple(counts),
            token_positions=tuple(range(tokens)), answer_slot=int(packing.answer_slot[index]),
            answer_ids=tuple(range(100, 100 + answer)), answer_word=tuple(range(answer)),
            answer_object=(0,) + (-1,) * (answer - 1), image=IMAGES[index], box=(0, index, 3, 4, 9),
        )  # fmt: skip
        rows.append(row)
    return rows


def make_images(root: Path, weights: str = "sam-1") -> Store:
    where = [(i // 2, i, (0, 0, 4, 3, i + 4)) for i in range(3)]
    rows = [
        ImageRow(image=f"{slot:064x}", path=f"{slot}.jpg", height=8, width=6, unit=unit, slot=slot, box=box)
        for unit, slot, box in where
    ]
    arrays = image_arrays(channels=CE, side=E, images_per_unit=2)
    store = Store.create_or_resume(
        root, kind="images", identity={"sam": {"weights": weights}}, soft={}, arrays=arrays, units=2,
        files={"rows.parquet": rows_bytes(rows_table(rows, IMAGE_SCHEMA))},
    )  # fmt: skip
    for unit in store.missing_units():
        content = np.stack([np.full((CE, E, E), slot, np.float16) for slot in (2 * unit, 2 * unit + 1)])
        failures = [{"image": FAILED_IMAGE, "reason": "truncated file"}] if unit == 1 else []
        store.write_unit(unit, {"embedding": content}, {"failures": failures})
    store.finish()
    return store


def scaled(values: np.ndarray, axes: tuple[int, ...], size: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """float16 values divided by their `size` (a map's mean, a state's RMS), and float32 what restores them."""
    return (values / np.expand_dims(size, axes)).astype(np.float16), size.astype(np.float32)


def scale_maps(maps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    parts, mean = scaled(maps, (-2, -1), maps.mean((-2, -1)))
    return parts, mean * (GRID[0] * GRID[1])


def scale_states(states: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return scaled(states, (-1,), np.sqrt((states.astype(np.float64) ** 2).mean(-1)))


def unit_arrays(store: Store, rows: list[PlanRow], unit: int) -> dict[str, np.ndarray]:
    arrays = {name: np.zeros(spec.unit_shape, spec.dtype) for name, spec in store.meta.arrays.items()}
    sizes = {name: spec.slots_per_unit for name, spec in store.meta.arrays.items()}
    for row in rows:
        if row.unit != unit or row.sample == FAILED_IN_THE_LMM:
            continue
        values = truth(row.sample)
        for names, first, parts in (
            (("attention", "attention_mass"), row.slot, scale_maps(values["maps"])),
            (("hidden", "hidden_scale"), row.token_slot, scale_states(values["hidden"])),
            (("answer_hidden", "answer_scale"), row.answer_slot, scale_states(values["answer"])),
        ):
            start = first - unit * sizes[names[0]]
            for name, part in zip(names, parts, strict=True):
                arrays[name][start : start + len(part)] = part
    return arrays


def make_priors(root: Path, images: Store | None, units: range | None = None) -> list[Sample]:
    errors = ["no pixels" if index == FAILED_AT_PLANNING else None for index in range(len(COUNTS))]
    packing = pack(COUNTS, objects_per_unit=4, token_chunk=2, errors=errors)
    rows = plan_rows(packing)
    samples = [sample(index) for index in range(len(COUNTS))]
    manifest = root.parent / "manifest.parquet"
    write_manifest(manifest, samples, {})
    store = Store.create_or_resume(
        root, kind="priors", identity={"lmm": "tiny", "images": images.reference() if images else None},
        soft={"images": "images"}, units=packing.units,
        arrays=priors_arrays(packing, channels=C, grid=GRID, layers=M, width=D, token_chunk=2),
        files={"manifest.parquet": manifest.read_bytes(), "rows.parquet": rows_bytes(rows_table(rows, ROW_SCHEMA))},
    )  # fmt: skip
    for unit in units if units is not None else store.missing_units():
        failed = rows[FAILED_IN_THE_LMM].unit == unit
        failures = [{"sample": FAILED_IN_THE_LMM, "reason": "not finite"}] if failed else []
        store.write_unit(unit, unit_arrays(store, rows, unit), {"failures": failures})
    if units is None:
        store.finish([{"sample": FAILED_AT_PLANNING, "reason": "no pixels"}])
    return samples


def sample(index: int) -> Sample:
    mask = encode(np.ones((8, 6), bool))
    objects = tuple(
        Object(object_id=f"{index}-{k}", mask=mask, is_thing=True, plural=False, category="", phrase="it")
        for k in range(COUNTS[index][0])
    )
    pieces = tuple(Piece(text="it", object=k) for k in range(len(objects)))
    return Sample(sample_id=str(index), dataset="scenes-refcoco", split="val", task="referring", image_id="i",
                  image_path="i.png", height=8, width=6, pieces=pieces, objects=objects)  # fmt: skip


@pytest.fixture
def root(tmp_path: Path) -> Path:
    make_priors(tmp_path / "cache", make_images(tmp_path / "cache" / "images"))
    return tmp_path / "cache"


@pytest.mark.parametrize("memory_bytes", [0, 1 << 30])
def test_every_sample_comes_back_within_the_stated_error(root: Path, memory_bytes: int) -> None:
    priors = pickle.loads(pickle.dumps(Priors.open(root, memory_bytes=memory_bytes)))
    assert (len(priors), priors.channels, priors.grid, priors.layers, priors.width) == (5, C, GRID, M, D)
    assert list(priors.samples) == [sample(index) for index in range(5)]
    assert priors.identity["lmm"] == "tiny"
    for index in (0, 2, 4, 2):
        item = priors.read(index)
        assert item is not None
        objects, tokens, answer = COUNTS[index]
        expected = truth(index)
        maps = item.attention.astype(np.float64) * (item.attention_mass / np.prod(GRID))[..., None, None]
        np.testing.assert_allclose(maps, expected["maps"], rtol=5e-4, atol=1e-7 * expected["maps"].max())
        np.testing.assert_allclose(item.attention.astype(np.float64).mean((-2, -1)), 1, atol=5e-4)
        np.testing.assert_allclose(item.hidden, expected["hidden"], rtol=5e-4, atol=0.02)
        np.testing.assert_allclose(item.answer_hidden, expected["answer"], rtol=5e-4, atol=1e-6)
        assert item.hidden_object.tolist() == [*range(objects - 1), *[objects - 1] * (tokens - objects + 1)]
        assert item.answer_ids.tolist() == list(range(100, 100 + answer))
        assert item.answer_object.tolist() == [0] + [-1] * (answer - 1)
        assert item.answer_word.tolist() == list(range(answer)) and item.box == (0, index, 3, 4, 9)
        dtypes = [getattr(item, name).dtype.name for name in ("attention", "attention_mass", "hidden", "hidden_object")]
        assert dtypes == ["float16", "float32", "float32", "int64"] and item.answer_ids.dtype == np.int32
        image = np.full((CE, E, E), IMAGES[index], np.float16)
        np.testing.assert_array_equal(priors.embedding(index), image, strict=True)
        assert priors.image_box(index) == (0, 0, 4, 3, IMAGES[index] + 4)
        with pytest.raises(ValueError, match="read-only"):
            item.attention[0] = 0


def test_failed_samples_have_a_reason_and_no_values(root: Path) -> None:
    priors = Priors.open(root)
    assert priors.failures == {1: "no pixels", 3: "not finite"}
    assert priors.read(1) is None and priors.read(3) is None
    with pytest.raises(CacheError, match="sample 3 failed: not finite"):
        priors.embedding(3)
    with pytest.raises(IndexError, match="no sample 5"):
        priors.read(5)


def test_a_failed_image_fails_its_samples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.cache.test_priors.IMAGES", [0, 1, FAILED_IMAGE, 0, 1])
    make_priors(tmp_path / "cache", make_images(tmp_path / "cache" / "images"))
    priors = Priors.open(tmp_path / "cache")
    assert priors.failures[2] == "its image has no embedding: truncated file"
    assert priors.read(2) is None


def test_an_incomplete_cache_is_refused_unless_asked_for(tmp_path: Path) -> None:
    make_priors(tmp_path / "cache", make_images(tmp_path / "cache" / "images"), units=range(1))
    with pytest.raises(CacheError, match=r"not complete \(2 of 3 units are missing\)"):
        Priors.open(tmp_path / "cache")
    priors = Priors.open(tmp_path / "cache", allow_partial=True)
    assert [priors.available(index) for index in range(5)] == [True, True, False, True, False]
    assert priors.failures == {1: "no pixels", 3: "its image has no embedding: truncated file"}
    assert priors.read(0) is not None
    with pytest.raises(CacheError, match="not extracted"):
        priors.read(2)


def test_another_image_cache_is_refused(root: Path, tmp_path: Path) -> None:
    make_images(tmp_path / "other", weights="sam-2")
    with pytest.raises(IdentityMismatch, match=r'images\.identity\.sam\.weights: expected "sam-1", found "sam-2"'):
        Priors.open(root, images_dir=tmp_path / "other")
    (root / "images").rename(tmp_path / "moved")
    with pytest.raises(CacheError, match=r"its image embeddings are not at .*images; say where"):
        Priors.open(root)
    assert Priors.open(root, images_dir=tmp_path / "moved").embedding(0)[0, 0, 0] == 0
    with pytest.raises(CacheError, match="a cache of priors is needed"):
        Priors.open(tmp_path / "moved")


def test_priors_without_images(tmp_path: Path) -> None:
    make_priors(tmp_path / "cache", None)
    priors = Priors.open(tmp_path / "cache")
    assert priors.read(0) is not None
    with pytest.raises(CacheError, match="no image embedding"):
        priors.embedding(0)


def test_the_second_epoch_does_not_touch_the_disk(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    priors, poor = Priors.open(root), Priors.open(root, memory_bytes=0)
    first = {index: priors.read(index) for index in (0, 2, 4)}
    priors.embedding(0)
    monkeypatch.setattr(Store, "read", _no_disk)
    assert all(priors.read(index) is item for index, item in first.items())
    priors.embedding(2)  # the same image
    for reader, index in ((poor, 0), (pickle.loads(pickle.dumps(priors)), 0)):
        with pytest.raises(AssertionError, match="disk"):
            reader.read(index)


def _no_disk(*_: object) -> None:
    raise AssertionError("the disk was touched")


def test_the_memory_keeps_to_its_budget() -> None:
    memory = Memory(100)
    for key, size in (("a", 60), ("b", 50), ("c", 40), ("a", 60)):
        memory.put(key, key, size)
    assert [memory.get(key) for key in "abc"] == ["a", None, "c"] and memory.used == 100


def _random_item(rng: np.random.Generator, slots: int, tokens: list[int]) -> SamplePriors:
    """Priors of `slots` words with so many tokens each, as extraction scales them."""
    maps = rng.random((slots, 3, 4, 4)) ** 4 * 10.0 ** rng.integers(-4, 0, (slots, 3, 1, 1))
    mass = maps.sum((-2, -1))
    owner = np.repeat(np.arange(slots), tokens)
    return SamplePriors(
        attention=(maps * 16 / mass[..., None, None]).astype(np.float16),
        attention_mass=mass.astype(np.float32),
        scaled_hidden=rng.standard_normal((len(owner), 2, 5)).astype(np.float16),
        hidden_scale=rng.random((len(owner), 2)).astype(np.float32),
        hidden_object=owner,
        answer_hidden=rng.standard_normal((len(owner), 5)).astype(np.float32),
        answer_ids=np.arange(len(owner), dtype=np.int32),
        answer_object=owner.astype(np.int32),
        answer_word=owner.astype(np.int32),
        box=(0, 0, 4, 4, 4),
    )


@pytest.mark.parametrize("how", ["mean", "max"])
def test_words_become_phrases_as_if_they_had_been_extracted_so(how: str) -> None:
    """Against the definition, token by token: every token of a word has the word's map here."""
    rng, tokens = np.random.default_rng(0), [1, 3, 2, 1, 2]
    item = _random_item(rng, 5, tokens)
    found = merged(item, [[3], [0, 1, 2]], how)
    raw = [item.attention[k].astype(np.float64) * item.attention_mass[k][:, None, None] / 16 for k in range(5)]
    every_token = np.stack([raw[0], raw[1], raw[1], raw[1], raw[2], raw[2]])
    phrase = every_token.max(0) if how == "max" else every_token.mean(0)
    np.testing.assert_allclose(found.attention_mass[1], phrase.sum((-2, -1)), rtol=1e-6)
    expected = phrase * 16 / phrase.sum((-2, -1), keepdims=True)
    np.testing.assert_allclose(found.attention[1], expected, rtol=6e-4, atol=1e-6)
    np.testing.assert_array_equal(found.attention[0], item.attention[3])
    assert found.hidden_object.tolist() == [0, 1, 1, 1, 1, 1, 1]
    np.testing.assert_array_equal(found.scaled_hidden[1:], item.scaled_hidden[:6])
    np.testing.assert_array_equal(found.hidden_scale[0], item.hidden_scale[6])
    assert found.answer_object.tolist() == [1, 1, 1, 1, 1, 1, 0, -1, -1]
    np.testing.assert_array_equal(found.answer_hidden, item.answer_hidden)


def test_no_phrase_and_a_map_of_zeros() -> None:
    item = _random_item(np.random.default_rng(1), 2, [1, 1])
    none = merged(item, [], "mean")
    assert none.attention.shape == (0, 3, 4, 4) and none.scaled_hidden.shape == (0, 2, 5)
    item.attention_mass[:] = 0
    assert not merged(item, [[0, 1]], "mean").attention.any()
