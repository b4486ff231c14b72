"""Making a cache, or recognising the one that is there: ours, half made, of another identity, or foreign.

`cache.lock` is the first file and `cache.json` the last, so what a kill leaves can be told apart. Whoever calls this
holds `place.sole_writer()`, or is the only one who knows of the place.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import PurePosixPath
from typing import Any, Final, get_args

from cache.commits import FOLDER as COMMITS
from cache.commits import Commits
from cache.compare import file_differences
from cache.identity import Difference, differing
from cache.layout import FORMAT, ArraySpec, Kind, Meta, zarr_metadata
from cache.places import Place
from cache.places.base import LOCK, SCRATCH
from cache.places.folder import UNITS
from manifests.errors import CacheError, IdentityMismatch

META: Final = "cache.json"
FAILURES: Final = "failures.jsonl"
_log = logging.getLogger(__name__)


def create_or_resume(place: Place, meta: Meta, files: Mapping[str, bytes], overwrite: bool, option: str) -> Meta:
    """See `Store.create_or_resume`. Returns the meta data as they are on disk."""
    with _write_errors(place, option):
        replacing = place.size(META) is not None
        if replacing and not (overwrite and _is_other(place, meta, files)):
            return _resume(place, meta, files, option)
        require_ours(place, meta.kind, files, option)
        contents = dict(files) | zarr_metadata(meta)
        needed = meta.units * meta.unit_bytes + sum(len(data) for data in contents.values())
        require_space({place: needed - _used(place)}, option)
        if replacing:
            _delete_cache(place)
        _create(place, meta, contents)
        return _resume(place, meta, files, option)


def read_meta(place: Place, *, check_files: bool = True) -> Meta:
    """cache.json, checked together with every metadata file. CacheError if missing, damaged or of another schema."""
    try:
        meta = Meta.from_bytes(place.read(META))
    except (FileNotFoundError, NotADirectoryError):
        raise CacheError(f"{place} holds no cache ({META} is missing); run extract first, or check --cache") from None
    except (ValueError, KeyError, TypeError) as error:
        raise CacheError(
            f"{place.path(META)}: {error}; restore the file, or delete {place} and extract again"
        ) from None
    if check_files and (damaged := damaged_files(place, meta)):
        raise CacheError(
            f"{next(iter(damaged.values()))}; run the same extract command again to write it anew, or restore the file"
        )
    return meta


def damaged_files(place: Place, meta: Meta) -> dict[str, str]:
    """One line for every metadata file, by name, that is missing or has not the sha256 that cache.json names."""
    problems = {}
    for name, expected in sorted(meta.files.items()):
        try:
            found = place.digest(name)
        except OSError as error:
            problems[name] = f"{place.path(name)} can not be read: {error.strerror or error}"
            continue
        if found != expected:
            wrong = f"its sha256 is {found}, {META} has {expected}"
            problems[name] = f"{place.path(name)} is damaged or was changed: {wrong}"
    return problems


def mend(place: Place, stored: Meta, files: Mapping[str, bytes]) -> None:
    """Write those metadata files anew that are damaged, and whose content is known: `files`, and zarr's own."""
    prepare(place, stored)
    known = dict(files) | zarr_metadata(stored)
    for name in damaged_files(place, stored):
        if name in known and hashlib.sha256(known[name]).hexdigest() == stored.files[name]:
            _log.warning("%s was damaged; it is written anew", place.path(name))
            place.write(name, known[name])


def plan_fields(meta: Meta) -> dict[str, Any]:
    """What binds a commit record to its cache: all hard fields, and the metadata files the cache began with."""
    begun = {name: sha for name, sha in meta.files.items() if not name.endswith(".jsonl")}
    return {"hard": meta.hard(), "files": begun}


def shard_name(meta: Meta, spec: ArraySpec, unit: int) -> str:
    """A shard's name inside the cache."""
    return f"{meta.group}/{spec.name}/{spec.shard_key(unit)}"


def _create(place: Place, meta: Meta, contents: Mapping[str, bytes]) -> None:
    place.require_run()
    place.remove_below(meta.group)  # of a creation that was killed; no unit of it is committed
    place.remove_below(SCRATCH)
    prepare(place, meta)
    for name, data in contents.items():
        place.write(name, data)
    meta = replace(meta, files={name: hashlib.sha256(data).hexdigest() for name, data in contents.items()})
    place.write(META, meta.to_bytes())


def prepare(place: Place, meta: Meta) -> None:
    """The folders of a cache: some copies lose empty ones."""
    place.prepare([SCRATCH, COMMITS, meta.group, *(f"{meta.group}/{name}" for name in meta.arrays)])


def _resume(place: Place, meta: Meta, files: Mapping[str, bytes], option: str) -> Meta:
    stored = read_meta(place, check_files=False)
    if differences := _differences(place, stored, meta, files):
        deletes = ", or pass --overwrite to delete this one" if option == "--cache" else ""
        fields = "; ".join(map(str, differences))
        raise IdentityMismatch(f"{place} was made with other settings: {fields}. Choose another {option}{deletes}")
    for difference in differing(stored.soft, meta.soft):
        _log.warning("%s was begun elsewhere: %s", place, difference)
    mend(place, stored, files)
    if FAILURES in damaged_files(place, stored):  # it follows from the commits: `Store.finish` will write it
        begun = {name: sha for name, sha in stored.files.items() if name != FAILURES}
        stored = replace(stored, files=begun, state="planned")
        place.write(META, stored.to_bytes())
    stored = read_meta(place)
    committed = _require_shards(place, stored)
    place.clean()
    require_space({place: (stored.units - committed) * stored.unit_bytes}, option)
    return stored


def _differences(place: Place, stored: Meta, meta: Meta, files: Mapping[str, bytes]) -> list[Difference]:
    differences = differing(stored.hard(), meta.hard())
    begun = {name for name in stored.files if "/" not in name and not name.endswith(".jsonl")}
    differences += differing({name: True for name in begun}, {name: True for name in files}, "files")
    for name in sorted(begun & files.keys()):
        if hashlib.sha256(files[name]).hexdigest() != stored.files[name]:
            differences += file_differences(name, place.read(name), files[name])
    return differences


def _is_other(place: Place, meta: Meta, files: Mapping[str, bytes]) -> bool:
    """With --overwrite: is the cache here another one, or too damaged to be resumed? CacheError if not ours."""
    _stored_record(place)
    try:
        stored = read_meta(place)
    except CacheError:
        return True
    return bool(_differences(place, stored, meta, files))


def _stored_record(place: Place, option: str = "--cache") -> dict[str, Any]:
    """cache.json as far as it can be read; CacheError if this is no cache of ours."""
    try:
        record = json.loads(place.read(META))
    except ValueError:
        record = None
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        raise CacheError(
            f"{place.path(META)} is not of this program, or damaged; nothing was deleted: restore it, or choose "
            f"another {option}"
        )
    return record


def _delete_cache(place: Place) -> None:
    """Delete our cache, commits first: after a kill, what is left is a cache with fewer units or a half-made one."""
    record = _stored_record(place)
    place.require_run()
    for name in sorted(place.sizes(COMMITS)):
        place.remove(name)
    place.remove(META)
    files = record.get("files")
    for name in files if isinstance(files, dict) else {}:
        if PurePosixPath(name).name == name:
            place.remove(name)
    for kind in get_args(Kind):
        place.remove_below(f"{kind}.zarr")


def require_ours(place: Place, kind: Kind, files: Iterable[str], option: str = "--cache") -> None:
    """CacheError, and nothing written, unless a cache may be made here or is here.

    Without cache.json the place may hold a half-made cache of ours (of `kind`, with these metadata files) and caches
    in subfolders. option: what chose the place, for the message.
    """
    try:
        entries = place.entries()
    except NotADirectoryError:
        raise CacheError(f"{place} is a file, not a folder; choose another {option}") from None
    if META in entries:
        _stored_record(place, option)
        return
    groups = {f"{each}.zarr" for each in get_args(Kind)}  # also of the cache that was here before
    own = {LOCK, UNITS, SCRATCH, COMMITS, FAILURES, *groups, *files} if LOCK in entries else set()
    foreign = [name for name in entries if name.rstrip("/") not in own and not _is_cache(place, name)]
    if foreign:
        raise CacheError(
            f"{place} is not empty and not a cache of this program (it holds {', '.join(foreign[:3])}); "
            f"choose another {option} or empty it yourself"
        )
    if place.sizes(COMMITS):
        raise CacheError(
            f"{place} holds committed units but no {META}; nothing was deleted: restore that file, "
            f"or choose another {option}"
        )


def _is_cache(place: Place, name: str) -> bool:
    """A cache of ours, whole or half made; a kill right after the folder was made leaves it empty."""
    if not name.endswith("/"):
        return False
    entries = place.at(name.rstrip("/")).entries()
    return not entries or META in entries or LOCK in entries


def _require_shards(place: Place, meta: Meta) -> int:
    """The number of committed units; CacheError for one with a shard that is gone or has another size."""
    commits = Commits(place, plan_fields(meta))
    sizes = place.sizes(meta.group)
    count = 0
    for unit, commit in commits.records():
        count += 1
        for spec in meta.arrays.values():
            name = shard_name(meta, spec, unit)
            if (size := sizes.get(name)) != (expected := commit["shards"][spec.name].bytes):
                raise CacheError(
                    f"{place}: array {spec.name}, unit {unit} is damaged: {place.path(name)} is "
                    f"{'missing' if size is None else f'{size} bytes long'}, {expected} bytes were committed; "
                    "run `cache verify --repair`, then extract again to redo the unit"
                )
    return count


def require_space(needed: Mapping[Place, int], option: str = "--cache") -> None:
    """CacheError unless every disk has room for all the caches that go on it. needed: bytes by the cache's place."""
    disks: dict[int, list[Place]] = {}
    free: dict[int, int] = {}
    for place in needed:
        if (disk := place.disk()) is not None:
            disks.setdefault(disk.device, []).append(place)
            free[disk.device] = disk.free
    for device, places in disks.items():
        total = sum(needed[place] for place in places)
        if total > free[device]:
            raise CacheError(
                f"{' and '.join(map(str, places))}: {total:,} bytes are needed and {free[device]:,} are free; free "
                f"some space, choose another {option}, or use fewer samples (--limit)"
            )


def bytes_to_write(place: Place, arrays: Sequence[ArraySpec], units: int) -> int:
    """What the shards of a planned cache will add to those that are at `place` (negative if it gets smaller)."""
    return units * sum(spec.shard_bytes for spec in arrays) - _used(place)


def _used(place: Place) -> int:
    groups = [place.sizes(f"{kind}.zarr") for kind in get_args(Kind)]
    return sum(size for group in groups for name, size in group.items() if PurePosixPath(name).name.startswith("c."))


@contextmanager
def _write_errors(place: Place, option: str) -> Iterator[None]:
    try:
        yield
    except CacheError:
        raise
    except OSError as error:
        raise CacheError(f"{place} can not be written: {error}; choose another {option}, or fix its rights") from error
