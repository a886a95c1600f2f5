// Runs CUDA C++ kernels on the CPU, compiled by g++ (-std=c++20).
//
//   block        = one OS thread at a time (a pool takes blocks in turn; a cooperative launch gives
//                  every block its own thread)
//   CUDA thread  = a fiber inside that OS thread, switched by a few lines of assembly
//   warp-level   = a rendezvous: lanes park until the last one arrives; the last one computes the
//   operation      result for all lanes and makes them runnable again
//
// The schedule is chosen for each launch:
//   Fifo     first in, first out
//   Lifo     greedy: the newest runnable thread first, so one warp runs far ahead of the others
//   Shuffle  first in, first out, from a shuffled start order
// Correct kernels give the same under all of them; a missing barrier shows under one of them.
//
// -DEMU_UCONTEXT replaces the assembly switch by ucontext: any CPU, about ten times slower.
#pragma once
#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>
#if defined(__linux__)
#include <linux/futex.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>
#endif
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#define EMU_UNPOISON(p, n) __asan_unpoison_memory_region(p, n)
#define EMU_POISON(p, n) __asan_poison_memory_region(p, n)
#else
#define EMU_UNPOISON(p, n) (void)0
#define EMU_POISON(p, n) (void)0
#endif
#if !defined(__x86_64__) && !defined(__aarch64__) && !defined(EMU_UCONTEXT)
#define EMU_UCONTEXT
#endif
#ifdef EMU_UCONTEXT
#include <ucontext.h>
#endif

// Under -DEMU_LIST the preprocessor leaves this mark before every kernel, for the launch table.
#ifdef EMU_LIST
#define __global__ EMU_KERNEL
#else
#define __global__
#endif
#define __device__
#define __host__
#define __constant__ static const
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)
#define __restrict__ __restrict
#define __align__(n) __attribute__((aligned(n)))
#define __grid_constant__

struct dim3 {
  unsigned x, y, z;
  dim3(unsigned a = 1, unsigned b = 1, unsigned c = 1) : x(a), y(b), z(c) {}
};

namespace emu {

#if defined(__SANITIZE_ADDRESS__)
constexpr size_t STACK_BYTES = 256 * 1024;  // instrumented frames are several times as large
#else
constexpr size_t STACK_BYTES = 64 * 1024;  // per CUDA thread; a canary stands at its end
#endif
constexpr uint64_t CANARY = 0x5afe57ac5afe57acull;
constexpr int MAX_THREADS = 1024;
constexpr int NAMED_BARRIERS = 16;
constexpr unsigned QUEUE_MASK = 2047;  // ring of 2048 > MAX_THREADS
constexpr double LONGEST_POLL_SECONDS = 60;

enum class Schedule : int { Fifo = 0, Lifo = 1, Shuffle = 2 };

// A cp.async under way: the bytes land only at the wait that the program owes.
struct AsyncCopy {
  void *smem;
  const void *gmem;
  int bytes, source_bytes, group;
};

struct Fiber {
  void *stack_pointer = nullptr;
#ifdef EMU_UCONTEXT
  ucontext_t context;
#endif
  dim3 thread_idx;
  int linear = 0;
  bool done = false;
  std::vector<AsyncCopy> copies;
  int committed = 0;
  const void *polled = nullptr;  // the address and the value of the last poll
  uint32_t polled_value = 0;
};

// The meeting point of one warp (32 lanes) or one warpgroup (128 lanes).
struct Rendezvous {
  unsigned arrived = 0, mask = 0;
  int op = -1;
  void *argument[128];
};

struct Block {
  std::vector<Fiber> fibers;
  dim3 block_dim, grid_dim, block_idx;
  int threads = 0, alive = 0;
  Schedule schedule = Schedule::Fifo;
  uint64_t serial = 0;  // differs between any two blocks that run on the same OS thread

  int queue[QUEUE_MASK + 1];  // runnable threads
  unsigned head = 0, tail = 0;

  int barrier_count[NAMED_BARRIERS] = {};   // arrived
  int barrier_parked[NAMED_BARRIERS] = {};  // of these, waiting
  int barrier_expect[NAMED_BARRIERS] = {};  // 0: every thread still alive
  int barrier_waiter[NAMED_BARRIERS][MAX_THREADS];

  std::vector<Rendezvous> meetings = std::vector<Rendezvous>(80);  // 0..63 warps, 64.. warpgroups
  char *smem = nullptr;
  size_t smem_room = 0, smem_bytes = 0;
  void *scheduler_stack_pointer = nullptr;
#ifdef EMU_UCONTEXT
  ucontext_t scheduler;
#endif
  const std::function<void()> *body = nullptr;
  char *stacks = nullptr;
  std::chrono::steady_clock::time_point started;
};

inline thread_local Block *block = nullptr;
inline thread_local Fiber *self = nullptr;

#ifndef EMU_UCONTEXT
// Saves the callee-saved registers on the old stack, loads them from the new one.
extern "C" void emu_switch(void **save_to, void *resume_from);
#if defined(__x86_64__)
constexpr int SAVED_WORDS = 7;  // six registers and the return address
constexpr int RETURN_WORD = 6;
asm(R"(.text
.weak emu_switch
.type emu_switch,@function
emu_switch:
 pushq %rbp; pushq %rbx; pushq %r12; pushq %r13; pushq %r14; pushq %r15
 movq %rsp,(%rdi)
 movq %rsi,%rsp
 popq %r15; popq %r14; popq %r13; popq %r12; popq %rbx; popq %rbp
 ret
.size emu_switch,.-emu_switch
)");
#else
constexpr int SAVED_WORDS = 20;  // x19..x30 and d8..d15
constexpr int RETURN_WORD = 11;  // x30
asm(R"(.text
.weak emu_switch
.type emu_switch,%function
emu_switch:
 sub sp,sp,#160
 stp x19,x20,[sp,#0]
 stp x21,x22,[sp,#16]
 stp x23,x24,[sp,#32]
 stp x25,x26,[sp,#48]
 stp x27,x28,[sp,#64]
 stp x29,x30,[sp,#80]
 stp d8,d9,[sp,#96]
 stp d10,d11,[sp,#112]
 stp d12,d13,[sp,#128]
 stp d14,d15,[sp,#144]
 mov x9,sp
 str x9,[x0]
 mov sp,x1
 ldp x19,x20,[sp,#0]
 ldp x21,x22,[sp,#16]
 ldp x23,x24,[sp,#32]
 ldp x25,x26,[sp,#48]
 ldp x27,x28,[sp,#64]
 ldp x29,x30,[sp,#80]
 ldp d8,d9,[sp,#96]
 ldp d10,d11,[sp,#112]
 ldp d12,d13,[sp,#128]
 ldp d14,d15,[sp,#144]
 add sp,sp,#160
 ret
.size emu_switch,.-emu_switch
)");
#endif
#endif

[[noreturn]] inline void die(const char *what) {
  if (block)
    fprintf(stderr, "EMU ERROR block(%u,%u,%u) thread %d: %s\n", block->block_idx.x,
            block->block_idx.y, block->block_idx.z, self ? self->linear : -1, what);
  else
    fprintf(stderr, "EMU ERROR %s\n", what);
  abort();
}

inline void make_runnable(int thread) { block->queue[block->tail++ & QUEUE_MASK] = thread; }

// Takes the next thread out of the run queue: the whole difference between the schedules.
inline int pick_next() {
  if (block->head == block->tail)
    die("deadlock: no runnable thread (divergent __syncthreads or warp op with missing lanes)");
  if (block->schedule == Schedule::Lifo) return block->queue[--block->tail & QUEUE_MASK];
  return block->queue[block->head++ & QUEUE_MASK];
}

// Called by a fiber that has parked or queued itself: switches to the next one.
inline void resume_next() {
  Fiber *me = self;
  Fiber *to = &block->fibers[pick_next()];
  if (to == me) return;
  self = to;
#ifdef EMU_UCONTEXT
  swapcontext(&me->context, &to->context);
#else
  emu_switch(&me->stack_pointer, to->stack_pointer);
#endif
}

// A polling wait goes to the far end of the queue: under Lifo a spinner would otherwise be picked
// again at once and starve the thread that it waits for.
inline void yield() {
  if (block->schedule == Schedule::Lifo)
    block->queue[--block->head & QUEUE_MASK] = self->linear;
  else
    make_runnable(self->linear);
  resume_next();
}

inline std::atomic<int> sleepers{0};

// After a store that others may poll for.
inline void wake(const void *address) {
#if defined(__linux__)
  if (sleepers.load())
    syscall(SYS_futex, address, FUTEX_WAKE_PRIVATE, 1 << 30, nullptr, nullptr, 0);
#endif
}

// After a load by a polling loop: lets others run. Sees the same value twice in a row, with nobody
// else to run in this block: sleeps until another block writes there.
inline void poll(const void *address, uint32_t value) {
  bool again = self->polled == address && self->polled_value == value;
  self->polled = address;
  self->polled_value = value;
  if (!again) return;
  if (block->head != block->tail) {
    yield();
    return;
  }
  std::chrono::duration<double> age = std::chrono::steady_clock::now() - block->started;
  if (age.count() > LONGEST_POLL_SECONDS) die("a poll that never ends");
#if defined(__linux__)
  timespec longest{0, 1000000};
  sleepers++;
  syscall(SYS_futex, address, FUTEX_WAIT_PRIVATE, value, &longest, nullptr, 0);
  sleepers--;
#else
  std::this_thread::yield();
#endif
}

inline void barrier_release(int id) {
  int waiting = block->barrier_parked[id];
  block->barrier_count[id] = block->barrier_parked[id] = 0;
  for (int i = 0; i < waiting; i++) make_runnable(block->barrier_waiter[id][i]);
}

// bar.sync (`wait`) and bar.arrive. `expect` 0 means all threads that have not exited.
inline void barrier(int id, int expect, bool wait) {
  if (id < 0 || id >= NAMED_BARRIERS) die("a barrier number outside of 0..15");
  if (block->barrier_count[id] && block->barrier_expect[id] != expect)
    die("threads met at one barrier with different thread counts");
  block->barrier_expect[id] = expect;
  if (++block->barrier_count[id] == (expect ? expect : block->alive)) {
    barrier_release(id);
    return;
  }
  if (!wait) return;
  block->barrier_waiter[id][block->barrier_parked[id]++] = self->linear;
  resume_next();
}

// Lanes of a warp (`width` 32) or warpgroup (128) meet here; the last to arrive runs
// `compute(arguments)`, where arguments[lane] is what that lane passed in.
template <class F>
inline void collective(int op, int width, unsigned mask, void *argument, F &&compute) {
  int group = self->linear / width, lane = self->linear % width;
  if (width == 32 && !(mask >> lane & 1)) die("a lane calls a warp op whose mask leaves it out");
  Rendezvous &r = block->meetings[(width == 128 ? 64 : 0) + group];
  if (r.arrived == 0) {
    r.op = op;
    r.mask = mask;
  } else if (r.op != op || r.mask != mask) {
    die("warp lanes met in different warp-level ops / masks");
  }
  r.argument[lane] = argument;
  r.arrived++;
  int needed = width == 128 ? 128 : __builtin_popcount(mask);
  if ((int)r.arrived == needed) {
    r.arrived = 0;
    compute(r.argument);
    for (int i = 0; i < width; i++)
      if (i != lane && (width == 128 || (mask >> i & 1))) make_runnable(group * width + i);
    return;
  }
  resume_next();
}

// State that belongs to the running block: one object per OS thread, made anew for every block.
template <class T>
inline T &per_block() {
  static thread_local T state;
  static thread_local uint64_t owner = 0;
  if (owner != block->serial) {
    state = T{};
    owner = block->serial;
  }
  return state;
}

inline void fiber_main() {
  (*block->body)();
  self->done = true;
  block->alive--;
  if (block->alive == 0) {
#ifdef EMU_UCONTEXT
    setcontext(&block->scheduler);
#else
    void *unused;
    emu_switch(&unused, block->scheduler_stack_pointer);
#endif
  }
  // An exited thread no longer counts towards a full barrier.
  for (int id = 0; id < NAMED_BARRIERS; id++)
    if (block->barrier_count[id] && !block->barrier_expect[id] &&
        block->barrier_count[id] == block->alive)
      barrier_release(id);
  resume_next();
  __builtin_unreachable();
}

inline void run_block(Block &b, dim3 grid_dim, dim3 block_dim, dim3 block_idx, size_t smem_bytes,
                      Schedule schedule, const std::function<void()> &body) {
  static thread_local uint64_t serial = 0;
  int n = block_dim.x * block_dim.y * block_dim.z;
  block = &b;
  b.serial = ++serial;
  b.schedule = schedule;
  b.started = std::chrono::steady_clock::now();
  if (b.threads < n) {
    b.fibers.resize(n);
    b.threads = n;
  }
  if (!b.stacks) {
    b.stacks = (char *)mmap(0, STACK_BYTES * MAX_THREADS, PROT_READ | PROT_WRITE,
                            MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (b.stacks == MAP_FAILED) die("no memory for stacks");
  }
  EMU_UNPOISON(b.smem, b.smem_room);
  if (b.smem_room < smem_bytes) {
    free(b.smem);
    b.smem_room = (smem_bytes + 1023) / 1024 * 1024;
    b.smem = (char *)aligned_alloc(1024, b.smem_room);
  }
  b.smem_bytes = smem_bytes;
  if (smem_bytes) memset(b.smem, 0xff, smem_bytes);  // every float and bf16 starts as NaN
  EMU_POISON(b.smem + smem_bytes, b.smem_room - smem_bytes);
  EMU_UNPOISON(b.stacks, STACK_BYTES * MAX_THREADS);
  b.block_dim = block_dim;
  b.grid_dim = grid_dim;
  b.block_idx = block_idx;
  b.alive = n;
  b.head = b.tail = 1u << 20;  // room for yield() to go below the start
  b.body = &body;
  memset(b.barrier_count, 0, sizeof b.barrier_count);
  memset(b.barrier_parked, 0, sizeof b.barrier_parked);
  for (auto &m : b.meetings) m.arrived = 0;
  for (int i = 0; i < n; i++) {
    Fiber &f = b.fibers[i];
    f.linear = i;
    f.done = false;
    f.copies.clear();
    f.committed = 0;
    f.polled = nullptr;
    f.thread_idx =
        dim3(i % block_dim.x, i / block_dim.x % block_dim.y, i / (block_dim.x * block_dim.y));
    char *bottom = b.stacks + STACK_BYTES * i, *top = bottom + STACK_BYTES;
    memcpy(bottom, &CANARY, sizeof CANARY);
#ifdef EMU_UCONTEXT
    getcontext(&f.context);
    f.context.uc_stack.ss_sp = bottom;
    f.context.uc_stack.ss_size = STACK_BYTES;
    f.context.uc_link = 0;
    makecontext(&f.context, (void (*)())fiber_main, 0);
#else
    void **slot = (void **)top - 2;  // the stack is aligned at fiber_main as after a call
    *slot = nullptr;
    slot -= SAVED_WORDS - (SAVED_WORDS & 1 ? 1 : 0);
    for (int k = 0; k < SAVED_WORDS; k++) slot[k] = nullptr;
    slot[RETURN_WORD] = (void *)fiber_main;
    f.stack_pointer = slot;
#endif
    make_runnable(i);
  }
  if (schedule == Schedule::Shuffle) {
    uint64_t state = 0x9e3779b97f4a7c15ull + block_idx.x + ((uint64_t)block_idx.y << 32);
    for (unsigned k = b.tail - b.head - 1; k > 0; k--) {
      state = state * 6364136223846793005ull + 1442695040888963407ull;
      unsigned j = (state >> 33) % (k + 1);
      std::swap(b.queue[(b.head + k) & QUEUE_MASK], b.queue[(b.head + j) & QUEUE_MASK]);
    }
  }
  // Not always thread 0: it is often the one that sets something up for the others.
  self = &b.fibers[pick_next()];
#ifdef EMU_UCONTEXT
  swapcontext(&b.scheduler, &self->context);
#else
  emu_switch(&b.scheduler_stack_pointer, self->stack_pointer);
#endif
  self = nullptr;
  for (int i = 0; i < n; i++)
    if (memcmp(b.stacks + STACK_BYTES * i, &CANARY, sizeof CANARY)) die("a stack ran over");
  block = nullptr;
}

// Blocks keep their stacks and shared memory between launches.
inline std::mutex idle_lock;
inline std::vector<Block *> idle_blocks;

inline Block *take_block() {
  std::lock_guard<std::mutex> hold(idle_lock);
  if (idle_blocks.empty()) return new Block;
  Block *b = idle_blocks.back();
  idle_blocks.pop_back();
  return b;
}

inline void give_block(Block *b) {
  std::lock_guard<std::mutex> hold(idle_lock);
  idle_blocks.push_back(b);
}

// Runs `body` once for every thread of every block. `cooperative`: all blocks at the same time.
inline void launch(dim3 grid, dim3 block_dim, size_t smem_bytes, std::function<void()> body,
                   bool cooperative = false, Schedule schedule = Schedule::Fifo) {
  size_t blocks = (size_t)grid.x * grid.y * grid.z;
  size_t cores = std::max(1u, std::thread::hardware_concurrency());
  size_t workers = cooperative ? blocks : std::min(blocks, cores);
  size_t threads_in_block = (size_t)block_dim.x * block_dim.y * block_dim.z;
  if (threads_in_block == 0 || threads_in_block > MAX_THREADS) die("not 1 to 1024 threads a block");
  std::atomic<size_t> next{0};
  auto work = [&] {
    Block *b = take_block();
    for (size_t i; (i = next++) < blocks;) {
      dim3 at(i % grid.x, i / grid.x % grid.y, i / ((size_t)grid.x * grid.y));
      run_block(*b, grid, block_dim, at, smem_bytes, schedule, body);
    }
    give_block(b);
  };
  std::vector<std::thread> threads;
  for (size_t i = 1; i < workers; i++) threads.emplace_back(work);
  work();
  for (auto &t : threads) t.join();
}

// Numbers of the rendezvous ops here, in ptx.cuh and in the families' headers (from 100 on): lanes
// that meet in two different ones are a bug in the kernel.
enum Op {
  OP_SYNCWARP = 1,
  OP_SHFL,
  OP_BALLOT,
  OP_ANY,
  OP_ALL,
  OP_MATCH,
  OP_REDUX_ADD,
  OP_REDUX_MIN,
  OP_REDUX_MAX,
  OP_REDUX_AND,
  OP_REDUX_OR,
  OP_REDUX_XOR,
  OP_LDMATRIX = 20,
  OP_MMA_BF16_16816 = 40,
  OP_MMA_TF32_1688 = 41,
};

}  // namespace emu

#define threadIdx (emu::self->thread_idx)
#define blockIdx (emu::block->block_idx)
#define blockDim (emu::block->block_dim)
#define gridDim (emu::block->grid_dim)
static constexpr int warpSize = 32;

#include "cuda_emu_builtins.h"
