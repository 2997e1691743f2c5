// Runs a patched MLX (its evaluation, scheduler, ring, and Metal encoder, events and fences as they are) on
// the fake GPU, with the switch on and off. Each scenario says what it saw; the exit code says whether all
// was as it must be. A scenario that hangs is reported after a minute.

#include <arpa/inet.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <random>
#include <thread>

#include "gpu.h"
#include "mlx/allocator.h"
#include "mlx/array.h"
#include "mlx/backend/cpu/encoder.h"
#include "mlx/backend/metal/device.h"
#include "mlx/distributed/distributed.h"
#include "mlx/distributed/ops.h"
#include "mlx/host_sync.h"
#include "mlx/primitives.h"
#include "mlx/transforms.h"

namespace mx = mlx::core;

namespace {

int failures = 0;
std::atomic<const char*> running{""};

void expect(bool holds, const char* what) {
  std::printf("  %s: %s\n", holds ? "ok" : "FAILED", what);
  failures += !holds;
}

void sleep_s(double seconds) {
  std::this_thread::sleep_for(std::chrono::duration<double>(seconds));
}

/* Takes `seconds`, then yields the sum of its inputs plus `bias`, or fails. On a CPU stream it stands for a
 * receive, on a GPU stream for a kernel. */
class Work : public mx::Primitive {
 public:
  Work(mx::Stream stream, double seconds, float bias, bool fails)
      : Primitive(stream), seconds_(seconds), bias_(bias), fails_(fails) {}

  void eval_cpu(const std::vector<mx::array>& inputs, std::vector<mx::array>& outputs) override {
    mx::cpu::get_command_encoder(stream()).dispatch(job(inputs, outputs[0]));
  }

  void eval_gpu(const std::vector<mx::array>& inputs, std::vector<mx::array>& outputs) override {
    auto work = job(inputs, outputs[0]);
    auto& encoder = mx::metal::get_command_encoder(stream());
    encoder.set_compute_pipeline_state(fake_metal::kernel(work));
    int index = 0;
    for (auto& input : inputs) {
      encoder.set_input_array(input, index++);
    }
    encoder.set_output_array(outputs[0], index);
    encoder.dispatch_threads(MTL::Size(1, 1, 1), MTL::Size(1, 1, 1));
  }

  const char* name() const override {
    return "Work";
  }

 private:
  std::function<void()> job(const std::vector<mx::array>& inputs, mx::array& output) {
    output.set_data(mx::allocator::malloc(output.nbytes()));
    std::vector<const float*> from;
    for (auto& input : inputs) {
      from.push_back(input.data<float>());
    }
    return [from, to = output.data<float>(), seconds = seconds_, bias = bias_, fails = fails_] {
      if (seconds > 0) {
        sleep_s(seconds);
      }
      if (fails) {
        throw std::runtime_error("connection to a peer was lost");
      }
      *to = bias;
      for (auto* value : from) {
        *to += *value;
      }
    };
  }

  double seconds_;
  float bias_;
  bool fails_;
};

mx::array work(
    mx::Stream stream,
    std::vector<mx::array> inputs,
    double seconds = 0,
    float bias = 1,
    bool fails = false) {
  return mx::array(
      mx::Shape{1}, mx::float32, std::make_shared<Work>(stream, seconds, bias, fails), std::move(inputs));
}

/* Shared by the scenarios: two streams of either kind. */
struct Streams {
  mx::Stream cpu = mx::new_stream(mx::Device::cpu);
  mx::Stream cpu2 = mx::new_stream(mx::Device::cpu);
  mx::Stream gpu = mx::new_stream(mx::Device::gpu);
  mx::Stream gpu2 = mx::new_stream(mx::Device::gpu);
};

void begin(const char* name, bool gpu_may_wait) {
  std::printf("%s, MLX_FORCE_DISTRIBUTED_GPU=%d\n", name, gpu_may_wait);
  std::fflush(stdout);
  running = name;
  mlx_set_force_distributed_gpu(gpu_may_wait);
  fake_metal::set_watchdog_s(0);
  fake_metal::reset();
}

void expect_wait_of(bool gpu_may_wait, double seconds) {
  auto seen = fake_metal::record();
  std::printf("  the GPU waited %d times, %.3f s at the longest\n", seen.waits, seen.longest_wait_s);
  if (gpu_may_wait) {
    expect(seen.longest_wait_s > seconds, "a command buffer waited for the receive");
  } else {
    expect(seen.waits == 0, "no command buffer waited");
  }
}

void receive_feeds_gpu(Streams& s, bool gpu_may_wait) {
  begin("a receive feeds the GPU within one evaluation", gpu_may_wait);
  auto received = work(s.cpu, {}, 0.3);
  auto out = work(s.gpu, {work(s.gpu, {received}), received});
  mx::eval({out});
  expect(out.item<float>() == 4, "the value is right");
  expect_wait_of(gpu_may_wait, 0.2);
}

void async_receive_feeds_gpu(Streams& s, bool gpu_may_wait) {
  begin("a receive of an earlier async_eval feeds the GPU", gpu_may_wait);
  auto received = work(s.cpu, {}, 0.3);
  mx::async_eval({received});
  auto out = work(s.gpu, {received});
  mx::async_eval({out});
  expect(out.item<float>() == 2, "the value is right");
  expect_wait_of(gpu_may_wait, 0.2);
}

void send_waits_for_uncommitted_work(Streams& s, bool gpu_may_wait) {
  begin("a receive that can only come after a send of uncommitted GPU work", gpu_may_wait);
  auto sent = work(s.cpu, {work(s.gpu, {}), work(s.gpu2, {})}, 0.1);
  auto out = work(s.cpu, {sent, work(s.gpu2, {work(s.cpu, {sent})})});
  mx::eval({out});
  expect(out.item<float>() == 9, "the value is right");
  expect_wait_of(gpu_may_wait, 0.05);
}

/* What eval of `outputs` threw, or nothing. */
std::string error_of_eval(std::vector<mx::array> outputs) {
  try {
    mx::eval(std::move(outputs));
  } catch (const std::exception& error) {
    return error.what();
  }
  return "";
}

/* Where a command buffer waited, MLX learns of the error only when the buffer is over: it may report it late,
 * or twice. Where the host waited, it reports it right there, once. */
void failed_receive(Streams& s, bool gpu_may_wait) {
  begin("a receive that fails", gpu_may_wait);
  std::string lost = "connection to a peer was lost";
  auto received = work(s.cpu, {work(s.gpu, {})}, 0.05, 1, true);
  bool at_once = error_of_eval({work(s.gpu, {received})}) == lost;
  bool again = error_of_eval({work(s.gpu, {work(s.cpu, {})})}) == lost;
  expect(at_once || (gpu_may_wait && again), "the error reaches the caller of eval");
  expect(!again || gpu_may_wait, "it is reported once");
  auto out = work(s.gpu, {work(s.cpu, {work(s.gpu, {})})});
  expect(error_of_eval({out}).empty() && out.item<float>() == 3, "the same streams work again");
}

void watchdog(Streams& s, bool gpu_may_wait) {
  begin("a receive slower than the GPU watchdog", gpu_may_wait);
  fake_metal::set_watchdog_s(0.2);
  auto error = error_of_eval({work(s.gpu, {work(s.cpu, {}, 0.6)})});
  bool killed = error.find("kIOGPUCommandBufferCallbackErrorTimeout") != std::string::npos;
  expect(killed == gpu_may_wait, gpu_may_wait ? "the watchdog kills it" : "the watchdog has nothing to kill");
}

/* Random graphs over all four streams, evaluated in random portions while another thread turns the switch. */
void random_graphs(int seed, int graphs) {
  std::mt19937 random(seed);
  auto below = [&](int n) { return static_cast<int>(random() % n); };
  Streams s;
  mx::Stream streams[] = {s.cpu, s.cpu2, s.gpu, s.gpu2};
  int wrong = 0;
  for (int graph = 0; graph < graphs; ++graph) {
    std::vector<mx::array> nodes;
    std::vector<float> values;
    for (int node = 0; node < 24; ++node) {
      std::vector<mx::array> inputs;
      float value = 1;
      for (int input = node ? 1 + below(2) : 0; input > 0; --input) {
        int from = std::max(0, node - 1 - below(6));
        inputs.push_back(nodes[from]);
        value += values[from];
      }
      nodes.push_back(work(streams[below(4)], std::move(inputs), below(8) ? 0 : 0.0005));
      values.push_back(value);
      if (below(6) == 0) {
        below(2) ? mx::async_eval({nodes.back()}) : mx::eval({nodes.back()});
      }
    }
    mx::eval(nodes);
    for (size_t node = 0; node < nodes.size(); ++node) {
      wrong += nodes[node].item<float>() != values[node];
    }
  }
  expect(wrong == 0, "every value of every random graph is right");
}

void turned_while_threads_evaluate() {
  begin("the switch is turned while three threads evaluate random graphs", true);
  std::atomic<bool> over{false};
  std::thread turner([&] {
    while (!over) {
      mlx_set_force_distributed_gpu(!mlx_force_distributed_gpu());
      sleep_s(0.0003);
    }
  });
  std::vector<std::thread> evaluators;
  for (int seed = 1; seed <= 3; ++seed) {
    evaluators.emplace_back([seed] { random_graphs(seed, 60); });
  }
  for (auto& evaluator : evaluators) {
    evaluator.join();
  }
  over = true;
  turner.join();
}

/* Two ranks of a real ring over loopback: rank 1's kernels are slow, so rank 0's next kernel has to wait. */
void ring_rank(int rank, bool gpu_may_wait) {
  begin(rank ? "ring, rank 1" : "ring, rank 0", gpu_may_wait);
  Streams s;
  auto group = mx::distributed::init(true, "ring");
  mx::array token = work(s.gpu, {});
  for (int step = 0; step < 4; ++step) {
    if (rank == 0) {
      mx::async_eval({mx::distributed::send(work(s.gpu, {token}), 1, group)});
      token = work(s.gpu, {mx::distributed::recv({1}, mx::float32, 1, group)});
    } else {
      auto hidden = mx::distributed::recv({1}, mx::float32, 0, group);
      token = mx::distributed::send(work(s.gpu, {hidden}, 0.15), 0, group);
    }
    mx::eval({token});
  }
  expect(token.item<float>() == (rank ? 12 : 13), "the value after four steps is right");
  if (rank == 0) {
    expect_wait_of(gpu_may_wait, 0.1);
  }
}

int free_port() {
  int listener = socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t size = sizeof(address);
  if (bind(listener, reinterpret_cast<sockaddr*>(&address), size) ||
      getsockname(listener, reinterpret_cast<sockaddr*>(&address), &size)) {
    std::perror("no free port on loopback");
    std::exit(1);
  }
  close(listener);
  return ntohs(address.sin_port);
}

void watch_for_a_hang() {
  std::thread([] {
    sleep_s(60);
    std::fprintf(stderr, "FAILED: hangs in: %s\n", running.load());
    std::_Exit(1);
  }).detach();
}

/* Before anything of MLX runs in this process: each rank is a process of its own. */
void ring(bool gpu_may_wait) {
  std::string hosts = "/tmp/fake-metal-ring-" + std::to_string(getpid()) + ".json";
  std::ofstream(hosts) << "[[\"127.0.0.1:" << free_port() << "\"], [\"127.0.0.1:" << free_port() << "\"]]";
  setenv("MLX_HOSTFILE", hosts.c_str(), 1);
  std::fflush(stdout);
  for (int rank = 0; rank < 2; ++rank) {
    if (fork() == 0) {
      setenv("MLX_RANK", std::to_string(rank).c_str(), 1);
      watch_for_a_hang();
      ring_rank(rank, gpu_may_wait);
      std::fflush(stdout);
      _exit(failures != 0);
    }
  }
  for (int rank = 0; rank < 2; ++rank) {
    int status = 0;
    wait(&status);
    failures += status != 0;
  }
  unlink(hosts.c_str());
}

} // namespace

int main() {
  setenv("MLX_METAL_GPU_ARCH", "applegpu_g16s", 1);
  for (bool gpu_may_wait : {true, false}) {
    ring(gpu_may_wait);
  }
  watch_for_a_hang();
  Streams s;
  for (bool gpu_may_wait : {true, false}) {
    receive_feeds_gpu(s, gpu_may_wait);
    async_receive_feeds_gpu(s, gpu_may_wait);
    send_waits_for_uncommitted_work(s, gpu_may_wait);
    failed_receive(s, gpu_may_wait);
    watchdog(s, gpu_may_wait);
  }
  turned_while_threads_evaluate();
  std::printf(failures ? "%d checks FAILED\n" : "all checks hold\n", failures);
  std::fflush(stdout);
  std::_Exit(failures != 0);
}
