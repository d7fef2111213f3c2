// The scan by population counts, for devices without binary tensor cores and rows that lie on no word; and the choice.
#include "find.cuh"

namespace nhl::cuda {
namespace {

constexpr int kTile = 8;  // queries a block holds

// Floor: popc, 16 a clock an SM, or HBM when the queries are few.
template <int W, int I>
__global__ void __launch_bounds__(kThreads, W >= 32 ? 3 : 4)
    popc_kernel(Rows queries, Rows items, Layout query_layout, Layout layout, int64_t chunk, Find find) {
  extern __shared__ __align__(16) uint32_t query_words[];
  __shared__ int64_t limits[kTile];
  const int64_t first = static_cast<int64_t>(blockIdx.y) * kTile;
  const int num = static_cast<int>(min(static_cast<int64_t>(kTile), queries.count - first));
  stage_queries<W>(queries, query_layout, first, first + num, query_words);
  if (threadIdx.x < kTile) limits[threadIdx.x] = threadIdx.x < num ? find.limit_of(first + threadIdx.x) : 0;
  __syncthreads();
  int64_t any = 0;
  for (int q = 0; q < num; ++q) any |= limits[q];
  if (any == 0) return;
  const int lane = threadIdx.x % 32;
  const int64_t begin = blockIdx.x * chunk, end = min(items.count, begin + chunk);
  for (int64_t at = begin; at < end; at += I * kThreads) {
    Code<W> x[I];
    int out_of_reach[I];
    load_items<W>(x, out_of_reach, items, layout, at, end, find.allow);
    for (int q = 0; q < num; ++q) {
      const int64_t limit = limits[q];
      const int reach = reach_of(limit);
      const auto query = staged<W>(query_words, q, query_layout);
#pragma unroll
      for (int j = 0; j < I; ++j) {
        const int d = distance<W>(x[j], query) + out_of_reach[j];
        if (__ballot_sync(~0u, d < reach) == 0) continue;
        const int64_t id = at + j * kThreads + threadIdx.x;
        const bool mine = (static_cast<int64_t>(d) << kIdBits | id) < limit;
        const unsigned taken = __ballot_sync(~0u, mine);
        unsigned long long start = 0;
        if (lane == 0 && taken) start = atomicAdd(find.counts + first + q, static_cast<unsigned long long>(__popc(taken)));
        start = __shfl_sync(~0u, start, 0);
        if (mine) find.put(first + q, static_cast<int64_t>(start) + __popc(taken & ((1u << lane) - 1)), d, id);
      }
    }
  }
}

}  // namespace

void scan_popc(const Rows& queries, const Rows& items, int64_t bits, const Find& find, const Context& context) {
  const Layout query_layout = layout_of(queries, bits), layout = layout_of(items, bits);
  const int64_t tiles = divide_up(queries.count, kTile);
  const int64_t chunk = chunk_items(items.count, find.sparse ? divide_up(tiles, sparse_blocks(items.count)) : tiles,
                                    context.multiprocessors, 1 << 20);
  with_words(layout.words, [&](auto words) {
    constexpr int W = decltype(words)::value, I = decltype(words)::items;
    popc_kernel<W, I><<<grid_of(divide_up(items.count, chunk), tiles), kThreads, 4 * kTile * W, context.stream>>>(
        queries, items, query_layout, layout, chunk, find);
    check(cudaGetLastError());
  });
}

void scan(const Rows& queries, const Rows& items, int64_t bits, const Find& find, const Context& context) {
  if (queries.count == 0 || items.count == 0) return;
  const char* misfit = nullptr;
  if (context.scan != Scan::popc && !in_words(items)) misfit = "reads rows in words of 4 bytes; these rows don't begin on such words";
  if (context.scan == Scan::imma && bits > 512) misfit = "takes codes of 512 bits at most";
  if (misfit != nullptr && context.scan_is_forced)
    throw std::runtime_error(std::string("nhl_fast CUDA: NHL_FAST_CUDA_SCAN names a unit that ") + misfit);
  const Scan unit = misfit == nullptr ? context.scan : Scan::popc;
  const auto run = unit == Scan::mma ? scan_mma : unit == Scan::imma ? scan_imma : scan_popc;
  run(queries, items, bits, find, context);
}

}  // namespace nhl::cuda
