"""Making a cache's folder, or recognising the one that is there: ours, half made, of another identity, or foreign.

`cache.lock` is the first file and `cache.json` the last, so what a kill leaves can be told apart.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any, Final, get_args

import pyarrow as pa
import pyarrow.parquet as pq

from cache.commits import Commits
from cache.files import locked, make_folder, size_and_sha256, sync_folder, write_whole
from cache.identity import Difference, differing
from cache.layout import FORMAT, ArraySpec, Kind, Meta, zarr_metadata
from manifests.errors import CacheError, IdentityMismatch

META: Final = "cache.json"
LOCK: Final = "cache.lock"
SCRATCH: Final = "tmp"  # temporary names of files on their way; whatever a kill left there is deleted on resume
_COMMITS = "commits"
_log = logging.getLogger(__name__)


def create_or_resume(root: Path, meta: Meta, files: Mapping[str, Path | bytes], overwrite: bool, option: str) -> Meta:
    """See `Store.create_or_resume`. Returns the meta data as they are on disk."""
    with _write_errors(root, option):
        replacing = (root / META).exists()
        if replacing and not (overwrite and _is_other(root, meta, files)):
            return _resume(root, meta, files, option)
        require_ours(root, meta.kind, files, option)
        contents = {name: _content(source) for name, source in files.items()} | zarr_metadata(meta)
        needed = meta.units * meta.unit_bytes + sum(len(data) for data in contents.values())
        require_space({root: needed - _used(root)}, option)
        root.mkdir(parents=True, exist_ok=True)
        (root / LOCK).touch()
        with _only_writer(root):
            if replacing:
                _delete_cache(root)
            if not (root / META).exists():  # else another process made it a moment ago
                _create(root, meta, contents)
        return _resume(root, meta, files, option)


def read_meta(root: Path) -> Meta:
    """cache.json, checked together with every metadata file. CacheError if missing, damaged or of another schema."""
    try:
        meta = Meta.from_bytes((root / META).read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        raise CacheError(f"{root} holds no cache ({META} is missing); run extract first, or check --cache") from None
    except (ValueError, KeyError, TypeError) as error:
        raise CacheError(f"{root / META}: {error}; restore the file, or delete {root} and extract again") from None
    if damaged := damaged_files(root, meta):
        raise CacheError(f"{damaged[0]}; restore the file, or delete {root} and extract again")
    return meta


def damaged_files(root: Path, meta: Meta) -> list[str]:
    """One line for every metadata file that is missing or does not have the sha256 that cache.json names."""
    problems = []
    for name, expected in sorted(meta.files.items()):
        try:
            found = size_and_sha256(root / name)[1]
        except OSError as error:
            problems.append(f"{root / name} can not be read: {error.strerror}")
            continue
        if found != expected:
            problems.append(f"{root / name} is damaged or was changed: its sha256 is {found}, {META} has {expected}")
    return problems


def plan_fields(meta: Meta) -> dict[str, Any]:
    """What binds a commit record to its cache: all hard fields, and the metadata files the cache began with."""
    begun = {name: sha for name, sha in meta.files.items() if not name.endswith(".jsonl")}
    return {"hard": meta.hard(), "files": begun}


def _create(root: Path, meta: Meta, contents: Mapping[str, bytes]) -> None:
    for folder in (meta.group, SCRATCH):  # of a creation that was killed; no unit of it is committed
        _delete_folder(root / folder)
    for folder in (SCRATCH, _COMMITS, meta.group, *(f"{meta.group}/{name}" for name in meta.arrays)):
        make_folder(root / folder)
    for name, data in contents.items():
        write_whole(root / name, data, root / SCRATCH)
    meta = replace(meta, files={name: hashlib.sha256(data).hexdigest() for name, data in contents.items()})
    write_whole(root / META, meta.to_bytes(), root / SCRATCH)
    sync_folder(root.absolute().parent)


def _resume(root: Path, meta: Meta, files: Mapping[str, Path | bytes], option: str) -> Meta:
    stored = read_meta(root)
    if differences := _differences(root, stored, meta, files):
        deletes = ", or pass --overwrite to delete this one" if option == "--cache" else ""
        raise IdentityMismatch(
            f"{root} was made with other settings: {'; '.join(map(str, differences))}. Choose another {option}{deletes}"
        )
    for difference in differing(stored.soft, meta.soft):
        _log.warning("%s was begun elsewhere: %s", root, difference)
    (root / LOCK).touch()
    for folder in (SCRATCH, _COMMITS):  # empty folders get lost in some copies
        make_folder(root / folder)
    commits = Commits(root, plan_fields(stored))
    committed = commits.units()
    for unit in committed:
        _require_shards(root, stored, commits, unit)
    _delete_strays(root)
    require_space({root: (stored.units - len(committed)) * stored.unit_bytes}, option)
    return stored


def _differences(root: Path, stored: Meta, meta: Meta, files: Mapping[str, Path | bytes]) -> list[Difference]:
    differences = differing(stored.hard(), meta.hard())
    begun = {name for name in stored.files if "/" not in name and not name.endswith(".jsonl")}
    differences += differing({name: True for name in begun}, {name: True for name in files}, "files")
    for name in sorted(begun & files.keys()):
        data = _content(files[name])
        if hashlib.sha256(data).hexdigest() != stored.files[name]:
            differences += _table_differences(name, (root / name).read_bytes(), data)
    return differences


def _table_differences(name: str, stored: bytes, given: bytes) -> list[Difference]:
    """Two Parquet files of unequal bytes may still be the same table, written by two versions of pyarrow."""
    try:
        old, new = pq.read_table(io.BytesIO(stored)), pq.read_table(io.BytesIO(given))
    except pa.ArrowException:
        shas = [hashlib.sha256(data).hexdigest() for data in (stored, given)]
        return [Difference(field=f"files.{name}", stored=f"sha256 {shas[0]}", given=f"sha256 {shas[1]}")]
    if not old.schema.equals(new.schema):
        texts = [f"columns {', '.join(table.schema.names)}" for table in (old, new)]
        return [Difference(field=f"files.{name}", stored=texts[0], given=texts[1])]
    if len(old) != len(new):
        texts = [f"{len(table)} rows" for table in (old, new)]
        return [Difference(field=f"files.{name}", stored=texts[0], given=texts[1])]
    for column in (column for column in old.schema.names if not old.column(column).equals(new.column(column))):
        for row, (before, after) in enumerate(zip(old.column(column), new.column(column), strict=True)):
            if before != after:  # the first one says enough
                return differing(before.as_py(), after.as_py(), f"files.{name}.{column}[{row}]")
    return []


def _is_other(root: Path, meta: Meta, files: Mapping[str, Path | bytes]) -> bool:
    """With --overwrite: is the cache here another one, or too damaged to be resumed? CacheError if not ours."""
    _stored_record(root)
    try:
        stored = read_meta(root)
    except CacheError:
        return True
    return bool(_differences(root, stored, meta, files))


def _stored_record(root: Path, option: str = "--cache") -> dict[str, Any]:
    """cache.json as far as it can be read; CacheError if this is no cache of ours."""
    try:
        record = json.loads((root / META).read_bytes())
    except ValueError:
        record = None
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        raise CacheError(
            f"{root / META} is not of this program, or damaged; nothing was deleted: restore it, or choose another "
            f"{option}"
        )
    return record


def _delete_cache(root: Path) -> None:
    """Delete our cache, commits first: after a kill, what is left is a cache with fewer units or a half-made one."""
    record = _stored_record(root)
    for commit in sorted((root / _COMMITS).glob("*.json")):
        commit.unlink()
    sync_folder(root / _COMMITS)
    (root / META).unlink()
    sync_folder(root)
    for name in record.get("files", {}):
        if PurePosixPath(name).name == name:
            (root / name).unlink(missing_ok=True)
    for kind in get_args(Kind):
        _delete_folder(root / f"{kind}.zarr")


def require_ours(root: Path, kind: Kind, files: Iterable[str], option: str = "--cache") -> None:
    """CacheError, and nothing written, unless a cache may be made here or is here.

    Without cache.json the folder may hold a half-made cache of ours (of `kind`, with these metadata files) and caches
    in subfolders. option: what chose the folder, for the message.
    """
    if (root / META).exists():
        _stored_record(root, option)
        return
    if not root.exists():
        return
    if not root.is_dir():
        raise CacheError(f"{root} is a file, not a folder; choose another {option}")
    own = {LOCK, SCRATCH, _COMMITS, f"{kind}.zarr", *files} if (root / LOCK).exists() else set()
    foreign = [path.name for path in sorted(root.iterdir()) if path.name not in own and not _is_cache(path)]
    if foreign:
        raise CacheError(
            f"{root} is not empty and not a cache of this program (it holds {', '.join(foreign[:3])}); "
            f"choose another {option} or empty it yourself"
        )
    if (root / _COMMITS).is_dir() and any((root / _COMMITS).iterdir()):
        raise CacheError(
            f"{root} holds committed units but no {META}; nothing was deleted: restore that file, "
            f"or choose another {option}"
        )


def _is_cache(folder: Path) -> bool:
    """A cache of ours, whole or half made; a kill right after the folder was made leaves it empty."""
    if not folder.is_dir():
        return False
    names = {path.name for path in folder.iterdir()}
    return not names or META in names or LOCK in names


def _delete_folder(path: Path) -> None:
    if path.exists():
        shutil.rmtree(path)


def _delete_strays(root: Path) -> None:
    """Remove temporary files that a kill left behind, unless somebody is writing: then they may be his."""
    try:
        with locked(root / LOCK, wait=False):
            for path in (root / SCRATCH).iterdir():
                path.unlink()
    except BlockingIOError:
        _log.warning("%s: another process is writing; its units are left to it", root)


@contextmanager
def _only_writer(root: Path) -> Iterator[None]:
    try:
        with locked(root / LOCK, wait=False):
            yield
    except BlockingIOError:
        raise CacheError(f"{root}: another process is writing there; wait for it or stop it first") from None


def _require_shards(root: Path, meta: Meta, commits: Commits, unit: int) -> None:
    """CacheError for a committed unit whose shard is gone or has another size: a resume would leave it broken."""
    commit = commits.get(unit)
    for spec in meta.arrays.values():
        path = root / meta.group / spec.name / spec.shard_key(unit)
        size = path.stat().st_size if path.exists() else -1
        if commit is not None and size != commit["shards"][spec.name]["bytes"]:
            raise CacheError(
                f"{root}: array {spec.name}, unit {unit} is damaged: {path} is "
                f"{'missing' if size < 0 else f'{size} bytes long'}, {commit['shards'][spec.name]['bytes']} bytes were "
                f"committed; delete {commits.path(unit)} and run extract again to redo the unit"
            )


def require_space(needed: Mapping[Path, int], option: str = "--cache") -> None:
    """CacheError unless every disk has room for all the caches that go on it. needed: bytes by the cache's folder."""
    disks: dict[int, list[Path]] = {}
    for root in needed:
        disks.setdefault(_existing(root).stat().st_dev, []).append(root)
    for roots in disks.values():
        total, free = sum(needed[root] for root in roots), shutil.disk_usage(_existing(roots[0])).free
        if total > free:
            raise CacheError(
                f"{' and '.join(map(str, roots))}: {total:,} bytes are needed and {free:,} are free; free some space, "
                f"choose another {option}, or use fewer samples (--limit)"
            )


def bytes_to_write(root: Path, arrays: Sequence[ArraySpec], units: int) -> int:
    """What the shards of a planned cache will add to those that are at `root` (negative if it gets smaller)."""
    return units * sum(spec.shard_bytes for spec in arrays) - _used(root)


def _existing(root: Path) -> Path:
    return next(path for path in (root, *root.absolute().parents) if path.exists())


def _used(root: Path) -> int:
    return sum(path.stat().st_size for path in root.glob("*.zarr/*/c.*"))


def _content(source: Path | bytes) -> bytes:
    return source.read_bytes() if isinstance(source, Path) else source


@contextmanager
def _write_errors(root: Path, option: str) -> Iterator[None]:
    try:
        yield
    except CacheError:
        raise
    except OSError as error:
        raise CacheError(f"{root} can not be written: {error}; choose another {option}, or fix its rights") from error
