// SPDX-License-Identifier: GPL-3.0-or-later
// Parallel loops, without the C++ standard library.
#pragma once
#include "memory.h"
#if defined(_WIN32)
#define WIN32_LEAN_AND_MEAN
#define NOMINMAX
#include <windows.h>
#else
#include <pthread.h>
#endif

namespace ul {

constexpr int MAX_THREADS = 64;

// The range that the threads of one loop share.
struct Loop {
  void (*body)(void* function, int begin, int end);
  void* function;
  int count;
  int grain;
  int next;

  void run() {
    for (;;) {
      int begin = __atomic_fetch_add(&next, grain, __ATOMIC_RELAXED);
      if (begin >= count) return;
      body(function, begin, least(count, begin + grain));
    }
  }
};

#if defined(_WIN32)
typedef HANDLE Thread;
static DWORD WINAPI thread_main(LPVOID loop) {
  ((Loop*)loop)->run();
  return 0;
}
static inline bool start_thread(Thread* thread, Loop* loop) {
  *thread = CreateThread(nullptr, 0, thread_main, loop, 0, nullptr);
  return *thread != nullptr;
}
static inline void join_thread(Thread thread) {
  WaitForSingleObject(thread, INFINITE);
  CloseHandle(thread);
}
#else
typedef pthread_t Thread;
static void* thread_main(void* loop) {
  ((Loop*)loop)->run();
  return nullptr;
}
static inline bool start_thread(Thread* thread, Loop* loop) {
  return pthread_create(thread, nullptr, thread_main, loop) == 0;
}
static inline void join_thread(Thread thread) { pthread_join(thread, nullptr); }
#endif

// Call f(begin, end) for pieces of [0, count) of `grain` items each. Which thread takes which piece
// is chance, so f must write to places that only the item decides: then every result is the same
// for any number of threads. Fewer threads than asked for are no error.
template <class F>
static void parallel_for(int num_threads, int count, int grain, F f) {
  if (count <= 0) return;
  if (num_threads <= 1 || count <= grain) {
    f(0, count);
    return;
  }
  Loop loop = {[](void* g, int begin, int end) { (*(F*)g)(begin, end); }, &f, count, grain, 0};
  int pieces = (count + grain - 1) / grain;
  int helpers = least(least(num_threads, MAX_THREADS), pieces) - 1;
  Thread threads[MAX_THREADS];
  int started = 0;
  while (started < helpers && start_thread(&threads[started], &loop)) started++;
  loop.run();
  for (int i = 0; i < started; i++) join_thread(threads[i]);
}

}  // namespace ul
