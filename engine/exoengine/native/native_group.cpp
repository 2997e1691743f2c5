// A distributed group of our own behind `mx.distributed.Group`: MLX's operations and mlx-lm use it like any other.
//
// MLX's operations call virtual functions of `detail::GroupImpl`, whose header its wheels ship. Ours enqueue a task
// on a CPU stream, as MLX's own groups do. A task never throws and never stays pending: after an abort, a fault or a
// deadline it leaves zeros and is counted. So whoever evaluates a graph reads `failed` afterwards, before anything
// of the result leaves the rank; on a GPU too this is exact, where an exception would come late.
//
// A task holds the group by a shared pointer: an evaluated array lets its primitive go while the task still runs.

#include <nanobind/nanobind.h>
#include <nanobind/stl/map.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <array>
#include <memory>
#include <optional>

#include "mlx/allocator.h"
#include "mlx/backend/cpu/encoder.h"
#include "mlx/distributed/distributed.h"
#include "mlx/distributed/distributed_impl.h"

#include "mesh.h"
#include "reduce.h"

namespace nb = nanobind;
namespace mx = mlx::core;

namespace exod {

// From this size on a reduction goes by reduce-scatter and all-gather instead of directly: with n ranks each sends
// 2 (n - 1) / n of the message instead of n - 1 times all of it, and adds only its own share, for one more round
// trip: 0.1 ms on a cable, which 1 MiB takes many times over on 10 Gbit/s. What one decoded token needs stays below.
constexpr size_t SCATTER_BYTES = 1024 * 1024;

enum Kind { ALL_SUM, ALL_GATHER, ALL_MAX, ALL_MIN, SUM_SCATTER, SEND, RECV, SPLIT, KINDS };
constexpr std::array<const char*, KINDS> NAMES = {"all_sum", "all_gather", "all_max", "all_min",
                                                  "sum_scatter", "send", "recv", "split"};

struct Tally {  // of one kind of operation; `waited` is its time on the connections, the transfer included
  std::atomic<uint64_t> count{0}, failed{0}, waited_ns{0}, longest_ns{0}, last_ns{0};
};

// What a group and those split from it share: one set of connections, one count of failures.
struct Shared {
  Shared(const std::map<int, std::vector<int>>& sockets, int spin_us, double deadline_s, bool stubborn)
      : mesh(sockets, spin_us, deadline_s, stubborn) {}
  Mesh mesh;
  std::array<Tally, KINDS> tallies;
  std::atomic<uint64_t> failed{0};
};

class NativeGroup : public mx::distributed::detail::GroupImpl, public std::enable_shared_from_this<NativeGroup> {
 public:
  // `members` are the mesh's numbers of this group's ranks, in rank order.
  NativeGroup(std::shared_ptr<Shared> shared, std::vector<int> members, int rank)
      : shared_(std::move(shared)), members_(std::move(members)), rank_(rank) {}

  mx::Stream communication_stream(mx::StreamOrDevice s) override { return mx::to_stream(s, mx::Device::cpu); }
  int rank() override { return rank_; }
  int size() override { return static_cast<int>(members_.size()); }

  void all_sum(const mx::array& in, mx::array& out, mx::Stream s) override {
    all_reduce(ALL_SUM, Reduction::sum, in, out, s);
  }
  void all_max(const mx::array& in, mx::array& out, mx::Stream s) override {
    all_reduce(ALL_MAX, Reduction::max, in, out, s);
  }
  void all_min(const mx::array& in, mx::array& out, mx::Stream s) override {
    all_reduce(ALL_MIN, Reduction::min, in, out, s);
  }

  void all_gather(const mx::array& in, mx::array& out, mx::Stream s) override {
    enqueue(ALL_GATHER, in, out, s, [this, n = in.nbytes()](const char* in, char* out) { return gather(in, out, n); });
  }

  void sum_scatter(const mx::array& in, mx::array& out, mx::Stream s) override {
    enqueue(SUM_SCATTER, in, out, s, [this, n = out.size(), type = in.dtype()](const char* in, char* out) {
      std::vector<size_t> ends(members_.size() + 1);
      for (size_t r = 0; r < ends.size(); r++) ends[r] = r * n;
      return scatter(Reduction::sum, type, in, out, ends);
    });
  }

  void send(const mx::array& in, int dst, mx::Stream s) override {
    enqueue(SEND, in, std::nullopt, s, [this, n = in.nbytes(), dst](const char* in, char*) {
      return shared_->mesh.move({{members_[dst], in, n, true, nullptr, 0, false}});
    });
  }

  void recv(mx::array& out, int src, mx::Stream s) override {
    out.set_data(mx::allocator::malloc(out.nbytes()));
    enqueue(RECV, std::nullopt, out, s, [this, n = out.nbytes(), src](const char*, char* out) {
      return shared_->mesh.move({{members_[src], nullptr, 0, false, out, n, true}});
    });
  }

  // The ranks that give the same color, by key and then rank. Where the mesh is over, a group of this rank alone:
  // like every operation it is counted as failed, and throws nothing.
  std::shared_ptr<GroupImpl> split(int color, int key) override {
    int64_t mine[3] = {color, key < 0 ? rank_ : key, rank_};
    std::vector<int64_t> all(3 * members_.size());
    bool done = run(SPLIT, [&] {
      return gather(reinterpret_cast<char*>(mine), reinterpret_cast<char*>(all.data()), sizeof(mine));
    });
    std::vector<std::array<int64_t, 2>> chosen;
    for (size_t r = 0; done && r < members_.size(); r++)
      if (all[3 * r] == color) chosen.push_back({all[3 * r + 1], all[3 * r + 2]});
    if (!done) chosen.push_back({0, rank_});
    std::sort(chosen.begin(), chosen.end());
    std::vector<int> members;
    int rank = 0;
    for (const auto& [_, old] : chosen) {
      if (old == rank_) rank = static_cast<int>(members.size());
      members.push_back(members_[old]);
    }
    return std::make_shared<NativeGroup>(shared_, members, rank);
  }

 private:
  // Does the work of one operation: in its turn, measured, and counted where it fails. Never throws.
  template <typename Work>
  bool run(Kind kind, Work&& work) noexcept {
    Tally& tally = shared_->tallies[kind];
    bool done = false;
    try {
      std::lock_guard guard(shared_->mesh.turn());
      auto begun = Clock::now();
      done = !shared_->mesh.is_over() && work();
      uint64_t ns = std::chrono::duration_cast<std::chrono::nanoseconds>(Clock::now() - begun).count();
      tally.last_ns = ns;
      tally.waited_ns += ns;
      if (ns > tally.longest_ns) tally.longest_ns = ns;
    } catch (...) {  // no memory
      shared_->mesh.abort();
    }
    tally.count++;
    if (!done) tally.failed++, shared_->failed++;
    return done;
  }

  // Where the data lies is asked in the task, not before it. An input may be computed by a GPU still: the stream waits
  // for it in front of the task, and on CUDA `data` copies what it finds from the GPU's memory into the host's. Weak
  // copies, because MLX keeps an operation's buffers until its stream has come past it.
  template <typename Work>
  void enqueue(Kind kind, std::optional<mx::array> in, std::optional<mx::array> out, mx::Stream s, Work work) {
    auto& encoder = mx::cpu::get_command_encoder(s);
    if (in) encoder.set_input_array(*in), in = mx::array::unsafe_weak_copy(*in);
    if (out) encoder.set_output_array(*out), out = mx::array::unsafe_weak_copy(*out);
    encoder.dispatch([self = shared_from_this(), kind, in, out, work = std::move(work)]() mutable {
      const char* from = in ? in->data<char>() : nullptr;
      char* to = out ? out->data<char>() : nullptr;
      if (!self->run(kind, [&] { return work(from, to); }) && to) std::memset(to, 0, out->nbytes());
    });
  }

  void all_reduce(Kind kind, Reduction how, const mx::array& in, mx::array& out, mx::Stream s) {
    enqueue(kind, in, out, s, [this, how, n = in.size(), type = in.dtype()](const char* in, char* out) {
      if (n * type.size() < SCATTER_BYTES) return direct(how, type, in, out, n);
      std::vector<size_t> ends(members_.size() + 1);
      for (size_t r = 0; r < ends.size(); r++) ends[r] = r * n / members_.size();
      char* mine = out + ends[rank_] * type.size();
      return scatter(how, type, in, mine, ends) && gather_shares(out, ends, type.size());
    });
  }

  // Every rank sends all to all, and reduces by itself.
  bool direct(Reduction how, mx::Dtype type, const char* in, char* out, size_t n) {
    size_t bytes = n * type.size();
    char* theirs = scratch(bytes * members_.size());
    std::vector<const char*> parts(members_.size(), in);
    std::vector<Mesh::Transfer> transfers;
    for (int r = 0; r < size(); r++) {
      if (r == rank_) continue;
      parts[r] = theirs + r * bytes;
      transfers.push_back({members_[r], in, bytes, true, theirs + r * bytes, bytes, true});
    }
    if (!shared_->mesh.move(transfers)) return false;
    reduce(how, type, parts, out, n);
    return true;
  }

  // Rank r reduces the elements [ends[r], ends[r + 1]) of all ranks into `mine`.
  bool scatter(Reduction how, mx::Dtype type, const char* in, char* mine, const std::vector<size_t>& ends) {
    size_t width = type.size(), n = ends[rank_ + 1] - ends[rank_], bytes = n * width;
    char* theirs = scratch(bytes * members_.size());
    std::vector<const char*> parts(members_.size(), in + ends[rank_] * width);
    std::vector<Mesh::Transfer> transfers;
    for (int r = 0; r < size(); r++) {
      if (r == rank_) continue;
      parts[r] = theirs + r * bytes;
      transfers.push_back({members_[r], in + ends[r] * width, (ends[r + 1] - ends[r]) * width, true,
                           theirs + r * bytes, bytes, true});
    }
    if (!shared_->mesh.move(transfers)) return false;
    reduce(how, type, parts, mine, n);
    return true;
  }

  // Every rank's share of `out` comes from that rank.
  bool gather_shares(char* out, const std::vector<size_t>& ends, size_t width) {
    std::vector<Mesh::Transfer> transfers;
    for (int r = 0; r < size(); r++) {
      if (r == rank_) continue;
      transfers.push_back({members_[r], out + ends[rank_] * width, (ends[rank_ + 1] - ends[rank_]) * width, true,
                           out + ends[r] * width, (ends[r + 1] - ends[r]) * width, true});
    }
    return shared_->mesh.move(transfers);
  }

  bool gather(const char* in, char* out, size_t bytes) {
    std::vector<Mesh::Transfer> transfers;
    for (int r = 0; r < size(); r++)
      if (r != rank_) transfers.push_back({members_[r], in, bytes, true, out + r * bytes, bytes, true});
    std::memmove(out + rank_ * bytes, in, bytes);
    return shared_->mesh.move(transfers);
  }

  // Memory for what the others send; used by one operation at a time, and kept.
  char* scratch(size_t bytes) {
    if (scratch_.size() < bytes) scratch_.resize(bytes);
    return scratch_.data();
  }

  std::shared_ptr<Shared> shared_;
  std::vector<int> members_;
  int rank_;
  std::vector<char> scratch_;
};

}  // namespace exod

// What Python keeps beside the `mx.distributed.Group` that it hands to MLX.
struct Control {
  std::shared_ptr<exod::Shared> shared;
  int rank;
};

NB_MODULE(_native_group, m) {
  nb::module_::import_("mlx.core");  // the type of `mx.distributed.Group` is MLX's
  nb::class_<Control>(m, "Control")
      .def("abort", [](Control& c) { c.shared->mesh.abort(); }, nb::call_guard<nb::gil_scoped_release>())
      .def("allow", [](Control& c, double seconds) { c.shared->mesh.allow(seconds); })
      .def("wait", [](Control& c, double seconds) { c.shared->mesh.wait(seconds); })
      .def("pair",  // the group of this rank and one more, over the same connections; nothing is said to make it
           [](Control& c, int peer) {
             std::vector<int> members{std::min(c.rank, peer), std::max(c.rank, peer)};
             return mx::distributed::Group(std::make_shared<exod::NativeGroup>(c.shared, members, c.rank > peer));
           })
      .def("among",  // the group of some ranks, over the same connections, in this order; nothing is said to make it
           [](Control& c, const std::vector<int>& members) {
             int rank = static_cast<int>(std::find(members.begin(), members.end(), c.rank) - members.begin());
             return mx::distributed::Group(std::make_shared<exod::NativeGroup>(c.shared, members, rank));
           })
      .def_prop_ro("failed", [](Control& c) { return c.shared->failed.load(); })
      .def_prop_ro("is_over", [](Control& c) { return c.shared->mesh.is_over(); })
      .def_prop_ro("waits_awake", [](Control& c) { return c.shared->mesh.waits_awake(); })
      .def_prop_ro("reason", [](Control& c) { return c.shared->mesh.reason(); })
      .def("carried", [](Control& c) { return c.shared->mesh.carried(); })
      .def_prop_ro("waited_ns",  // by what a GPU waits for: not by sends, which wait for the GPU
                   [](Control& c) {
                     uint64_t total = 0;
                     for (int k = 0; k < exod::KINDS; k++)
                       if (k != exod::SEND && k != exod::SPLIT) total += c.shared->tallies[k].waited_ns;
                     return total;
                   })
      .def("tally", [](Control& c) {  // per operation: count, failed, waited_ns, longest_ns, last_ns
        nb::dict result;
        for (int k = 0; k < exod::KINDS; k++) {
          auto& t = c.shared->tallies[k];
          result[exod::NAMES[k]] =
              nb::make_tuple(t.count.load(), t.failed.load(), t.waited_ns.load(), t.longest_ns.load(), t.last_ns.load());
        }
        return result;
      });
  m.def(
      "make",
      [](int rank, int size, const std::map<int, std::vector<int>>& sockets, int spin_us, double deadline_s,
         bool stubborn) {
        auto shared = std::make_shared<exod::Shared>(sockets, spin_us, deadline_s, stubborn);
        std::vector<int> members(size);
        for (int r = 0; r < size; r++) members[r] = r;
        auto group = std::make_shared<exod::NativeGroup>(shared, members, rank);
        return nb::make_tuple(mx::distributed::Group(group), Control{shared, rank});
      },
      nb::arg("rank"), nb::arg("size"), nb::arg("sockets"), nb::arg("spin_us"), nb::arg("deadline_s"),
      nb::arg("stubborn") = false);
}
