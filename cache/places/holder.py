"""Who writes a cache: the content of its lock."""

from __future__ import annotations

import getpass
import json
import logging
import os
import socket
import sys
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO
from uuid import uuid4

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Holder:
    """One run. The fields are for people, `run` tells two runs apart."""

    run: str = ""
    """Empty: nobody."""
    host: str = "unknown"
    pid: int = 0
    user: str = "unknown"
    command: str = ""
    since: str = "unknown"
    """UTC, ISO 8601."""
    beat: int = field(default=0)
    """Counts up while the run lives, where no kernel watches over it."""

    @classmethod
    def mine(cls) -> Holder:
        """This process, from now on."""
        try:
            user = getpass.getuser()
        except (KeyError, OSError):  # a container without a name for this user
            user = f"uid {os.getuid()}"
        return cls(
            run=uuid4().hex,
            host=socket.gethostname(),
            pid=os.getpid(),
            user=user,
            command=" ".join([Path(sys.argv[0]).name, *sys.argv[1:]])[:200],
            since=datetime.now(UTC).isoformat(timespec="seconds"),
        )

    @classmethod
    def from_bytes(cls, data: bytes) -> Holder:
        """Nobody, if a kill left half of it."""
        try:
            return cls(**json.loads(data))
        except (ValueError, TypeError):
            return cls()

    @classmethod
    def read(cls, file: BinaryIO) -> Holder:
        """What an open lock file says."""
        file.seek(0)
        return cls.from_bytes(file.read())

    def to_bytes(self) -> bytes:
        return json.dumps(asdict(self), indent=1).encode() + b"\n"

    def __str__(self) -> str:
        return f"process {self.pid} of {self.user} on {self.host}, since {self.since} ({self.command})"

    def refusal(self, place: str) -> str:
        """What a second writer is told."""
        return f"{place} is being written by {self}; wait for it, stop it, or choose another place"

    def taken_over(self, place: str) -> None:
        """Say so, if a dead run left this."""
        if self.run:
            _log.warning("%s: its last writer ended without giving back the lock: %s; going on from there", place, self)
