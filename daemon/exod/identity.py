"""Who this node is: a stable id, an incarnation that rises with each start, and the folder's single owner.

`claim` takes the data folder for this process; nothing else may write there. It is used once, before anything else
is started; the incarnation is on disk before the first datagram leaves. `FolderKeeper` writes again what a person
or a cleaner removed under the daemon: else its next start would make it another node. Never replaces a file that
somebody put there.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import secrets
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Final

import msgspec
import structlog

from exod import data_files
from exod.core.base.facts import DATA_FOLDER_LOST, Fact
from exod.data_files import Damaged
from exod.errors import ExodError, StartError
from exod.model import NodeId

log = structlog.get_logger()

IDENTITY_FILE: Final = "identity.json"
STATE_FILE: Final = "state.json"
LOCK_FILE: Final = "exod.lock"

LOOK_S: Final = 2.0
"""As often as the control socket looks for its own file: who finds the folder gone asks within seconds."""


class _Identity(msgspec.Struct):
    id: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{16}$")]


Counter = Annotated[int, msgspec.Meta(ge=0, lt=1 << 62)]
"""Fits the 8 bytes that datagrams have for it, with room to grow in."""


class _State(msgspec.Struct):
    incarnation: Counter = 0
    epoch_number: Counter = 0
    recommended_bytes: Counter = 0


class Identity:
    """This node's identity and the lock on its folder, until `release`."""

    def __init__(
        self, folder: Path, lock: int, node_id: NodeId, state: _State, damaged: tuple[Damaged, ...] = ()
    ) -> None:
        self.id = node_id
        self.damaged = damaged
        """Files of an earlier life that could not be understood: what they held is lost."""
        self._folder = folder
        self._lock = lock
        self._state = state

    @property
    def incarnation(self) -> int:
        return self._state.incarnation

    @property
    def epoch_number(self) -> int:
        """The highest epoch number that an earlier life is known to have seen."""
        return self._state.epoch_number

    def jump_beyond(self, incarnation_seen: int) -> None:
        """A peer knows a later incarnation than ours (the state file was lost): go beyond it."""
        if incarnation_seen >= self._state.incarnation:
            self._state.incarnation = incarnation_seen + 1
            self._save()

    def remember_epoch(self, number: int) -> None:
        if number > self._state.epoch_number:
            self._state.epoch_number = number
            self._save(durable=False)

    @property
    def recommended_bytes(self) -> int:
        """Of the GPU's memory, what MLX recommended in an earlier life; 0 where it never did."""
        return self._state.recommended_bytes

    def remember_recommended(self, size: int) -> None:
        if size != self._state.recommended_bytes:
            self._state.recommended_bytes = size
            self._save(durable=False)

    def _save(self, durable: bool = True) -> None:
        """A disk that is full costs a jump at the next start, not the daemon."""
        try:
            _write(self._folder / STATE_FILE, msgspec.json.encode(self._state), durable)
        except OSError as error:
            log.warning("state_not_saved", file=str(self._folder / STATE_FILE), error=error.strerror)

    def release(self) -> None:
        os.close(self._lock)

    # --- a folder that was removed ---

    @property
    def owns_folder(self) -> bool:
        """Is the folder's lock file the one that is held? It goes with the folder, or with all that lies there."""
        try:
            there = os.stat(self._folder / LOCK_FILE)
        except OSError:
            return False
        held = os.fstat(self._lock)
        return (there.st_dev, there.st_ino) == (held.st_dev, held.st_ino)

    def take_again(self, writers: Sequence[Callable[[], None]]) -> None:
        """Makes the folder and locks it. It counts as taken when `writers` have written what each of them keeps
        there. Raises OSError and ExodError.
        """
        lock = _lock(self._folder)
        try:
            self._write_again()
            for write in writers:
                write()
            _note_owner(lock)
        except BaseException:
            os.close(lock)
            raise
        os.close(self._lock)
        self._lock = lock

    def _write_again(self) -> None:
        file = self._folder / IDENTITY_FILE
        try:
            found = data_files.read(file, _Identity)
        except FileNotFoundError:
            found = None
        if isinstance(found, _Identity) and found.id != self.id:
            raise StartError(f"{file} is of node {found.id}: move it away, or restart exod to run as that node")
        if not isinstance(found, _Identity):
            _write(file, msgspec.json.encode(_Identity(id=self.id)))
        if not (self._folder / STATE_FILE).exists():
            _write(self._folder / STATE_FILE, msgspec.json.encode(self._state))


class FolderKeeper:
    """`writers` are as `Identity.take_again` has them; `emit(type, data)` takes the contract's events."""

    def __init__(
        self,
        identity: Identity,
        folder: Path,
        writers: Sequence[Callable[[], None]],
        emit: Callable[[str, dict[str, object]], None],
    ) -> None:
        self._identity, self._folder, self._writers, self._emit = identity, folder, writers, emit
        self._problem = ""

    async def run(self) -> None:
        while True:
            await asyncio.sleep(LOOK_S)
            self.look()

    def look(self) -> None:
        problem = ""
        if not self._identity.owns_folder:
            try:
                self._identity.take_again(self._writers)
            except (OSError, ExodError) as error:
                problem = str(error)
            else:
                self._emit("folder.restored", {"folder": str(self._folder)})
        if problem and not self._problem:
            log.error("data_folder_lost", folder=str(self._folder), error=problem)
        self._problem = problem

    def facts(self) -> tuple[Fact, ...]:
        if not self._problem:
            return ()
        text = (
            f"the data folder {self._folder} was removed under the daemon and cannot be written again "
            f"({self._problem}). exod goes on from memory and tries again every {LOOK_S:g} s; until that is mended "
            "a restart would make this another node"
        )
        return (Fact(DATA_FOLDER_LOST, self._identity.id, text),)


def claim(folder: Path) -> Identity:
    """Takes the data folder, reads or makes the node's id, and raises the incarnation (fsynced).

    A file that cannot be understood is set aside; a damaged identity makes this a new node. Raises StartError, one
    line each: no permission, a second daemon on the folder.
    """
    lock = _lock(folder)
    try:
        _note_owner(lock)
        damaged: list[Damaged] = []
        node_id = _node_id(folder / IDENTITY_FILE, damaged)
        state = _read_state(folder / STATE_FILE, damaged)
        state.incarnation = max(state.incarnation + 1, time.time_ns() // 1_000_000)
        _write(folder / STATE_FILE, msgspec.json.encode(state))
    except OSError as error:
        os.close(lock)
        file = f" ({Path(error.filename).name})" if error.filename else ""
        raise StartError(f"{folder}: the data folder cannot be written: {error.strerror}{file}") from None
    return Identity(folder, lock, node_id, state, tuple(damaged))


def _lock(folder: Path) -> int:
    """The descriptor of the lock file, locked. Raises StartError."""
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = os.open(folder / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise StartError(f"{folder}: the data folder cannot be used: {error.strerror}; set node.data_dir") from None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        owner = _lock_owner(folder)
        os.close(lock)
        if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
            raise StartError(f"{folder}: the data folder cannot be locked: {error.strerror}") from None
        raise StartError(f"{folder}: another exod{owner} runs on this data folder; stop it first") from None
    return lock


def _note_owner(lock: int) -> None:
    os.ftruncate(lock, 0)
    os.pwrite(lock, str(os.getpid()).encode(), 0)


def _lock_owner(folder: Path) -> str:
    try:
        return f" (pid {int((folder / LOCK_FILE).read_text())})"
    except (OSError, ValueError):
        return ""


def _node_id(file: Path, damaged: list[Damaged]) -> NodeId:
    try:
        identity = data_files.read(file, _Identity)
        if isinstance(identity, _Identity):
            return NodeId(identity.id)
        damaged.append(identity)
    except FileNotFoundError:
        pass
    new = _Identity(id=secrets.token_hex(8))
    _write(file, msgspec.json.encode(new))
    return NodeId(new.id)


def _read_state(file: Path, damaged: list[Damaged]) -> _State:
    """A lost or torn state file costs nothing: the wall clock and the peers push the incarnation on."""
    try:
        state = data_files.read(file, _State)
    except FileNotFoundError:
        return _State()
    if isinstance(state, _State):
        return state
    damaged.append(state)
    return _State()


def _write(file: Path, data: bytes, durable: bool = True) -> None:
    """Replaces the file as a whole; `durable` waits until it would survive a power cut."""
    temporary = file.with_suffix(".tmp")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as stream:
        stream.write(data)
        if durable:
            stream.flush()
            os.fsync(stream.fileno())
    os.replace(temporary, file)
    if durable:
        folder = os.open(file.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
