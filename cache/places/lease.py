"""The lock of a place without a kernel: an object put if absent, kept alive by a heartbeat, taken over when it stops.

Both ends use compare-and-swap on the object's ETag, and nobody compares clocks of two machines: a lock is stale when
it did not change while somebody watched it for STALE seconds.
"""

from __future__ import annotations

import logging
import threading
import time
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from cache.places.base import LOCK
from cache.places.holder import Holder
from manifests.errors import CacheError

if TYPE_CHECKING:
    from cache.places.bucket import Bucket

BEAT: Final = 5.0  # seconds between two signs of life
STALE: Final = 30.0  # seconds without one
_log = logging.getLogger(__name__)


class Lease:
    """`with Lease(bucket):` CacheError if a living run has it. Without a network for STALE seconds it is given up."""

    def __init__(self, bucket: Bucket, *, beat: float, stale: float) -> None:
        self.bucket, self.beat, self.stale = bucket, beat, stale
        self.holder = Holder.mine()
        self._tag = ""
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._keep, daemon=True, name="lease")

    def __enter__(self) -> str:
        """-> the run, for its workers."""
        while not (created := self._put(self.holder.to_bytes(), "create")) and not self._inherit():
            pass
        if created and self._put(self.holder.to_bytes(), "create"):
            raise CacheError(f"{self.bucket}: this S3 server has no conditional puts, so two runs could write at once")
        self._thread.start()
        return self.holder.run

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        try:
            self._put(b"", {"e_tag": self._tag})  # emptied, not deleted: S3 has no delete under a condition
        except OSError as error:  # nothing to end a run for: the next one waits until the lock is stale
            _log.warning("%s: the lock could not be given back: %s", self.bucket, error)

    def _inherit(self) -> bool:
        """Take over a lock that was given back, or in which nothing changes; False if another run was faster.

        CacheError if its holder shows a sign of life.
        """
        tag, holder = self._look()
        if holder.run:
            _log.warning("%s is locked by %s; watching whether it lives, %.0f s", self.bucket, holder, self.stale)
        end = time.monotonic() + (self.stale if holder.run else 0)
        while time.monotonic() < end:
            time.sleep(min(self.beat / 2, 1.0))
            if (seen := self._look())[0] != tag:
                if seen[1].run:
                    raise CacheError(seen[1].refusal(self.bucket.name))
                return False
        if taken := self._put(self.holder.to_bytes(), {"e_tag": tag}):
            holder.taken_over(self.bucket.name)
        return taken

    def _keep(self) -> None:
        last = time.monotonic()
        while not self._stop.wait(self.beat):
            self.holder = replace(self.holder, beat=self.holder.beat + 1)
            try:
                if not self._put(self.holder.to_bytes(), {"e_tag": self._tag}) and not self._still_mine():
                    _log.error("%s: another run has taken over its lock; this one's units are refused", self.bucket)
                    return
                last = time.monotonic()
            except Exception as error:  # whatever a network does; the next beat may get through
                if time.monotonic() - last > self.stale:
                    _log.error("%s: no sign of life got through for %.0f s: %s", self.bucket, self.stale, error)

    def _still_mine(self) -> bool:
        """A put whose answer was lost is tried again by obstore, and then fails against itself."""
        with suppress(FileNotFoundError):
            self._tag, holder = self._look()
            return holder.run == self.holder.run
        return False

    def _look(self) -> tuple[str, Holder]:
        data, tag = self.bucket.get(LOCK)
        return tag, Holder.from_bytes(data)

    def _put(self, content: bytes, mode: Any) -> bool:
        from obstore.exceptions import AlreadyExistsError, BaseError, PreconditionError

        try:
            self._tag = self.bucket.store.put(LOCK, content, mode=mode)["e_tag"]
        except (AlreadyExistsError, PreconditionError, FileNotFoundError):
            return False
        except BaseError as error:
            raise OSError(f"{self.bucket}: {str(error).partition(chr(10))[0]}") from error
        return True
