// What differs between macOS and Linux: sockets that must not raise SIGPIPE, and descriptors of our own.
// Everything else of the native group is the same source on both. How it is linked is in recipe.py.
#pragma once

#include <fcntl.h>
#include <sys/socket.h>
#include <unistd.h>

namespace exod {

#ifdef __APPLE__
constexpr int SEND_FLAGS = 0;  // macOS knows no MSG_NOSIGNAL; the option below does the same for the whole socket
inline void silence_sigpipe(int fd) {
  int on = 1;
  ::setsockopt(fd, SOL_SOCKET, SO_NOSIGPIPE, &on, sizeof(on));
}
#else
constexpr int SEND_FLAGS = MSG_NOSIGNAL;
inline void silence_sigpipe(int) {}
#endif

// A copy of `fd` that no child process inherits and that never blocks; -1 where there is none.
inline int own_copy(int fd) {
  int copy = ::fcntl(fd, F_DUPFD_CLOEXEC, 0);
  if (copy < 0) return -1;
  ::fcntl(copy, F_SETFL, ::fcntl(copy, F_GETFL) | O_NONBLOCK);
  silence_sigpipe(copy);
  return copy;
}

// The two ends of a pipe, made as `own_copy` makes descriptors. False where there is none.
inline bool own_pipe(int ends[2]) {
  int raw[2];
  if (::pipe(raw) != 0) return false;
  for (int i = 0; i < 2; i++) {
    ends[i] = ::fcntl(raw[i], F_DUPFD_CLOEXEC, 0);
    ::close(raw[i]);
    if (ends[i] >= 0) ::fcntl(ends[i], F_SETFL, ::fcntl(ends[i], F_GETFL) | O_NONBLOCK);
  }
  return ends[0] >= 0 && ends[1] >= 0;
}

}  // namespace exod
