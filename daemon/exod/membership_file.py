"""Membership on disk: `membership.json` beside the identity, and the cluster key's own file.

A new key is in `membership.json` before the key file is replaced, so a power cut in between loses neither: the next
start puts it into the key file. A key file that a person replaced counts, and what belonged to the key before it
(retired keys, pins, invitations) is forgotten.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

import msgspec
import structlog

from exod import data_files
from exod.core.membership.membership import ClusterKey, MembershipRecord
from exod.data_files import Damaged
from exod.errors import TrustError
from exod.peers.trust import create_key, read_key, replace_key, write_missing_key

log = structlog.get_logger()

FILE: Final = "membership.json"


class MembershipFile:
    def __init__(self, folder: Path, key_file: Path) -> None:
        self._file, self._key_file = folder / FILE, key_file
        self.damaged: tuple[Damaged, ...] = ()

    def read(self, name: str) -> MembershipRecord:
        """What was kept, made to agree with the key file; a first start makes the key. `name` is this node's.
        Raises TrustError.
        """
        key = read_key(self._key_file) if self._key_file.exists() else create_key(self._key_file)
        fresh = MembershipRecord(ClusterKey(0, key, name))
        try:
            kept = data_files.read(self._file, MembershipRecord)
        except OSError:
            return fresh
        if isinstance(kept, Damaged):
            self.damaged = (kept,)
            return fresh
        if kept.current.key == key:
            return kept
        if kept.retired and kept.retired[0].was.key == key and not kept.key_written:
            self.write_key(kept)
            return kept
        return fresh

    def write_key(self, record: MembershipRecord) -> MembershipRecord:
        """The key file gets the record's key, in three steps of which each may be the last."""
        self.write(msgspec.structs.replace(record, key_written=False))
        try:
            replace_key(self._key_file, record.current.key)
        except TrustError as error:
            log.error("cluster_key_not_kept", file=str(self._key_file), text=str(error))
            return msgspec.structs.replace(record, key_written=False)
        done = msgspec.structs.replace(record, key_written=True)
        self.write(done)
        return done

    def write(self, record: MembershipRecord) -> None:
        """A full disk costs what was not kept, not the daemon."""
        try:
            self._write(record)
        except OSError as error:
            log.warning("membership_not_kept", file=str(self._file), error=error.strerror)

    def write_again(self, record: MembershipRecord) -> None:
        """What was removed of both files. Raises OSError and TrustError."""
        write_missing_key(self._key_file, record.current.key)
        if not self._file.exists():
            self._write(record)

    def _write(self, record: MembershipRecord) -> None:
        temporary = self._file.with_suffix(".tmp")
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(msgspec.json.encode(record))
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, self._file)
