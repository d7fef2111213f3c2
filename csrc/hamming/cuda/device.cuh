// Device code that all kernels share: rows into registers, distances, relevance; and how kernels are launched.
#pragma once

#include <algorithm>
#include <stdexcept>
#include <string>
#include <type_traits>

#include "../../common/numbers.h"
#include "engine.h"

namespace nhl::cuda {

constexpr int kThreads = 256;
constexpr int kMaxSteps = 32;
constexpr int kSharedBytes = 48 * 1024;

inline void check(cudaError_t status) {
  if (status != cudaSuccess) throw std::runtime_error(std::string("nhl_fast CUDA: ") + cudaGetErrorString(status));
}

// One code length in a multi-length pass: it ends in `word`, of which the bits of `mask` count; `first` is
// where its bins (or its output plane) begin.
struct Step {
  int word;
  uint32_t mask;
  int first;
};

// How rows are read, for the longest length asked for.
struct Layout {
  int bytes, words, vector;  // vector: bytes of one load; both rows and their width are aligned to it
  uint32_t tail;             // bits of the last word that count
};

struct Program {
  Layout layout;
  int count;
  Step steps[kMaxSteps];
};

// The mask of a word's first `bits` bits as they lie in memory, most significant bit of each byte first.
inline uint32_t leading_bits(int64_t bits) {
  uint32_t mask = 0;
  for (int64_t i = 0; i < 4; ++i) {
    const int64_t in_byte = std::clamp<int64_t>(bits - 8 * i, 0, 8);
    mask |= static_cast<uint32_t>(0xff00 >> in_byte & 0xff) << (8 * i);
  }
  return mask;
}

inline Layout layout_of(const Rows& rows, int64_t bits) {
  Layout layout{};
  layout.bytes = static_cast<int>((bits + 7) / 8);
  layout.words = (layout.bytes + 3) / 4;
  layout.tail = leading_bits(bits - 32 * (layout.words - 1));
  const uint64_t all = reinterpret_cast<uint64_t>(rows.data) | rows.stride | layout.bytes;
  layout.vector = all % 16 == 0 ? 16 : all % 8 == 0 ? 8 : all % 4 == 0 ? 4 : 1;
  return layout;
}

// A code in registers. W = 0: too long for that, read where it lies, a word at a time.
template <int W>
struct Code {
  uint32_t word[W];
  __device__ __forceinline__ uint32_t operator()(int w) const { return word[w]; }
};

template <>
struct Code<0> {
  const uint8_t* row;
  Layout layout;
  __device__ __forceinline__ uint32_t operator()(int w) const {
    uint32_t x = 0;
    if (layout.vector >= 4) {
      x = __ldg(reinterpret_cast<const uint32_t*>(row) + w);
    } else {
      for (int b = 0; b < 4 && 4 * w + b < layout.bytes; ++b) x |= static_cast<uint32_t>(__ldg(row + 4 * w + b)) << (8 * b);
    }
    return w == layout.words - 1 ? x & layout.tail : x;
  }
};

struct SharedCode {
  const uint32_t* words;
  __device__ __forceinline__ uint32_t operator()(int w) const { return words[w]; }
};

// A row into registers; words beyond the code are 0.
template <int W>
__device__ __forceinline__ Code<W> load_row(const uint8_t* __restrict__ row, const Layout& layout) {
  if constexpr (W == 0) {
    return {row, layout};
  } else {
    Code<W> x;
#pragma unroll
    for (int w = 0; w < W; ++w) x.word[w] = 0;
    if (W % 4 == 0 && layout.vector == 16) {
#pragma unroll
      for (int w = 0; w + 3 < W; w += 4)
        if (w < layout.words) {
          const uint4 v = __ldg(reinterpret_cast<const uint4*>(row + 4 * w));
          x.word[w] = v.x, x.word[w + 1] = v.y, x.word[w + 2] = v.z, x.word[w + 3] = v.w;
        }
    } else if (W % 2 == 0 && layout.vector >= 8) {
#pragma unroll
      for (int w = 0; w + 1 < W; w += 2)
        if (w < layout.words) {
          const uint2 v = __ldg(reinterpret_cast<const uint2*>(row + 4 * w));
          x.word[w] = v.x, x.word[w + 1] = v.y;
        }
    } else if (layout.vector >= 4) {
#pragma unroll
      for (int w = 0; w < W; ++w)
        if (w < layout.words) x.word[w] = __ldg(reinterpret_cast<const uint32_t*>(row + 4 * w));
    } else {
#pragma unroll
      for (int w = 0; w < W; ++w)
#pragma unroll
        for (int b = 0; b < 4; ++b)
          if (4 * w + b < layout.bytes) x.word[w] |= static_cast<uint32_t>(__ldg(row + 4 * w + b)) << (8 * b);
    }
#pragma unroll
    for (int w = 0; w < W; ++w)
      x.word[w] &= w == layout.words - 1 ? layout.tail : ~0u;
    return x;
  }
}

// The I items of a block's turn that are this thread's. What is added to the distance of one that doesn't count (past the
// end, or not allowed) puts it out of every reach.
template <int W, int I>
__device__ __forceinline__ void load_items(Code<W> (&x)[I], int (&out_of_reach)[I], const Rows& items, const Layout& layout,
                                           int64_t at, int64_t end, const uint8_t* __restrict__ allow) {
#pragma unroll
  for (int j = 0; j < I; ++j) {
    const int64_t i = at + j * kThreads + threadIdx.x, inside = min(i, end - 1);
    x[j] = load_row<W>(items.data + inside * items.stride, layout);
    out_of_reach[j] = i < end && (allow == nullptr || allow[inside]) ? 0 : 1 << 18;
  }
}

// Words a staged query takes: multiples of 4 are read 16 bytes at a time.
template <int W>
__host__ __device__ __forceinline__ int staged_words(const Layout& layout) {
  return W > 0 ? W : layout.words;
}

// Query rows [first, last) into shared memory. A barrier must follow.
template <int W>
__device__ __forceinline__ void stage_queries(const Rows& queries, const Layout& layout, int64_t first, int64_t last,
                                              uint32_t* shared) {
  const int words = staged_words<W>(layout);
  for (int at = threadIdx.x; at < (last - first) * words; at += blockDim.x) {
    const Code<0> row{queries.data + (first + at / words) * queries.stride, layout};
    shared[at] = at % words < layout.words ? row(at % words) : 0;
  }
}

// A staged query: every thread reads the same address, a broadcast.
template <int W>
__device__ __forceinline__ auto staged(const uint32_t* shared, int q, const Layout& layout) {
  if constexpr (W == 0) {
    return SharedCode{shared + q * layout.words};
  } else {
    Code<W> x;
    if constexpr (W % 4 == 0) {
#pragma unroll
      for (int w = 0; w < W; w += 4) {
        const uint4 v = *reinterpret_cast<const uint4*>(shared + q * W + w);
        x.word[w] = v.x, x.word[w + 1] = v.y, x.word[w + 2] = v.z, x.word[w + 3] = v.w;
      }
    } else {
#pragma unroll
      for (int w = 0; w < W; ++w) x.word[w] = shared[q * W + w];
    }
    return x;
  }
}

template <int W>
__device__ __forceinline__ int distance(const Code<W>& a, const Code<W>& b) {
  int d = 0;
#pragma unroll
  for (int w = 0; w < W; ++w) d += __popc(a.word[w] ^ b.word[w]);
  return d;
}

// visit(step, distance) for every length of the program.
template <int W, class Query, class Visit>
__device__ __forceinline__ void prefix_distances(const Code<W>& item, const Query& query, const Program& program,
                                                 const Visit& visit) {
  int d = 0, s = 0;
  const auto word = [&](int w) {
    const uint32_t x = item(w) ^ query(w);
    for (; s < program.count && program.steps[s].word == w; ++s)
      visit(program.steps[s], d + __popc(x & program.steps[s].mask));
    d += __popc(x);
  };
  if constexpr (W == 0) {
#pragma unroll 1
    for (int w = 0; w < program.layout.words; ++w) word(w);
  } else {
#pragma unroll
    for (int w = 0; w < W; ++w) word(w);
  }
}

// The usual lengths, for code that has no loop over them. Their bins are those of a program with the same lengths.
struct StandardLengths {
  static constexpr int count = 5;
  static constexpr int64_t bits[count] = {8, 16, 32, 64, 128};
  static bool are(const std::vector<int64_t>& lengths) { return lengths == std::vector<int64_t>(bits, bits + count); }
};

template <class Query, class Visit>
__device__ __forceinline__ void standard_distances(const Code<4>& item, const Query& query, const Visit& visit) {
  const uint32_t x = item(0) ^ query(0);
  const int d32 = __popc(x), d64 = d32 + __popc(item(1) ^ query(1));
  visit(Step{0, 0, 0}, __popc(x & 0xff));
  visit(Step{0, 0, 9}, __popc(x & 0xffff));
  visit(Step{0, 0, 9 + 17}, d32);
  visit(Step{0, 0, 9 + 17 + 33}, d64);
  visit(Step{0, 0, 9 + 17 + 33 + 65}, d64 + __popc(item(2) ^ query(2)) + __popc(item(3) ^ query(3)));
}

// Relevance of item i to query q, in parts, so that a label can be on its way while another is compared.
template <class T>
struct SameId {
  const T* queries;
  const T* items;
  __device__ __forceinline__ T query(int64_t q) const { return __ldg(queries + q); }
  __device__ __forceinline__ T item(int64_t i) const { return __ldg(items + i); }
  __device__ __forceinline__ bool match(T a, T b) const { return a == b; }
};

struct SharedLabel {
  const uint64_t* queries;
  const uint64_t* items;
  int words;
  __device__ __forceinline__ const uint64_t* query(int64_t q) const { return queries + q * words; }
  __device__ __forceinline__ const uint64_t* item(int64_t i) const { return items + i * words; }
  __device__ __forceinline__ bool match(const uint64_t* a, const uint64_t* b) const {
    uint64_t shared = 0;
    for (int w = 0; w < words; ++w) shared |= __ldg(a + w) & __ldg(b + w);
    return shared != 0;
  }
};

template <class T>
SameId<T> same_id(const Relevance& r) {
  return {static_cast<const T*>(r.queries), static_cast<const T*>(r.items)};
}

template <class Launch>
void with_relevance(const Relevance& r, const Launch& launch) {
  if (r.words > 0)
    return launch(SharedLabel{static_cast<const uint64_t*>(r.queries), static_cast<const uint64_t*>(r.items), r.words});
  switch (r.id_bytes) {
    case 1: return launch(same_id<uint8_t>(r));
    case 2: return launch(same_id<uint16_t>(r));
    case 4: return launch(same_id<uint32_t>(r));
    default: return launch(same_id<uint64_t>(r));
  }
}

template <int N>
struct Words {
  static constexpr int value = N;
  // Items a thread holds at once, so that several loads are in flight and each staged query is used again.
  static constexpr int items = N == 0 ? 1 : N <= 2 ? 8 : N <= 4 ? 4 : N <= 8 ? 2 : 1;
};

// Codes of many lengths at once: up to 256 bits in registers.
template <class Launch>
void with_prefix_words(int words, const Launch& launch) {
  if (words <= 1) return launch(Words<1>{});
  if (words <= 2) return launch(Words<2>{});
  if (words <= 4) return launch(Words<4>{});
  if (words <= 8) return launch(Words<8>{});
  return launch(Words<0>{});
}

// Codes of one length: always in registers.
template <class Launch>
void with_words(int words, const Launch& launch) {
  if (words <= 1) return launch(Words<1>{});
  if (words <= 2) return launch(Words<2>{});
  if (words <= 4) return launch(Words<4>{});
  if (words <= 8) return launch(Words<8>{});
  if (words <= 16) return launch(Words<16>{});
  return launch(Words<32>{});
}

// Items a block scans: the database is cut so that one tile of queries fills the card several times over.
inline int64_t chunk_items(int64_t items, int64_t query_tiles, int multiprocessors, int64_t most) {
  const int64_t blocks = std::max<int64_t>(1, divide_up(8 * multiprocessors, query_tiles));
  const int64_t least = 4 * kThreads;
  return std::clamp<int64_t>(divide_up(divide_up(items, blocks), kThreads) * kThreads, least, most);
}

inline dim3 grid_of(int64_t chunks, int64_t query_tiles) {
  if (query_tiles > 65535) throw std::runtime_error("nhl_fast CUDA: too many queries at once; pass them in parts");
  return dim3(static_cast<unsigned>(chunks), static_cast<unsigned>(query_tiles));
}

}  // namespace nhl::cuda
