// The CUDA engine's raw-pointer contract. All pointers but those of host structs are device pointers, everything
// runs on `stream`, and nothing waits for the device. Conventions are those of ../hamming.h; codes have at most
// 1024 bits.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <functional>
#include <vector>

#include "../formats.h"

namespace nhl::cuda {

constexpr int64_t kMaxBits = 1024;

struct Rows {
  const uint8_t* data;
  int64_t count;
  int64_t stride;
};

// Equal ids (`words` 0), or label sets that share a bit; see ../hamming.h.
struct Relevance {
  const void* queries;
  const void* items;
  int id_bytes;
  int words;
};

// The unit that counts bits in a search's scan: population counts, the tensor cores' binary or 8-bit integer products.
enum class Scan { popc, mma, imma };

struct Context {
  cudaStream_t stream;
  int multiprocessors;
  Scan scan;            // used for rows that it can read, else popc
  bool scan_is_forced;  // refuse such rows instead
  // Device memory that lives until the operator returns (stream-ordered, from PyTorch's allocator), as it is or zeroed.
  std::function<void*(int64_t bytes)> scratch, zeros;
  int64_t sample = 16384;     // items, at least, from which a top-k search learns where to look
  int64_t candidates = 8192;  // a query, at most, a power of two
  int64_t noted = int64_t{512} << 20;  // bytes, about, for what gains are summed from
};

// bytes = 2, 4 or 8 a number; `infinity` is the number's bit pattern for it.
void pack(const void* x, int bytes, uint64_t infinity, int64_t rows, int64_t bits, int64_t row_stride,
          int64_t column_stride, uint8_t* out, const Context& context);

// out[m][q][i].
void distances(const Rows& queries, const Rows& items, const std::vector<int64_t>& lengths, int32_t* out,
               const Context& context);

// counts: for each length in turn [q][d][2], (irrelevant, relevant); zeroed by the caller.
void histograms(const Rows& queries, const Rows& items, const std::vector<int64_t>& lengths,
                const Relevance& relevance, int64_t* counts, const Context& context);

// Where gains end, in increasing ranks, and where they go, [m][q][count]; a count of 0 leaves them out.
struct Gains {
  const int64_t* ends = nullptr;
  int count = 0;
  int64_t last = 0;  // ends[count - 1]
  double* out = nullptr;
};

// From `counts` as histograms makes them: precision, retrieved [m][q]; hits, recall [m][n]; all overwritten.
void rank_sums(const Rows& queries, const Rows& items, const std::vector<int64_t>& lengths,
               const Relevance& relevance, int64_t cutoff, const int64_t* counts, double* precision,
               int64_t* retrieved, double* hits, double* recall, const Gains& gains, const Context& context);

// The k nearest by (distance, id), padded with -1; ids begin at `base`. k is at most a quarter of context.candidates.
void nearest(const Rows& queries, const Rows& items, int64_t bits, int64_t k, const uint8_t* allow, int64_t base,
             int32_t* distances, int64_t* ids, const Context& context);

// The same for any k, as keys: distance << kIdBits | id; rows come in no particular order and are padded with
// kNoNeighbour.
constexpr int kIdBits = 44;
constexpr int64_t kNoNeighbour = INT64_MAX;
void nearest_keys(const Rows& queries, const Rows& items, int64_t bits, int64_t k, const uint8_t* allow, int64_t* out,
                  const Context& context);

// Neighbours within a radius: first how many each query has, then, given where each query's begin, who: the
// keys are (query * (bits + 1) + distance) << id_bits | id, in no particular order within a query.
void count_within(const Rows& queries, const Rows& items, int64_t bits, int64_t radius, const uint8_t* allow,
                  int64_t* counts, const Context& context);
void collect_within(const Rows& queries, const Rows& items, int64_t bits, int64_t radius, const uint8_t* allow,
                    const int64_t* offsets, int id_bits, int64_t* out, const Context& context);

// Ids of `each` items for each query.
struct Chosen {
  const int64_t* ids;
  int64_t queries, each;
};

// `count` rows of `width` numbers, `stride` numbers apart.
struct Vectors {
  const void* data;
  hamming::Number type;
  int64_t count, width, stride;
};

// out[q][c], as in ../hamming.h; NaN for an id that is no row, and for a vector with a number that is not finite.
void score_vectors(const Chosen& chosen, const float* queries, const Vectors& vectors, bool unit, float* out,
                   const Context& context);
void score_codes(const Chosen& chosen, const float* outputs, int64_t stride, const Rows& codes, int64_t length,
                 float* out, const Context& context);

// out[i] = in[0] + ... + in[i].
void running_sum(const int64_t* in, int64_t count, int64_t* out, const Context& context);

// Sorted keys to distances and ids: distance = (key >> id_bits) % bins, id = the low bits + base; kNoNeighbour
// becomes -1 and -1.
void split_keys(const int64_t* keys, int64_t count, int id_bits, int64_t bins, int64_t base, int32_t* distances,
                int64_t* ids, const Context& context);

}  // namespace nhl::cuda
