// SPDX-License-Identifier: GPL-3.0-or-later
// Memory, without the C++ standard library.
#pragma once
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

inline void* operator new(size_t, void* place) noexcept { return place; }  // as in <new>

namespace ul {

template <class T>
static inline T least(T a, T b) {
  return b < a ? b : a;
}
template <class T>
static inline T greatest(T a, T b) {
  return a < b ? b : a;
}

// An array on a cache line's boundary, not initialised.
template <class T>
struct Array {
  T* data = nullptr;
  int64_t size = 0;

  Array() = default;
  explicit Array(int64_t n) { resize(n); }
  Array(const Array&) = delete;
  Array& operator=(const Array&) = delete;
  ~Array() { free(block); }

  void resize(int64_t n) {  // what was in it is lost
    free(block);
    block = malloc(sizeof(T) * (size_t)n + ALIGNMENT);
    if (!block) abort();  // out of memory: there is no result to go on with
    data = (T*)(((uintptr_t)block + ALIGNMENT - 1) & ~(uintptr_t)(ALIGNMENT - 1));
    size = n;
  }
  void zero() { memset((void*)data, 0, sizeof(T) * (size_t)size); }
  T& operator[](int64_t i) { return data[i]; }
  const T& operator[](int64_t i) const { return data[i]; }

 private:
  static constexpr size_t ALIGNMENT = 64;
  void* block = nullptr;
};

// A list that grows at its end; all zeros = empty. It must be released by hand.
template <class T>
struct List {
  T* data;
  int64_t size, capacity;

  void push(T value) {
    if (size == capacity) {
      capacity = capacity ? 2 * capacity : 4096;
      data = (T*)realloc(data, sizeof(T) * (size_t)capacity);
      if (!data) abort();
    }
    data[size++] = value;
  }
  void release() { free(data); }
};

template <class T>
static T* make() {
  void* place = malloc(sizeof(T));
  if (!place) abort();
  return new (place) T();
}
template <class T>
static void destroy(T* object) {
  if (!object) return;
  object->~T();
  free(object);
}

}  // namespace ul
