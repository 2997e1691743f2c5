"""The change to MLX, as data: which files are added, and which lines go next to which anchor.

Every edit only inserts. Taking one back therefore restores the file byte for byte. `patching.py` reads this
file; nothing else does. The reasons in full are in `docs/mlx-patches.md`.
"""

from dataclasses import dataclass
from enum import Enum
from pathlib import Path

SOURCE = Path(__file__).parent / "source"

READ = ("0.32.1", "0.32.2")
"""Versions whose source these edits were written against, applied to and built from."""

INFERRED = ("0.32.3", "0.32.4")
"""Versions known from their published headers and the call graph of their published library alone: there the
anchors decide, and a tree that lacks one is refused."""

KNOWN = READ + INFERRED

TRACE = b"host_sync"
"""Occurs in every inserted text, and nowhere in an MLX that was not patched."""


class Place(Enum):
    BEFORE = "before"
    AFTER = "after"


@dataclass(frozen=True, slots=True)
class Edit:
    """`text` put right before or after `anchor`, which occurs exactly once in `file`."""

    file: str
    anchor: str
    place: Place
    text: str
    why: str
    versions: tuple[str, ...] = KNOWN

    @property
    def patched(self) -> bytes:
        """The anchor together with the inserted text, as they stand in a patched file."""
        parts = (self.text, self.anchor) if self.place is Place.BEFORE else (self.anchor, self.text)
        return "".join(parts).encode()


@dataclass(frozen=True, slots=True)
class Addition:
    """A file of ours that a patched tree has and an unpatched one has not."""

    file: str
    source: Path

    @property
    def content(self) -> bytes:
        return self.source.read_bytes()


ADDITIONS = (
    Addition("mlx/host_sync.h", SOURCE / "host_sync.h"),
    Addition("mlx/host_sync.cpp", SOURCE / "host_sync.cpp"),
)

INCLUDE = '#include "mlx/host_sync.h"\n'

EDITS = (
    Edit(
        file="mlx/CMakeLists.txt",
        anchor="          ${CMAKE_CURRENT_SOURCE_DIR}/graph_utils.cpp\n",
        place=Place.AFTER,
        text="          ${CMAKE_CURRENT_SOURCE_DIR}/host_sync.cpp\n",
        why="the added file is compiled",
    ),
    Edit(
        file="mlx/transforms.cpp",
        anchor='#include "mlx/fence.h"\n',
        place=Place.AFTER,
        text=INCLUDE,
        why="declares OpenStreams",
    ),
    Edit(
        file="mlx/transforms.cpp",
        anchor="  std::set<Stream> open_streams;\n",
        place=Place.AFTER,
        text="  host_sync::OpenStreams open_for_host_sync(open_streams);\n",
        why="a wait inside this evaluation must first commit exactly the encoders that it has opened",
    ),
    Edit(
        file="mlx/backend/metal/event.cpp",
        anchor='#include "mlx/scheduler.h"\n',
        place=Place.BEFORE,
        text=INCLUDE,
        why="declares wait",
    ),
    Edit(
        file="mlx/backend/metal/event.cpp",
        anchor="    encoder.wait_event(*this, value());\n",
        place=Place.BEFORE,
        text="    if (host_sync::wait(*this, stream)) {\n      return;\n    }\n",
        why="the one place where a Metal command buffer is made to wait, for fences and async_eval alike",
    ),
    Edit(
        file="mlx/backend/metal/fence.cpp",
        anchor='#include "mlx/scheduler.h"\n',
        place=Place.BEFORE,
        text=INCLUDE,
        why="declares wait",
    ),
    Edit(
        file="mlx/backend/metal/fence.cpp",
        anchor="  bool use_fast{false};\n",
        place=Place.BEFORE,
        text="  Stream host_sync_producer{0, Device::cpu};\n",
        why="a fast fence (MLX_METAL_FAST_SYNCH) has no event that would know its producer",
    ),
    Edit(
        file="mlx/backend/metal/fence.cpp",
        anchor="  FenceImpl(Stream stream) {\n",
        place=Place.AFTER,
        text="    host_sync_producer = stream;\n",
        why="the same",
    ),
    Edit(
        file="mlx/backend/metal/fence.cpp",
        anchor="  // Register outputs to ensure that no kernels which depends on the\n",
        place=Place.BEFORE,
        text=(
            "  if (host_sync::wait(\n"
            "          *f.cpu_value(), f.count, f.host_sync_producer, stream)) {\n"
            "    return;\n"
            "  }\n\n"
        ),
        why="a fast fence makes a kernel wait, not an event",
    ),
    Edit(
        file="mlx/backend/cuda/event.cu",
        anchor='#include "mlx/scheduler.h"\n',
        place=Place.BEFORE,
        text=INCLUDE,
        why="declares wait",
        versions=READ,
    ),
    Edit(
        file="mlx/backend/cuda/event.cu",
        anchor="      event.atomic->wait(s, value());\n",
        place=Place.BEFORE,
        text="      if (host_sync::wait(*this, s)) {\n        return;\n      }\n",
        why="CUDA fences wait on the host as they are; this is the wait across async_eval",
        versions=READ,
    ),
)
