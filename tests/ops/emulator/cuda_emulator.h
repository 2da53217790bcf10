// A block of CUDA threads as fibers of one CPU thread: enough to run the kernels' own lines here.
//
// A fiber runs until an operation that others take part in, and goes on when all have come. In which
// order they take their turns is the schedule's to say, and a warp may go as far as it can before the
// next one moves: code that forgets to wait for a neighbour reads what is not there yet in one order
// or another. Real races, and the order in which a GPU's memory is written, are beyond it.
#pragma once

#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <numeric>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

#define __device__
#define __global__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __shared__ static  // one block at a time

struct uint4 {
  unsigned x, y, z, w;
};
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
struct Index {
  int x;
};
inline Index threadIdx, blockIdx;

namespace emulator {

enum class Schedule { kAscending, kDescending, kShuffled };
constexpr int kWarp = 32;
constexpr size_t kStackBytes = 1 << 16;

class Block {
 public:
  Block(int num_threads, Schedule schedule)
      : threads_(num_threads), schedule_(schedule), warps_(num_threads / kWarp), lanes_(kWarp) {
    for (std::vector<int>* order : {&warps_, &lanes_}) {
      std::iota(order->begin(), order->end(), 0);
      if (schedule == Schedule::kDescending) std::reverse(order->begin(), order->end());
    }
    current = this;
  }

  // Runs body() in every thread, to its end.
  template <class Body>
  void run(Body body) {
    body_ = &body;
    call_ = [](void* callable) { (*static_cast<Body*>(callable))(); };
    for (Thread& thread : threads_) thread.state = State::kReady;
    for (bool moved = true; moved;) {
      moved = false;
      if (schedule_ == Schedule::kShuffled) std::shuffle(warps_.begin(), warps_.end(), random_);
      for (int warp : warps_) {
        while (take_turns(warp)) {
          moved = true;
          if (schedule_ == Schedule::kShuffled && random_() % 2) break;
        }
      }
    }
    for (const Thread& thread : threads_) {
      if (thread.state == State::kDone) continue;
      throw std::runtime_error(std::string("threads wait forever, one of them in ") + thread.operation);
    }
  }

  // Waits for the other lanes, and returns what the asked one has brought.
  template <class X>
  X exchange(X x, int from, const char* operation) {
    std::memcpy(&slot(self_), &x, sizeof x);
    const int warp = self_ / kWarp * kWarp;
    wait(State::kAtWarp, operation);
    std::memcpy(&x, &slot(warp + from), sizeof x);
    threads_[self_].turn ^= 1;
    return x;
  }

  uint32_t ballot(bool x, const char* operation) {
    const uint64_t own = x;
    std::memcpy(&slot(self_), &own, sizeof own);
    wait(State::kAtWarp, operation);
    uint32_t lanes = 0;
    for (int lane = 0; lane < kWarp; ++lane) {
      lanes |= static_cast<uint32_t>(slot(self_ / kWarp * kWarp + lane)) << lane;
    }
    threads_[self_].turn ^= 1;
    return lanes;
  }

  void sync_warp() { wait(State::kAtWarp, "__syncwarp"); }
  void sync_block() { wait(State::kAtBlock, "__syncthreads"); }
  int lane() const { return self_ % kWarp; }

  inline static Block* current = nullptr;

 private:
  enum class State { kReady, kAtWarp, kAtBlock, kDone };
  struct Thread {
    void* place[5];  // of __builtin_setjmp
    std::unique_ptr<char[]> stack;
    State state = State::kDone;
    const char* operation = "";
    // A lane that has read may bring its next value while others still read: two slots take turns.
    uint64_t slots[2] = {};
    int turn = 0;
  };

  // Lets each lane of a warp run to its next operation; returns whether one could.
  bool take_turns(int warp) {
    bool moved = false;
    if (schedule_ == Schedule::kShuffled) std::shuffle(lanes_.begin(), lanes_.end(), random_);
    for (int lane : lanes_) {
      const int index = warp * kWarp + lane;
      if (threads_[index].state != State::kReady) continue;
      moved = true;
      resume(index);
      release(index);
    }
    return moved;
  }

  uint64_t& slot(int index) { return threads_[index].slots[threads_[self_].turn]; }

  void wait(State state, const char* operation) {
    threads_[self_].state = state;
    threads_[self_].operation = operation;
    leave();
  }

  // Lets a warp or the block go on when the last thread has come.
  void release(int index) {
    const State state = threads_[index].state;
    if (state != State::kAtWarp && state != State::kAtBlock) return;
    const bool warp = state == State::kAtWarp;
    const auto first = threads_.begin() + (warp ? index / kWarp * kWarp : 0);
    const auto last = warp ? first + kWarp : threads_.end();
    const char* operation = threads_[index].operation;
    if (std::any_of(first, last, [=](const Thread& t) { return t.state != state; })) return;
    for (auto thread = first; thread != last; ++thread) {
      if (std::strcmp(thread->operation, operation) != 0) {
        throw std::runtime_error(std::string("one warp is in ") + operation + " and in " + thread->operation);
      }
      thread->state = State::kReady;
    }
  }

  __attribute__((noinline)) void resume(int index) {
    self_ = index;
    threadIdx.x = index;
    Thread& thread = threads_[index];
    const bool fresh = !thread.stack;
    if (fresh) thread.stack.reset(new char[kStackBytes]);
    enter_stack(&thread);
    if (__builtin_setjmp(place_) == 0) {
      if (!fresh) jump(thread.place);
      start(thread);
    }
    entered_stack();
  }

  __attribute__((noinline)) void leave() {
    Thread* thread = &threads_[self_];
    enter_stack(nullptr);
    if (__builtin_setjmp(thread->place) == 0) jump(place_);
    entered_stack();
  }

  [[noreturn]] __attribute__((noinline)) static void jump(void** place) { __builtin_longjmp(place, 1); }

  [[noreturn]] __attribute__((noinline)) void start(Thread& thread) {
    ucontext_t context;
    getcontext(&context);
    context.uc_stack.ss_sp = thread.stack.get();
    context.uc_stack.ss_size = kStackBytes;
    context.uc_link = nullptr;
    makecontext(&context, [] { current->live(); }, 0);
    setcontext(&context);
    std::abort();
  }

  // A fiber serves block after block.
  void live() {
    entered_stack();
    for (;;) {
      call_(body_);
      threads_[self_].state = State::kDone;
      leave();
    }
  }

#if defined(__SANITIZE_ADDRESS__)
  void enter_stack(Thread* thread) {
    const void* bottom = thread ? thread->stack.get() : main_bottom_;
    __sanitizer_start_switch_fiber(nullptr, bottom, thread ? kStackBytes : main_size_);
  }
  void entered_stack() {
    const void* bottom;
    size_t size;
    __sanitizer_finish_switch_fiber(nullptr, &bottom, &size);
    if (!main_bottom_) main_bottom_ = bottom, main_size_ = size;
  }
  const void* main_bottom_ = nullptr;
  size_t main_size_ = 0;
#else
  void enter_stack(Thread*) {}
  void entered_stack() {}
#endif

  std::vector<Thread> threads_;
  const Schedule schedule_;
  std::vector<int> warps_, lanes_;
  std::mt19937 random_{1};
  void* place_[5];  // of the scheduler
  void* body_ = nullptr;
  void (*call_)(void*) = nullptr;
  int self_ = 0;
};

// Runs a grid, block after block.
template <class Body>
void run_grid(int64_t num_blocks, int num_threads, Schedule schedule, Body body) {
  Block block(num_threads, schedule);
  for (int64_t index = 0; index < num_blocks; ++index) {
    blockIdx.x = static_cast<int>(index);
    block.run(body);
  }
}

}  // namespace emulator

inline void __syncwarp() { emulator::Block::current->sync_warp(); }
inline void __syncthreads() { emulator::Block::current->sync_block(); }
template <class X>
X __shfl_sync(unsigned, X x, int from) {
  return emulator::Block::current->exchange(x, from, "__shfl_sync");
}
template <class X>
X __shfl_xor_sync(unsigned, X x, int distance) {
  emulator::Block& block = *emulator::Block::current;
  return block.exchange(x, block.lane() ^ distance, "__shfl_xor_sync");
}
inline unsigned __ballot_sync(unsigned, bool x) {
  return emulator::Block::current->ballot(x, "__ballot_sync");
}
inline bool __any_sync(unsigned, bool x) {
  return emulator::Block::current->ballot(x, "__any_sync") != 0;
}
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fadd_rn(float a, float b) { return a + b; }
