// Part of exod's patch for MLX (MIT): who waits for a CPU stream, the GPU or the host.

#include "mlx/host_sync.h"

#include <thread>

#include "mlx/backend/gpu/eval.h"
#include "mlx/utils.h"

namespace mlx::core::host_sync {

namespace {

std::atomic<bool>& gpu_may_wait() {
  // Read once: getenv while another thread calls setenv is a data race.
  static std::atomic<bool> allowed{
      env::get_var("MLX_FORCE_DISTRIBUTED_GPU", 1) != 0};
  return allowed;
}

bool wanted(Stream producer, Stream consumer) {
  return consumer.device == Device::gpu && producer.device == Device::cpu &&
      !gpu_may_wait().load(std::memory_order_relaxed);
}

thread_local const OpenStreams* innermost = nullptr;

} // namespace

OpenStreams::OpenStreams(const std::set<Stream>& streams)
    : streams_(streams), outer_(innermost) {
  innermost = this;
}

OpenStreams::~OpenStreams() {
  innermost = outer_;
}

void OpenStreams::commit_all() {
  for (auto* open = innermost; open; open = open->outer_) {
    for (auto& s : open->streams_) {
      if (s.device == Device::gpu) {
        gpu::finalize(s);
      }
    }
  }
}

bool wait(Event& event, Stream consumer) {
  if (!wanted(event.stream(), consumer)) {
    return false;
  }
  if (!event.is_signaled()) {
    OpenStreams::commit_all();
  }
  event.wait();
  return true;
}

bool wait(
    const std::atomic_uint& count,
    unsigned int target,
    Stream producer,
    Stream consumer) {
  if (!wanted(producer, consumer)) {
    return false;
  }
  if (count < target) {
    OpenStreams::commit_all();
  }
  while (count < target) {
    std::this_thread::yield();
  }
  return true;
}

} // namespace mlx::core::host_sync

int mlx_force_distributed_gpu() {
  return mlx::core::host_sync::gpu_may_wait().load(std::memory_order_relaxed);
}

void mlx_set_force_distributed_gpu(int enabled) {
  mlx::core::host_sync::gpu_may_wait().store(
      enabled != 0, std::memory_order_relaxed);
}
