// Distances and histograms of every prefix length in one pass over the items.
#include "device.cuh"

namespace nhl::cuda {
namespace {

constexpr int kTile = 8;  // queries a block holds

// Floor: HBM (writes 4 bytes a pair and length).
template <int W>
__global__ void __launch_bounds__(kThreads)
    distances_kernel(Rows queries, Rows items, Program program, Layout query_layout, int64_t chunk,
                     int32_t* __restrict__ out) {
  extern __shared__ __align__(16) uint32_t query_words[];
  const int64_t first = static_cast<int64_t>(blockIdx.y) * kTile;
  const int num = static_cast<int>(min(static_cast<int64_t>(kTile), queries.count - first));
  stage_queries<W>(queries, query_layout, first, first + num, query_words);
  __syncthreads();
  const int64_t end = min(items.count, (blockIdx.x + 1) * chunk);
  for (int64_t i = blockIdx.x * chunk + threadIdx.x; i < end; i += kThreads) {
    const Code<W> x = load_row<W>(items.data + i * items.stride, program.layout);
    for (int q = 0; q < num; ++q)
      prefix_distances<W>(x, staged<W>(query_words, q, query_layout), program, [&](const Step& step, int d) {
        out[(static_cast<int64_t>(step.first) * queries.count + first + q) * items.count + i] = d;
      });
  }
}

// Floor: popc, 16 a clock an SM, with one shared-memory increment a pair and length close behind.
template <int W, int I, bool Standard, class Relevant>
__global__ void __launch_bounds__(kThreads, 4)
    histogram_kernel(Rows queries, Rows items, Program program, Layout query_layout, int64_t chunk, int tile, int bins,
                     Relevant relevant, unsigned long long* __restrict__ counts) {
  extern __shared__ __align__(16) uint32_t shared[];
  uint32_t* const query_words = shared;
  uint32_t* const counters = shared + tile * staged_words<W>(query_layout);  // [tile + 1][bins][2]
  const int64_t first = static_cast<int64_t>(blockIdx.y) * tile;
  const int num = static_cast<int>(min(static_cast<int64_t>(tile), queries.count - first));
  stage_queries<W>(queries, query_layout, first, first + num, query_words);
  for (int b = threadIdx.x; b < (tile + 1) * bins * 2; b += kThreads) counters[b] = 0;
  __syncthreads();
  const int64_t end = min(items.count, (blockIdx.x + 1) * chunk);
  for (int64_t at = blockIdx.x * chunk + threadIdx.x; at < end; at += I * kThreads) {
    Code<W> x[I];
    decltype(relevant.item(0)) labels[I];
#pragma unroll
    for (int j = 0; j < I; ++j) {
      const int64_t i = min(at + j * kThreads, end - 1);
      x[j] = load_row<W>(items.data + i * items.stride, program.layout);
      labels[j] = relevant.item(i);
    }
    for (int q = 0; q < num; ++q) {
      const auto query = staged<W>(query_words, q, query_layout);
      const auto label = relevant.query(first + q);
#pragma unroll
      for (int j = 0; j < I; ++j) {
        const int64_t i = at + j * kThreads;
        // Past the end, into counters that nobody reads: the loop has no branch that threads disagree on.
        uint32_t* const mine = counters + (i < end ? q : tile) * bins * 2 + relevant.match(label, labels[j]);
        const auto add = [&](const Step& step, int d) { atomicAdd(mine + (step.first + d) * 2, 1u); };
        if constexpr (Standard) {
          standard_distances(x[j], query, add);
        } else {
          prefix_distances<W>(x[j], query, program, add);
        }
      }
    }
  }
  __syncthreads();
  // Integers add up to the same in any order.
  for (int q = 0; q < num; ++q)
    for (int s = 0; s < program.count; ++s) {
      const int from = program.steps[s].first, to = s + 1 < program.count ? program.steps[s + 1].first : bins;
      unsigned long long* const target = counts + 2 * (from * queries.count + (first + q) * (to - from));
      for (int b = threadIdx.x; b < (to - from) * 2; b += kThreads) {
        const uint32_t count = counters[(q * bins + from) * 2 + b];
        if (count) atomicAdd(target + b, static_cast<unsigned long long>(count));
      }
    }
}

struct Group {
  Program program;
  int bins;
  size_t first, last;  // lengths
};

// Lengths in groups that a program holds and whose counters fit a block's shared memory.
std::vector<Group> groups_of(const Rows& items, const std::vector<int64_t>& lengths, int most_bins) {
  std::vector<Group> groups;
  for (size_t m = 0; m < lengths.size();) {
    Group group{};
    group.first = m;
    for (; m < lengths.size() && group.program.count < kMaxSteps; ++m) {
      if (group.program.count > 0 && group.bins + lengths[m] + 1 > most_bins) break;
      const int word = static_cast<int>((lengths[m] - 1) / 32);
      group.program.steps[group.program.count++] = {word, leading_bits(lengths[m] - 32 * word), group.bins};
      group.bins += static_cast<int>(lengths[m]) + 1;
    }
    group.last = m;
    group.program.layout = layout_of(items, lengths[m - 1]);
    groups.push_back(group);
  }
  return groups;
}

}  // namespace

void distances(const Rows& queries, const Rows& items, const std::vector<int64_t>& lengths, int32_t* out,
               const Context& context) {
  if (queries.count == 0 || items.count == 0) return;
  for (Group& group : groups_of(items, lengths, INT32_MAX / 2)) {
    for (int s = 0; s < group.program.count; ++s) group.program.steps[s].first = s;
    const Layout query_layout = layout_of(queries, lengths[group.last - 1]);
    const int64_t tiles = divide_up(queries.count, kTile);
    const int64_t chunk = chunk_items(items.count, tiles, context.multiprocessors, 1 << 16);
    with_prefix_words(group.program.layout.words, [&](auto words) {
      constexpr int W = decltype(words)::value;
      const dim3 grid = grid_of(divide_up(items.count, chunk), tiles);
      const int shared_bytes = 4 * kTile * staged_words<W>(query_layout);
      distances_kernel<W><<<grid, kThreads, shared_bytes, context.stream>>>(
          queries, items, group.program, query_layout, chunk, out + group.first * queries.count * items.count);
      check(cudaGetLastError());
    });
  }
}

void histograms(const Rows& queries, const Rows& items, const std::vector<int64_t>& lengths,
                const Relevance& relevance, int64_t* counts, const Context& context) {
  if (queries.count == 0 || items.count == 0) return;
  constexpr int kMostBins = kSharedBytes / 16 - 64;
  int64_t offset = 0;
  for (const Group& group : groups_of(items, lengths, kMostBins)) {
    const Layout query_layout = layout_of(queries, lengths[group.last - 1]);
    with_prefix_words(group.program.layout.words, [&](auto words) {
      constexpr int W = decltype(words)::value, I = std::min(decltype(words)::items, 4);
      const int query_bytes = 4 * staged_words<W>(query_layout) + 8 * group.bins;
      const int tile = std::clamp((kSharedBytes - 8 * group.bins) / query_bytes, 1, kTile);
      const int64_t tiles = divide_up(queries.count, tile);
      const int64_t chunk = chunk_items(items.count, tiles, context.multiprocessors, 1 << 20);
      const dim3 grid = grid_of(divide_up(items.count, chunk), tiles);
      with_relevance(relevance, [&](auto relevant) {
        // Label sets are compared in a loop, which leaves fewer registers.
        constexpr int J = std::is_same_v<decltype(relevant), SharedLabel> ? std::min(I, 2) : I;
        const auto run = [&](auto standard) {
          constexpr bool S = decltype(standard)::value;
          histogram_kernel<W, J, S><<<grid, kThreads, tile * query_bytes + 8 * group.bins, context.stream>>>(
              queries, items, group.program, query_layout, chunk, tile, group.bins, relevant,
              reinterpret_cast<unsigned long long*>(counts + offset));
        };
        if constexpr (W == 4) {
          if (StandardLengths::are(lengths)) return run(std::true_type{});
        }
        run(std::false_type{});
      });
      check(cudaGetLastError());
    });
    offset += 2 * group.bins * queries.count;
  }
}

}  // namespace nhl::cuda
