// The scan on the binary tensor cores. With A = [q, not q] and B = [not x, x], the ones of A and B are the Hamming
// distance; B comes straight from packed rows.
#include "products.cuh"
#include "tiles.cuh"

namespace nhl::cuda {
namespace {

template <int W>
struct Binary {
  static constexpr int R = Fragment<W>::R, kA = W <= 2 ? 2 : 4;

  static constexpr int blocks(int tiles) { return tiles == 1 && W <= 16 ? 3 : 2; }

  // 64 bits: lanes of words 0 and 1 hold q, the two others its complement.
  __device__ static __forceinline__ void set(uint32_t (&a)[kA], int h, uint32_t bits, uint32_t counting, int lane) {
    a[h] = W <= 2 && lane % 4 >= 2 ? ~bits & counting : bits;
    if constexpr (W > 2) a[2 + h] = ~bits & counting;
  }

  __device__ static __forceinline__ int base(uint32_t, int) { return 0; }

  template <int MT>
  __device__ static __forceinline__ void multiply(int (&d)[MT][4], const uint32_t (&a)[MT][R][kA], const uint32_t (&b)[R],
                                                  const int (&c)[MT][4], int lane) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ < 1000
    const uint32_t flip = lane % 4 < 2 ? ~0u : 0;
#pragma unroll
    for (int m = 0; m < MT; ++m) {
      if constexpr (W <= 2) {
        mma_and_128(d[m], a[m][0], b[0] ^ flip, c[m]);
      } else {
        mma_and_256(d[m], a[m][0], ~b[0], b[0], c[m]);
#pragma unroll
        for (int r = 1; r < R; ++r) mma_and_256(d[m], a[m][r], ~b[r], b[r], d[m]);
      }
    }
#else
    __trap();  // sm_100 has no such product; scan() does not come here
#endif
  }
};

template <int W>
void launch(const Rows& queries, const Rows& items, int64_t bits, const Find& find, const Context& context) {
  constexpr int MT = W <= 8 ? 4 : W <= 16 ? 2 : 1, U = W <= 4 ? 8 : W <= 8 ? 4 : W <= 16 ? 2 : 1;
  const auto run = queries.count <= 16 ? launch_tiles<Binary, W, 1, U> : launch_tiles<Binary, W, MT, U>;
  run(queries, items, bits, find, context);
}

}  // namespace

void scan_mma(const Rows& queries, const Rows& items, int64_t bits, const Find& find, const Context& context) {
  const int64_t words = divide_up(bits, 32);
  const auto run = words <= 2    ? launch<2>
                   : words <= 4  ? launch<4>
                   : words <= 8  ? launch<8>
                   : words <= 16 ? launch<16>
                                 : launch<32>;
  run(queries, items, bits, find, context);
}

}  // namespace nhl::cuda
