"""MLX's ring asks its connections over and over while it waits. With more ranks than cores it takes the core from
the rank that it waits for, and a sum takes as long as the scheduler's turns. Here each question that finds nothing
gives its core away. MLX itself and every byte it sends are the same.

On Linux with a C compiler only: elsewhere the ring runs as it is.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

_SOURCE = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <sched.h>
#include <sys/socket.h>

ssize_t recv(int fd, void* to, size_t size, int flags) {
  static ssize_t (*real)(int, void*, size_t, int);
  if (!real) real = (ssize_t(*)(int, void*, size_t, int))dlsym(RTLD_NEXT, "recv");
  ssize_t got = real(fd, to, size, flags);
  if (got < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) {
    sched_yield();
    errno = EAGAIN;
  }
  return got;
}
"""


def environment(place: Path) -> dict[str, str]:
    """What a process gets beside its environment so that its ring gives way; `place` is an empty folder's."""
    compiler = shutil.which("cc")
    if sys.platform != "linux" or compiler is None:
        return {}
    source, library = place / "patient.c", place / "patient.so"
    source.write_text(_SOURCE)
    subprocess.run([compiler, "-O2", "-shared", "-fPIC", str(source), "-o", str(library), "-ldl"], check=True)
    return {"LD_PRELOAD": str(library)}
