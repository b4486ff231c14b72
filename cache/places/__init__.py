"""Where a cache lies: a folder, or a prefix in an S3 bucket. Everything else in `cache/` works on `Place` alone."""

from __future__ import annotations

import os

from cache.places.base import Place
from cache.places.bucket import Bucket
from cache.places.folder import Folder
from manifests.errors import CacheError

Where = str | os.PathLike[str] | Place


def place_of(where: Where) -> Place:
    """The place that a path or an `s3://bucket/prefix` names. CacheError for another kind of URL."""
    if isinstance(where, Place):
        return where
    text = os.fspath(where)
    if text.startswith("s3://"):
        return Bucket(text)
    if "://" in text:
        raise CacheError(f"{text}: a cache lies in a folder or at s3://bucket/prefix; give one of these")
    return Folder(text)
