// The connections of one rank to its peers, and how bytes move over them.
//
// A message has a sequence number per direction and pair of ranks. It is cut into blocks, each with a header; a
// pair's sockets take blocks as they have room, so that two cables carry together, the faster one more. A message
// of one block always takes the first socket, and costs one system call at each end.
//
// `move` never throws, and never waits longer than the deadline for a byte, nor in all longer than `allow` said last:
// that is for a graph of many operations. Whatever goes wrong in it ends the whole mesh: the streams are then out of
// step, and every later message ends at once. `abort` does the same from any thread.
//
// A stubborn mesh, for tests, does what MLX's JACCL does instead: it cannot be aborted, knows no deadline, and where
// a peer is gone it waits for ever.
#pragma once

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sched.h>
#include <sys/uio.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <cstdint>
#include <cstring>
#include <deque>
#include <map>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "platform.h"

namespace exod {

using Clock = std::chrono::steady_clock;

// Two cables share a message from this size on. Each block costs a header of 16 bytes and two system calls: nothing
// beside the 26 microseconds that 256 KiB take on a wire of 80 Gbit/s.
constexpr size_t BLOCK_BYTES = 256 * 1024;

constexpr double NEVER_S = 1e9;  // 31 years
constexpr std::chrono::microseconds SHORT_SPIN{50};  // of a step of milliseconds it is little

struct Header {  // in the byte order of the machine: all Macs have the same
  uint64_t bytes = 0;     // of the whole message
  uint32_t sequence = 0;
  uint32_t block = 0;
};
static_assert(sizeof(Header) == 16);

class Mesh {
 public:
  // What one operation moves to and from one peer. An empty message is sent too: it keeps the ranks in step.
  struct Transfer {
    int peer;
    const char* out;
    size_t out_bytes;
    bool sends;
    char* in;
    size_t in_bytes;
    bool receives;
  };

  // `sockets` maps each peer to the descriptors of its connections, in the same order at both ends. They are
  // copied: the caller may close its own.
  Mesh(const std::map<int, std::vector<int>>& sockets, int spin_us, double deadline_s, bool stubborn)
      : spin_(std::chrono::microseconds(spin_us)), stubborn_(stubborn) {
    deadline_ns_ = nanoseconds(stubborn ? NEVER_S : deadline_s);
    if (!own_pipe(wake_)) fail("no more descriptors");
    for (const auto& [peer, descriptors] : sockets)
      for (int fd : descriptors) {
        int copy = own_copy(fd);
        if (copy < 0) {
          fail("a connection was closed before the group was made");
          continue;
        }
        int on = 1;
        ::setsockopt(copy, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));  // a Unix socket has no such option
        carried_[peer].emplace_back(0);
        peers_[peer].lanes.push_back(Lane{copy, &carried_[peer].back()});
      }
  }

  ~Mesh() {
    for (auto& [_, peer] : peers_)
      for (auto& lane : peer.lanes) ::close(lane.fd);
    for (int fd : wake_)
      if (fd >= 0) ::close(fd);
  }

  Mesh(const Mesh&) = delete;
  Mesh& operator=(const Mesh&) = delete;

  // From any thread: whatever moves or will be asked to move ends at once.
  void abort() {
    if (!stubborn_) fail("aborted");
  }

  // From any thread: what moves from now on may take so long in all.
  void allow(double seconds) {
    if (!stubborn_) left_ns_ = nanoseconds(seconds);
  }

  // From any thread: so long a byte is waited for from now on.
  void wait(double seconds) {
    if (!stubborn_) deadline_ns_ = nanoseconds(seconds);
  }

  bool is_over() const { return over_.load(std::memory_order_acquire); }

  // Did most of the last waits, about eight, end within the time that is waited awake?
  bool waits_awake() const { return short_waits_ >= 0.5; }

  std::string reason() const {
    std::lock_guard guard(reason_lock_);
    return reason_;
  }

  // How many bytes each connection took so far, by peer.
  std::map<int, std::vector<uint64_t>> carried() const {
    std::map<int, std::vector<uint64_t>> all;
    for (const auto& [peer, counts] : carried_) all[peer].assign(counts.begin(), counts.end());
    return all;
  }

  // The thread of one operation at a time: the bytes of two must not mix.
  std::mutex& turn() { return turn_; }

  // Moves all of `transfers`, in both directions at once; false where the mesh is over. The caller holds `turn`.
  bool move(const std::vector<Transfer>& transfers) {
    bool done = move_once(transfers);
    while (!done && stubborn_) std::this_thread::sleep_for(std::chrono::seconds(1));
    return done;
  }

 private:
  bool move_once(const std::vector<Transfer>& transfers) {
    std::vector<Job> jobs;
    for (const auto& transfer : transfers)
      if (!add_job(jobs, transfer)) return false;
    auto begun = Clock::now();
    bool done = finish(jobs, begun, begun + std::chrono::nanoseconds(left_ns_.load()));
    left_ns_ -= std::chrono::duration_cast<std::chrono::nanoseconds>(Clock::now() - begun).count();
    return done;
  }

  struct Lane {  // one socket
    int fd;
    std::atomic<uint64_t>* carried;  // bytes given to the kernel, for whoever asks
    Header out{};
    size_t out_header_left = 0;
    const char* out_at = nullptr;
    size_t out_left = 0;
    bool out_busy = false;
    Header in{};
    size_t in_header_got = 0;
    char* in_at = nullptr;
    size_t in_left = 0;
    bool in_busy = false;
    bool parked = false;  // its next block belongs to a later message
  };

  struct Peer {
    std::vector<Lane> lanes;
    uint32_t sent = 0;
    uint32_t received = 0;
  };

  struct Job {
    Peer* peer;
    const char* out;
    size_t out_bytes;
    uint32_t out_sequence, out_blocks, out_next, out_open;  // out_open: blocks that the kernel has not taken yet
    char* in;
    size_t in_bytes;
    uint32_t in_sequence, in_blocks, in_open;
  };

  static int64_t nanoseconds(double seconds) { return static_cast<int64_t>(std::clamp(seconds, 0.0, 1e9) * 1e9); }

  static uint32_t blocks(size_t bytes) {
    return bytes == 0 ? 1 : static_cast<uint32_t>((bytes + BLOCK_BYTES - 1) / BLOCK_BYTES);
  }

  static size_t block_size(size_t bytes, uint32_t block) {
    return std::min(BLOCK_BYTES, bytes - static_cast<size_t>(block) * BLOCK_BYTES);
  }

  bool finish(std::vector<Job>& jobs, Clock::time_point last, Clock::time_point end) {
    bool waited = false;
    while (!is_over()) {
      bool moved = false, open = false;
      for (auto& job : jobs) {
        for (size_t k = 0; k < job.peer->lanes.size(); k++) {
          if (!write(job, k, moved) || !read(job, k, moved)) return false;
        }
        open = open || job.out_open || job.in_open;
      }
      auto now = Clock::now();
      if (moved && waited) note_wait(now - last);
      if (!open) return true;
      waited = !moved;
      auto deadline = std::chrono::nanoseconds(deadline_ns_.load());
      if (moved) {
        last = now;
      } else if (now - last >= deadline) {
        return fail("no byte moved within the deadline");
      } else if (now - last >= awake()) {
        sleep(jobs, std::min(last + deadline, end) - now);
      } else {
        ::sched_yield();  // whoever else wants this core has it: on a busy machine that is the peer, which sends
      }
      if (now >= end) return fail("a graph had waited for its peers as long as it may");
    }
    return false;
  }

  void note_wait(Clock::duration waited) {
    double share = short_waits_;
    short_waits_ = share + ((waited <= spin_ ? 1.0 : 0.0) - share) / 8;
  }

  // How long a wait asks before it sleeps. Where waits last longer, as for another stage or on a busy machine, asking
  // only takes processor time from whoever is waited for.
  Clock::duration awake() const { return waits_awake() ? spin_ : std::min<Clock::duration>(spin_, SHORT_SPIN); }

  bool fail(const std::string& why) {
    {
      std::lock_guard guard(reason_lock_);
      if (reason_.empty()) reason_ = why;
    }
    over_.store(true, std::memory_order_release);
    for (auto& [_, peer] : peers_)
      for (auto& lane : peer.lanes) ::shutdown(lane.fd, SHUT_RDWR);
    if (wake_[1] >= 0) [[maybe_unused]] auto told = ::write(wake_[1], "", 1);
    return false;
  }

  bool add_job(std::vector<Job>& jobs, const Transfer& transfer) {
    auto found = peers_.find(transfer.peer);
    if (found == peers_.end() || found->second.lanes.empty())
      return fail("there is no connection to rank " + std::to_string(transfer.peer));
    Peer& peer = found->second;
    Job job{};
    job.peer = &peer;
    if (transfer.sends) {
      job.out = transfer.out, job.out_bytes = transfer.out_bytes;
      job.out_sequence = peer.sent++;
      job.out_blocks = job.out_open = blocks(transfer.out_bytes);
    }
    if (transfer.receives) {
      job.in = transfer.in, job.in_bytes = transfer.in_bytes;
      job.in_sequence = peer.received++;
      job.in_blocks = job.in_open = blocks(transfer.in_bytes);
    }
    for (auto& lane : peer.lanes) lane.parked = false;
    jobs.push_back(job);
    return true;
  }

  static bool may_write(const Job& job, size_t k) {
    if (job.peer->lanes[k].out_busy) return true;
    return job.out_next < job.out_blocks && (job.out_blocks > 1 || k == 0);
  }

  static bool may_read(const Job& job, size_t k) {
    return job.in_open && !job.peer->lanes[k].parked && (job.in_blocks > 1 || k == 0);
  }

  // Gives the kernel what it takes of this lane's block, or of the next one.
  bool write(Job& job, size_t k, bool& moved) {
    Lane& lane = job.peer->lanes[k];
    if (!may_write(job, k)) return true;
    if (!lane.out_busy) {
      uint32_t block = job.out_next++;
      lane.out = Header{job.out_bytes, job.out_sequence, block};
      lane.out_header_left = sizeof(Header);
      lane.out_at = job.out + static_cast<size_t>(block) * BLOCK_BYTES;
      lane.out_left = block_size(job.out_bytes, block);
      lane.out_busy = true;
    }
    iovec parts[2] = {
        {reinterpret_cast<char*>(&lane.out) + sizeof(Header) - lane.out_header_left, lane.out_header_left},
        {const_cast<char*>(lane.out_at), lane.out_left}};
    msghdr message{};
    message.msg_iov = parts, message.msg_iovlen = 2;
    ssize_t count = ::sendmsg(lane.fd, &message, SEND_FLAGS);
    if (count < 0) return is_harmless() || fail(std::string("sending failed: ") + std::strerror(errno));
    size_t of_header = std::min(static_cast<size_t>(count), lane.out_header_left);
    *lane.carried += count;
    lane.out_header_left -= of_header;
    lane.out_at += count - of_header;
    lane.out_left -= count - of_header;
    moved = true;
    if (lane.out_header_left == 0 && lane.out_left == 0) lane.out_busy = false, job.out_open--;
    return true;
  }

  bool read(Job& job, size_t k, bool& moved) {
    Lane& lane = job.peer->lanes[k];
    if (!may_read(job, k)) return true;
    if (!lane.in_busy && !begin_block(job, lane, moved)) return false;
    if (lane.in_busy && lane.in_left > 0) {
      ssize_t count = ::recv(lane.fd, lane.in_at, lane.in_left, 0);
      if (count <= 0) return received_nothing(count);
      lane.in_at += count;
      lane.in_left -= count;
      moved = true;
    }
    if (lane.in_busy && lane.in_left == 0) lane.in_busy = false, lane.in_header_got = 0, job.in_open--;
    return true;
  }

  // Reads a header, and with it the block where it can only be the one that is wanted.
  bool begin_block(Job& job, Lane& lane, bool& moved) {
    size_t extra = 0;
    if (lane.in_header_got < sizeof(Header)) {
      bool whole = job.in_blocks == 1;
      iovec parts[2] = {{reinterpret_cast<char*>(&lane.in) + lane.in_header_got, sizeof(Header) - lane.in_header_got},
                        {job.in, whole ? job.in_bytes : 0}};
      msghdr message{};
      message.msg_iov = parts, message.msg_iovlen = whole ? 2 : 1;
      ssize_t count = ::recvmsg(lane.fd, &message, 0);
      if (count <= 0) return received_nothing(count);
      size_t of_header = std::min(static_cast<size_t>(count), sizeof(Header) - lane.in_header_got);
      lane.in_header_got += of_header;
      extra = count - of_header;
      moved = true;
      if (lane.in_header_got < sizeof(Header)) return true;
    }
    if (lane.in.sequence != job.in_sequence) {
      bool later = static_cast<int32_t>(lane.in.sequence - job.in_sequence) > 0;
      if (!later || job.in_blocks == 1) return fail("the ranks are out of step");
      lane.parked = true;
      return true;
    }
    if (lane.in.bytes != job.in_bytes || lane.in.block >= job.in_blocks)
      return fail("a peer sent " + std::to_string(lane.in.bytes) + " bytes where " + std::to_string(job.in_bytes) +
                  " were expected");
    lane.in_at = job.in + static_cast<size_t>(lane.in.block) * BLOCK_BYTES + extra;
    lane.in_left = block_size(job.in_bytes, lane.in.block) - extra;
    lane.in_busy = true;
    return true;
  }

  static bool is_harmless() { return errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR; }

  bool received_nothing(ssize_t count) {
    if (count == 0) return fail("a peer closed its connection");
    return is_harmless() || fail(std::string("receiving failed: ") + std::strerror(errno));
  }

  // Until a socket can go on, `abort` is called, or `longest` is over.
  void sleep(const std::vector<Job>& jobs, Clock::duration longest) {
    std::vector<pollfd> waiting{{wake_[0], POLLIN, 0}};
    for (const auto& job : jobs)
      for (size_t k = 0; k < job.peer->lanes.size(); k++) {
        short events = (may_write(job, k) ? POLLOUT : 0) | (may_read(job, k) ? POLLIN : 0);
        if (events) waiting.push_back({job.peer->lanes[k].fd, events, 0});
      }
    auto ms = std::chrono::ceil<std::chrono::milliseconds>(longest).count();
    ::poll(waiting.data(), waiting.size(), static_cast<int>(std::clamp<long long>(ms, 1, 60'000)));
  }

  Clock::duration spin_;
  std::atomic<double> short_waits_{1.0};  // their share of the last ones; written under `turn_`
  bool stubborn_;
  std::atomic<int64_t> deadline_ns_{0};
  std::map<int, Peer> peers_;
  std::map<int, std::deque<std::atomic<uint64_t>>> carried_;
  int wake_[2] = {-1, -1};  // readable once the mesh is over: nobody ever reads it
  std::atomic<bool> over_{false};
  std::atomic<int64_t> left_ns_{1'000'000'000'000'000'000};  // without `allow`: 31 years
  std::mutex turn_;
  mutable std::mutex reason_lock_;
  std::string reason_;
};

}  // namespace exod
