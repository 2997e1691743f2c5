// A model of a Metal GPU for tests: command queues are threads, command buffers are lists of operations,
// shared events are counters, and a watchdog kills a command buffer that waits too long. What it does not
// model: memory, scheduling within a command buffer, hazards between queues, and speed.

#pragma once

#include <functional>

#include <Metal/Metal.hpp>

namespace fake_metal {

/* What has happened since the last `reset`. A wait counts where the event was not yet signalled when the GPU
 * came to it. */
struct Record {
  int command_buffers{0};
  int waits{0};
  double longest_wait_s{0};
  int timeouts{0};
};

Record record();
void reset();

/* A command buffer that waits longer than this fails as macOS makes it fail. 0: it may wait for ever. */
void set_watchdog_s(double limit);

/* A pipeline state that runs `work` on the thread of the command queue. */
MTL::ComputePipelineState* kernel(std::function<void()> work);

} // namespace fake_metal
