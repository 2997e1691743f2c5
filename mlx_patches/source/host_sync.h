// Part of exod's patch for MLX (MIT): who waits for a CPU stream, the GPU or the host.

#pragma once

#include <atomic>
#include <set>

#include "mlx/event.h"
#include "mlx/stream.h"

namespace mlx::core::host_sync {

/* Names the streams that one evaluation encodes work on, for as long as it
 * runs, so that `wait` can commit exactly those. Evaluations of one thread may
 * nest; other threads are never looked at. */
class OpenStreams {
 public:
  explicit OpenStreams(const std::set<Stream>& streams);
  ~OpenStreams();

  OpenStreams(const OpenStreams&) = delete;
  OpenStreams& operator=(const OpenStreams&) = delete;

  /* Commits what the evaluations of this thread have encoded for the GPU: a
   * CPU stream may wait for it, and an uncommitted buffer would never run. */
  static void commit_all();

 private:
  const std::set<Stream>& streams_;
  const OpenStreams* outer_;
};

/* Called before a command buffer of `consumer` is made to wait for the event.
 * Where the switch is at 0, `consumer` a GPU stream and the event a CPU
 * stream's, waits right here and returns true: there is nothing left to
 * encode. Throws the error of the stream that was waited for. */
bool wait(Event& event, Stream consumer);

/* The same for a fast Metal fence, which counts instead of signalling. */
bool wait(
    const std::atomic_uint& count,
    unsigned int target,
    Stream producer,
    Stream consumer);

} // namespace mlx::core::host_sync

#if defined(_WIN32)
#define MLX_HOST_SYNC_EXPORT __declspec(dllexport)
#else
#define MLX_HOST_SYNC_EXPORT __attribute__((visibility("default")))
#endif

/* The switch, by C names so that ctypes finds it. 1, the default, lets command
 * buffers wait for CPU streams; 0 makes the host wait first. It starts as the
 * environment variable MLX_FORCE_DISTRIBUTED_GPU says, may be turned by any
 * thread at any time, and counts for every wait that is encoded afterwards. */
extern "C" {
MLX_HOST_SYNC_EXPORT int mlx_force_distributed_gpu();
MLX_HOST_SYNC_EXPORT void mlx_set_force_distributed_gpu(int enabled);
}
