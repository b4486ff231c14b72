"""A cache in an S3 bucket, through obstore (the store behind zarr's ObjectStore): put-if-absent, compare-and-swap.

Credentials, region and endpoint come from the environment as usual: AWS_ACCESS_KEY_ID, AWS_REGION, AWS_ENDPOINT_URL, …
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from datetime import timedelta
from functools import cached_property, wraps
from pathlib import PurePosixPath
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa

from cache import shards
from cache.layout import ArraySpec
from cache.places import lease
from cache.places.base import LOCK, Disk, Place
from cache.places.holder import Holder
from cache.shards import ShardFormatError, Written
from manifests.errors import CacheError

F = TypeVar("F", bound=Callable[..., Any])


def _as_os_error(method: F) -> F:
    """obstore's errors are no OSErrors, and pages long."""

    @wraps(method)
    def call(self: Bucket, *args: Any, **options: Any) -> Any:
        from obstore.exceptions import AlreadyExistsError, BaseError

        try:
            return method(self, *args, **options)
        except FileNotFoundError:
            raise FileNotFoundError(f"{self.name}/{args[0] if args else ''} is missing") from None
        except AlreadyExistsError as error:
            raise FileExistsError(f"{self.name}: {args[0]} exists") from error
        except BaseError as error:
            text = _first_line(error)
            if "169.254.169.254" in text:  # the last place where credentials are looked for
                text = "no AWS credentials were found; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
            raise OSError(f"{self.name}: {text}") from error

    return call  # type: ignore[return-value]


class Bucket(Place):
    """`s3://bucket/prefix`."""

    def __init__(self, url: str, run: str = "") -> None:
        super().__init__(url.rstrip("/"))
        self._bucket, _, self._prefix = self.name.removeprefix("s3://").partition("/")
        if not (self._bucket and self._prefix):
            raise CacheError(f"{url} names no place in a bucket; give s3://bucket/prefix")
        self.run = run
        """Of the lease under which this process writes, here or in its driver; empty: under none."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Bucket, (self.name, self.run)

    @cached_property
    def store(self) -> Any:
        return self._open(self._prefix)

    def _open(self, prefix: str) -> Any:
        try:
            from obstore.store import S3Store
        except ImportError:
            raise CacheError(
                f"{self.name}: the package obstore is missing; pip install 'frozen-lmm-grounding[s3]'"
            ) from None
        endpoint = os.environ.get("AWS_ENDPOINT_URL") or os.environ.get("AWS_ENDPOINT_URL_S3") or "https://"
        if not endpoint.startswith(("http://", "https://")):
            raise CacheError(
                f"{self.name}: AWS_ENDPOINT_URL is {endpoint!r}; give it as https://host or http://host:9000"
            )
        return S3Store(
            self._bucket,
            prefix=prefix or None,
            client_options={"allow_http": endpoint.startswith("http://")},
            retry_config={"retry_timeout": timedelta(seconds=60)},
        )

    def path(self, name: str) -> str:
        return f"{self.name}/{name}"

    def at(self, relative: str) -> Place:
        from cache.places import place_of

        if "://" in relative or relative.startswith("/"):
            return place_of(relative)
        parts: list[str] = []
        for part in PurePosixPath(self._prefix, relative).parts:
            parts = parts[:-1] if part == ".." else [*parts, part]
        return Bucket("/".join(["s3:/", self._bucket, *parts]))

    def relative(self, other: Place) -> str:
        return other.name.removeprefix(f"{self.name}/")

    @_as_os_error
    def entries(self) -> list[str]:
        found = self.store.list_with_delimiter()
        folders = [f"{PurePosixPath(path).name}/" for path in found["common_prefixes"]]
        names = folders + [PurePosixPath(each["path"]).name for each in found["objects"]]
        return sorted(name for name in names if name not in ("", "/"))  # consoles put an empty object for a "folder"

    @_as_os_error
    def sizes(self, folder: str) -> dict[str, int]:
        return {each["path"]: each["size"] for page in self.store.list(f"{folder}/") for each in page}

    @_as_os_error
    def get(self, name: str) -> tuple[bytes, str]:
        """The content, and its ETag."""
        answer = self.store.get(name)
        return answer.bytes().to_bytes(), answer.meta["e_tag"]

    def read(self, name: str) -> bytes:
        return self.get(name)[0]

    def source(self, name: str) -> pa.Buffer:
        return pa.py_buffer(self.read(name))

    @_as_os_error
    def size(self, name: str) -> int | None:
        try:
            return self.store.head(name)["size"]
        except FileNotFoundError:
            return None

    @_as_os_error
    def digest(self, name: str) -> str:
        hasher = hashlib.sha256()
        for block in self.store.get(name).stream():
            hasher.update(block)
        return hasher.hexdigest()

    def opened(self, spec: ArraySpec, name: str, size: int) -> _Object:
        return _Object(self, spec, name, size)

    @_as_os_error
    def get_range(self, name: str, offset: int, length: int) -> tuple[memoryview, int]:
        """These bytes, and those that the whole object has."""
        answer = self.store.get(name, options={"range": (offset, offset + length)})
        return memoryview(answer.bytes()), answer.meta["size"]

    def mapped(self, spec: ArraySpec, name: str) -> None:
        """They can not."""

    def advise(self, name: str, offset: int, length: int) -> None:
        """Nothing to do: there is no page cache in between."""

    @_as_os_error
    def write(self, name: str, data: bytes, *, absent: bool = False) -> None:
        self.store.put(name, data, mode="create" if absent else "overwrite")

    @_as_os_error
    def write_shards(self, unit: Mapping[str, tuple[ArraySpec, np.ndarray]]) -> dict[str, Written]:
        # what is there now, and then whether the place is still ours: who comes later than another run is refused
        modes = {name: self._only_replacing(name) for name in unit}
        self.require_run()
        written = {}
        for name, (spec, values) in unit.items():
            buffers, crcs = shards.encode(spec, values)
            data, digest = b"".join(buffer.data for buffer in buffers), shards.digest(buffers)
            self.store.put(name, data, mode=modes[name], use_multipart=False)
            found = [np.frombuffer(block, np.uint8) for block in self.store.get(name).stream()]
            if shards.digest(found) != digest:
                raise CacheError(f"{self.path(name)}: S3 gave back other bytes than were sent; nothing was committed")
            written[name] = Written(bytes=len(data), blake3=digest, crcs=crcs)
        return written

    def _only_replacing(self, name: str) -> Any:
        """The mode of a put that fails if the object is no longer the one (or none) that is there now."""
        try:
            return {"e_tag": self.store.head(name)["e_tag"]}
        except FileNotFoundError:
            return "create"

    @_as_os_error
    def read_beside(self, ending: str) -> bytes:
        parent, _, name = self._prefix.rpartition("/")
        return self._open(parent).get(name + ending).bytes().to_bytes()

    @_as_os_error
    def write_beside(self, ending: str, data: bytes) -> None:
        parent, _, name = self._prefix.rpartition("/")
        self._open(parent).put(name + ending, data)

    @_as_os_error
    def remove(self, name: str) -> None:
        self.store.delete(name)

    @_as_os_error
    def remove_below(self, folder: str) -> None:
        for page in self.store.list(f"{folder}/"):
            self.store.delete([each["path"] for each in page])

    def prepare(self, folders: Sequence[str]) -> None:
        with suppress(FileExistsError):
            self.write(LOCK, b"", absent=True)

    @contextmanager
    def sole_writer(self) -> Iterator[None]:
        with lease.Lease(self, beat=lease.BEAT, stale=lease.STALE) as self.run:
            try:
                yield
            finally:
                self.run = ""

    @contextmanager
    def unit(self, number: int) -> Iterator[None]:
        yield  # every put is conditional

    def require_run(self) -> None:
        try:
            run = Holder.from_bytes(self.read(LOCK)).run
        except FileNotFoundError:
            run = ""
        if run != self.run:
            raise CacheError(f"{self.name}: its lock is of another run by now; this one stops, nothing of it is lost")

    def clean(self) -> None:
        """Nothing to do: an object that was not put whole is not there."""

    def disk(self) -> Disk | None:
        return None


class _Object(AbstractContextManager["_Object"]):
    """A shard: `cache.places.base.Opened`."""

    def __init__(self, bucket: Bucket, spec: ArraySpec, name: str, size: int) -> None:
        self.bucket, self.spec, self.name, self.size = bucket, spec, name, size

    def __exit__(self, *_: object) -> None:
        """Nothing was opened: every request stands alone."""

    def fetch(self, offset: int, buffers: Sequence[memoryview]) -> None:
        """`shards.Fetch`. ShardFormatError if the object has another size than a shard."""
        try:
            data, size = self.bucket.get_range(self.name, offset, sum(buffer.nbytes for buffer in buffers))
        except FileNotFoundError:
            raise
        except OSError:  # a range beyond the end is an error of S3's own
            found = self.bucket.size(self.name)
            if found is None or found == self.size:
                raise
            size = found
        if size != self.size:
            raise ShardFormatError(f"it has {size} bytes, a shard of array {self.spec.name} has {self.size}")
        done = 0
        for buffer in buffers:
            buffer[:] = data[done : done + buffer.nbytes]
            done += buffer.nbytes


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0].strip()
