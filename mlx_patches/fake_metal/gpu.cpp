// The classes and functions of Metal that MLX's encoder, events and fences call.

#include "gpu.h"

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <deque>
#include <mutex>
#include <thread>
#include <vector>

#include <Block.h>

#include "objc.h"

namespace fake_metal {

namespace {

std::mutex mutex;
Record so_far;
double watchdog_s = 0;

struct String : Object {
  explicit String(const char* text) : Object{define("NSString")}, text(text) {}

  std::string text;
};

struct Event : Object {
  Event() : Object{define("FakeEvent")} {}

  std::mutex mutex;
  std::condition_variable changed;
  uint64_t value{0};

  bool reached(uint64_t target) {
    std::lock_guard lock(mutex);
    return value >= target;
  }

  /* Whether it was signalled before `limit_s` had passed; 0 is no limit. */
  bool wait(uint64_t target, double limit_s) {
    std::unique_lock lock(mutex);
    auto done = [&] { return value >= target; };
    if (limit_s > 0) {
      return changed.wait_for(lock, std::chrono::duration<double>(limit_s), done);
    }
    changed.wait(lock, done);
    return true;
  }

  void signal(uint64_t to) {
    {
      std::lock_guard lock(mutex);
      value = to;
    }
    changed.notify_all();
  }
};

/* The GPU comes to a wait in a command buffer. False: the watchdog has killed it. */
bool wait_on_gpu(Event* event, uint64_t target) {
  if (event->reached(target)) {
    return true;
  }
  double limit_s;
  {
    std::lock_guard lock(mutex);
    limit_s = watchdog_s;
  }
  auto start = std::chrono::steady_clock::now();
  bool in_time = event->wait(target, limit_s);
  std::chrono::duration<double> waited = std::chrono::steady_clock::now() - start;
  std::lock_guard lock(mutex);
  so_far.waits++;
  so_far.longest_wait_s = std::max(so_far.longest_wait_s, waited.count());
  so_far.timeouts += !in_time;
  return in_time;
}

using Handler = void (^)(void*);

struct Queue;

struct Buffer : Object {
  explicit Buffer(Queue* queue) : Object{define("FakeCommandBuffer")}, queue(queue) {}

  Queue* queue;
  std::vector<std::function<bool()>> operations; // false: killed
  std::vector<Handler> handlers;
  std::atomic<MTL::CommandBufferStatus> status{MTL::CommandBufferStatusNotEnqueued};
  Event completed;

  void run() {
    bool killed = !std::all_of(
        operations.begin(), operations.end(), [](auto& operation) { return operation(); });
    status = killed ? MTL::CommandBufferStatusError : MTL::CommandBufferStatusCompleted;
    for (auto handler : handlers) {
      handler(this);
      Block_release(handler);
    }
    completed.signal(1);
  }
};

struct Queue : Object {
  Queue() : Object{define("FakeCommandQueue")} {
    std::thread([this] { run(); }).detach();
  }

  void commit(Buffer* buffer) {
    {
      std::lock_guard lock(mutex);
      committed.push_back(buffer);
    }
    changed.notify_all();
  }

 private:
  std::mutex mutex;
  std::condition_variable changed;
  std::deque<Buffer*> committed;

  void run() {
    while (true) {
      Buffer* next;
      {
        std::unique_lock lock(mutex);
        changed.wait(lock, [&] { return !committed.empty(); });
        next = committed.front();
        committed.pop_front();
      }
      next->run();
    }
  }
};

struct Pipeline : Object {
  explicit Pipeline(std::function<void()> work)
      : Object{define("FakePipeline")}, work(std::move(work)) {}

  std::function<void()> work;
};

struct Encoder : Object {
  explicit Encoder(Buffer* buffer) : Object{define("FakeEncoder")}, buffer(buffer) {}

  Buffer* buffer;
  Pipeline* pipeline{nullptr};
};

// The methods, by the names that metal-cpp sends

String* make_string(Object*, SEL, const char* text, NS::UInteger) {
  return new String(text);
}

const char* utf8(String* self, SEL) {
  return self->text.c_str();
}

String* timeout_text(Object*, SEL) {
  return new String(
      "Caused GPU Timeout Error (00000002:kIOGPUCommandBufferCallbackErrorTimeout)");
}

bool wait_on_host(Event* self, SEL, uint64_t target, uint64_t) {
  return self->wait(target, 0);
}

void set_signaled(Event* self, SEL, uint64_t value) {
  self->signal(value);
}

uint64_t signaled(Event* self, SEL) {
  std::lock_guard lock(self->mutex);
  return self->value;
}

void encode_wait(Buffer* self, SEL, Event* event, uint64_t value) {
  self->operations.push_back([=] { return wait_on_gpu(event, value); });
}

void encode_signal(Buffer* self, SEL, Event* event, uint64_t value) {
  self->operations.push_back([=] {
    event->signal(value);
    return true;
  });
}

void add_handler(Buffer* self, SEL, Handler handler) {
  self->handlers.push_back(Block_copy(handler));
}

void commit(Buffer* self, SEL) {
  {
    std::lock_guard lock(mutex);
    so_far.command_buffers++;
  }
  self->queue->commit(self);
}

void wait_until_completed(Buffer* self, SEL) {
  self->completed.wait(1, 0);
}

MTL::CommandBufferStatus status_of(Buffer* self, SEL) {
  return self->status;
}

Object* error_of(Buffer*, SEL) {
  return new Object{define("NSError")};
}

Encoder* make_encoder(Buffer* self, SEL, MTL::DispatchType) {
  return new Encoder(self);
}

void set_pipeline(Encoder* self, SEL, Pipeline* pipeline) {
  self->pipeline = pipeline;
}

void dispatch(Encoder* self, SEL, MTL::Size, MTL::Size) {
  self->buffer->operations.push_back([pipeline = self->pipeline] {
    pipeline->work();
    return true;
  });
}

Buffer* make_buffer(Queue* self, SEL) {
  return new Buffer(self);
}

Queue* make_queue(Object*, SEL) {
  return new Queue;
}

Event* make_event(Object*, SEL) {
  return new Event;
}

Object* make_plain(Object*, SEL) {
  return new Object{define("FakeObject")};
}

bool no(Object*, SEL) {
  return false;
}

void ignore(Object*, SEL) {}

[[maybe_unused]] const bool defined = [] {
  define("NSString", {{"UTF8String", method(utf8)}, {"stringWithCString:encoding:", method(make_string)}});
  define("NSError", {{"localizedDescription", method(timeout_text)}});
  define(
      "FakeEvent",
      {{"waitUntilSignaledValue:timeoutMS:", method(wait_on_host)},
       {"setSignaledValue:", method(set_signaled)},
       {"signaledValue", method(signaled)}});
  define(
      "FakeCommandBuffer",
      {{"encodeWaitForEvent:value:", method(encode_wait)},
       {"encodeSignalEvent:value:", method(encode_signal)},
       {"addCompletedHandler:", method(add_handler)},
       {"commit", method(commit)},
       {"waitUntilCompleted", method(wait_until_completed)},
       {"status", method(status_of)},
       {"error", method(error_of)},
       {"computeCommandEncoderWithDispatchType:", method(make_encoder)}});
  define(
      "FakeEncoder",
      {{"setComputePipelineState:", method(set_pipeline)},
       {"dispatchThreads:threadsPerThreadgroup:", method(dispatch)},
       {"setBuffer:offset:atIndex:", method(ignore)},
       {"memoryBarrierWithScope:", method(ignore)},
       {"waitForFence:", method(ignore)},
       {"updateFence:", method(ignore)},
       {"endEncoding", method(ignore)}});
  define("FakeCommandQueue", {{"commandBufferWithUnretainedReferences", method(make_buffer)}});
  define(
      "FakeDevice",
      {{"newCommandQueue", method(make_queue)},
       {"newSharedEvent", method(make_event)},
       {"newFence", method(make_plain)},
       {"newLibraryWithFile:error:", method(make_plain)},
       {"supportsFamily:", method(no)}});
  return true;
}();

} // namespace

Record record() {
  std::lock_guard lock(mutex);
  return so_far;
}

void reset() {
  std::lock_guard lock(mutex);
  so_far = {};
}

void set_watchdog_s(double limit) {
  std::lock_guard lock(mutex);
  watchdog_s = limit;
}

MTL::ComputePipelineState* kernel(std::function<void()> work) {
  return reinterpret_cast<MTL::ComputePipelineState*>(new Pipeline(std::move(work)));
}

} // namespace fake_metal

extern "C" {

void* MTLCopyAllDevices() {
  return nullptr;
}

void* MTLCreateSystemDefaultDevice() {
  static auto* device = new fake_metal::Object{fake_metal::define("FakeDevice")};
  return device;
}

} // extern "C"
