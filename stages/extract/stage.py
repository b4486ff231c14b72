"""Stage 1: plan, create or resume the two caches, and say which units are left; `pipeline` runs them and closes up."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import pyarrow as pa

from cache.create import bytes_to_write, require_ours, require_space
from cache.identity import plain
from cache.places import Place
from cache.plan import ImageRows, rows_bytes
from cache.store import Store
from manifests.errors import CacheError, DatasetError
from manifests.manifest import write_manifest
from manifests.schema import Sample
from stages.extract.answers import Answers, identity_of
from stages.extract.attention import Merge
from stages.extract.checkpoint import file_sha256, local_folder, weights_identity
from stages.extract.plan import Images, Plan, make_plan, plan_images
from stages.extract.presets import LMMPreset
from stages.extract.processor import LMMProcessor
from stages.extract.sam import checkpoint_of, sam_config
from stages.extract.texts import TextToIds
from stages.extract.work import WorkerConfig, WorkUnit

ALGORITHM: Final = 3  # raised whenever the same inputs would give other numbers
LIBRARIES: Final = ("torch", "transformers", "zarr", "segment-anything", "pillow", "numpy")
Progress = Callable[[Iterable[str]], Iterable[str]]


def priors_identity(lmm: dict[str, Any], merge: Merge, images: dict[str, Any]) -> dict[str, Any]:
    """What makes attention priors what they are. images: identity of the embeddings, and which they are."""
    return {"algorithm": ALGORITHM, "lmm": lmm, "merge": merge, "images": images}


def lmm_identity(lmm: LMMPreset, dtype: str, files: dict[str, str]) -> dict[str, Any]:
    """The LMM's share of it. files: `files_of` the LMM."""
    return lmm.identity() | {"dtype": dtype, "files": files}


def files_of(lmm: LMMPreset) -> dict[str, str]:
    """sha256 (hex) of the LMM's files, which are downloaded if they are not on this machine."""
    code = lmm.trust_remote_code
    return weights_identity(local_folder(lmm.source, weights=True, code=code), code=code)


def sam_identity(sam: str, checkpoint: Path | None) -> dict[str, Any]:
    """What makes SAM embeddings what they are. sam, checkpoint: as `load_sam` takes them."""
    weights = file_sha256(checkpoint_of(sam, checkpoint))
    return {
        "algorithm": ALGORITHM,
        "sam": asdict(sam_config(sam)) | {"name": sam, "weights": weights, "dtype": "float32"},
    }


@dataclass(kw_only=True, slots=True)
class Extraction:
    """What is run with what, and where it goes."""

    samples: Sequence[Sample]
    data_root: Path
    cache: Place
    images: Place
    lmm: LMMPreset
    dtype: str
    merge: Merge
    sam: str
    sam_checkpoint: Path | None
    device: str
    gpus: int
    """GPUs of a worker; 0 on the CPU."""
    batch_size: int | Callable[[Sample], int]
    """Samples of a forward pass, or what measures that with the longest sample."""
    meta: dict[str, Any] = field(default_factory=dict)
    """Of the manifest: dataset, sentences, context, limit."""
    settings: dict[str, Any] | None = None
    """The options that say what is extracted, to be kept with the priors."""
    _lmm_files: dict[str, str] = field(default_factory=dict, init=False)
    """sha256 of each, once they were read."""

    def worker(self, threads: int) -> WorkerConfig:
        """What a worker has to know; `threads`: CPU threads of torch."""
        return WorkerConfig(
            cache=self.cache,
            images=self.images,
            data_root=self.data_root.resolve(),
            lmm=self.lmm,
            dtype=self.dtype,
            merge=self.merge,
            sam=self.sam,
            sam_checkpoint=self.sam_checkpoint,
            device=self.device,
            gpus=self.gpus,
            threads=threads,
        )

    def hashed_images(self, *, dry_run: bool = False, progress: Progress = lambda p: p) -> Images:
        """The samples' images by their content. A dry run reads none of them: their paths stand for it."""
        images = plan_images(self.samples, self.data_root, sam_config(self.sam), hashed=not dry_run, progress=progress)
        if not dry_run and (known := self._known_images()) is not None:
            images = images.among(known) or images
        return images

    def answer_identity(self, most: int) -> dict[str, Any]:
        """What makes the LMM's own answers of at most so many tokens what they are, besides the questions."""
        return identity_of(self._lmm_identity(), most)

    def give(self, answers: Answers) -> None:
        """The samples have their answers from now on, and the manifest says what these are."""
        self.samples = answers.given_to(self.samples)
        self.meta = self.meta | {"answers": answers.identity}

    def plan(self, images: Images | None = None, text: TextToIds | None = None) -> Plan:
        """Tokenise and lay out every sample. images: of `hashed_images`."""
        return make_plan(
            self.samples,
            text or LMMProcessor(self.lmm),
            self.lmm,
            sam_config(self.sam),
            images or self.hashed_images(),
            batch_size=self.batch_size,
        )

    def _known_images(self) -> pa.Table | None:
        """The rows of the image cache that is there, if it is of this SAM."""
        try:
            store = Store.open(self.images)
        except CacheError:
            return None
        if store.meta.identity != plain(self.image_identity()):
            return None
        return ImageRows(store.file("rows.parquet")).table()

    def planned_batch_size(self) -> int | None:
        """The batch size of the cache that is there; a plan with another one would be another plan."""
        try:
            return Store.open(self.cache).meta.soft.get("batch_size")
        except CacheError:
            return None

    def image_identity(self) -> dict[str, Any]:
        """What makes SAM embeddings what they are."""
        return sam_identity(self.sam, self.sam_checkpoint)

    def identity(self, images: Store) -> dict[str, Any]:
        """What makes attention priors what they are, besides the manifest and the plan."""
        return priors_identity(self._lmm_identity(), self.merge, images.reference())

    def _lmm_identity(self) -> dict[str, Any]:
        if not self._lmm_files:
            self._lmm_files = files_of(self.lmm)
        return lmm_identity(self.lmm, self.dtype, self._lmm_files)

    @contextmanager
    def writing(self, plan: Plan, *, overwrite: bool = False) -> Iterator[tuple[Store, Store]]:
        """The image cache and the priors cache, new or resumed, to be written by nobody else meanwhile.

        Others may use the image cache as soon as it is complete.
        overwrite: caches of other settings are deleted first, but never an image cache outside --cache: others use it.
        Raises CacheError, before anything is written, for folders that are not ours, for too little free disk, and
        where another run is writing.
        """
        if plan.units == 0:
            reasons = "; ".join(str(f["reason"]) for f in plan.failures[:3])
            raise DatasetError(f"none of the {len(plan.rows)} samples can be used: {reasons}")
        require_ours(self.cache, "priors", ("manifest.parquet", "rows.parquet"))
        own = self.images == self.cache.at("images")
        require_ours(self.images, "images", ("rows.parquet",), "--cache" if own else "--images")
        require_space(
            {
                self.images: bytes_to_write(self.images, plan.image_arrays, plan.image_units),
                self.cache: bytes_to_write(self.cache, plan.arrays, plan.units),
            }
        )
        with ExitStack() as stack:
            if (images := self._finished_images(plan)) is None:
                stack.enter_context(self.images.sole_writer())
                images = self._image_cache(plan, overwrite=overwrite and own, option="--cache" if own else "--images")
            if images.complete:
                stack.close()
            with self.cache.sole_writer():
                yield images, self._priors_cache(plan, images, overwrite)

    def _soft(self) -> dict[str, Any]:
        versions = {name: version(name) for name in LIBRARIES}
        return versions | {"device": self.device, "data_root": str(self.data_root)}

    def _finished_images(self, plan: Plan) -> Store | None:
        """The image cache, if it is complete and the planned one: then nothing is written, and it may be read-only."""
        try:
            images = Store.open(self.images)
        except CacheError:
            return None
        rows = hashlib.sha256(rows_bytes(plan.image_rows)).hexdigest()
        same = images.meta.identity == plain(self.image_identity()) and images.meta.files["rows.parquet"] == rows
        return images if images.complete and same else None

    def _image_cache(self, plan: Plan, *, overwrite: bool, option: str) -> Store:
        return Store.create_or_resume(
            self.images,
            kind="images",
            identity=self.image_identity(),
            soft=self._soft(),
            arrays=plan.image_arrays,
            units=plan.image_units,
            files={"rows.parquet": rows_bytes(plan.image_rows)},
            overwrite=overwrite,
            option=option,
        )

    def _priors_cache(self, plan: Plan, images: Store, overwrite: bool) -> Store:
        named = {"lmm": self.lmm.source, "images": self.cache.relative(self.images), "batch_size": plan.batch_size}
        named |= {"settings": self.settings} if self.settings is not None else {}
        with TemporaryDirectory() as folder:
            manifest = Path(folder) / "manifest.parquet"
            write_manifest(manifest, self.samples, self.meta)
            manifest_bytes = manifest.read_bytes()
        return Store.create_or_resume(
            self.cache,
            kind="priors",
            identity=self.identity(images),
            soft=self._soft() | named,
            arrays=plan.arrays,
            units=plan.units,
            files={"manifest.parquet": manifest_bytes, "rows.parquet": rows_bytes(plan.rows)},
            overwrite=overwrite,
        )


def work_left(images: Store, priors: Store) -> list[WorkUnit]:
    """Units that are planned and not committed, images first."""
    return [WorkUnit(kind="images", number=n) for n in images.missing_units()] + [
        WorkUnit(kind="priors", number=n) for n in priors.missing_units()
    ]


def close(images: Store, priors: Store, plan: Plan) -> None:
    """Write the failures and mark both caches complete; CacheError names the first missing unit."""
    if not images.complete:
        images.finish()
    priors.finish(plan.failures)
