// The scan on the tensor cores' 8-bit integers, up to 512 bits: an item's bits become bytes of 0 and 1 in registers, a
// query's are 1 where its bit is 0 and -1 where it is 1. The ones of q and the product then add up to the distance.
#include "products.cuh"
#include "tiles.cuh"

namespace nhl::cuda {
namespace {

// Bits `at`, 8 + at, 16 + at and 24 + at of a word, a byte each.
__device__ __forceinline__ uint32_t bytes_of(uint32_t word, int at) { return word >> at & 0x01010101; }

template <int W>
struct Integer {
  // A word of a lane is 32 numbers: four products of 4 and 4 numbers a lane.
  static constexpr int R = Fragment<W>::R, kA = 16;

  static constexpr int blocks(int) { return 2; }

  __device__ static __forceinline__ void set(uint32_t (&a)[kA], int h, uint32_t bits, uint32_t counting, int lane) {
    if (W <= 2 && lane % 4 >= 2) counting = bits = 0;  // words 0 and 1 are with the lanes before
#pragma unroll
    for (int i = 0; i < 8; ++i) a[i / 2 * 4 + i % 2 * 2 + h] = bytes_of(counting, i) | bytes_of(bits, i) * 0xfe;
  }

  __device__ static __forceinline__ int base(uint32_t bits, int lane) {
    return W <= 2 && lane % 4 >= 2 ? 0 : __popc(bits);
  }

  template <int MT>
  __device__ static __forceinline__ void multiply(int (&d)[MT][4], const uint32_t (&a)[MT][R][kA], const uint32_t (&b)[R],
                                                  const int (&c)[MT][4], int) {
#pragma unroll
    for (int r = 0; r < R; ++r)
#pragma unroll
      for (int s = 0; s < 4; ++s) {
        const uint32_t low = bytes_of(b[r], 2 * s), high = bytes_of(b[r], 2 * s + 1);
#pragma unroll
        for (int m = 0; m < MT; ++m) {
          const uint32_t own[4] = {a[m][r][4 * s], a[m][r][4 * s + 1], a[m][r][4 * s + 2], a[m][r][4 * s + 3]};
          if (r + s == 0) {
            mma_s8_u8(d[m], own, low, high, c[m]);
          } else {
            mma_s8_u8(d[m], own, low, high, d[m]);
          }
        }
      }
  }
};

template <int W>
void launch(const Rows& queries, const Rows& items, int64_t bits, const Find& find, const Context& context) {
  constexpr int MT = W <= 4 ? 2 : 1, U = W <= 4 ? 8 : W <= 8 ? 4 : 2;
  const auto run = queries.count <= 16 ? launch_tiles<Integer, W, 1, U> : launch_tiles<Integer, W, MT, U>;
  run(queries, items, bits, find, context);
}

}  // namespace

void scan_imma(const Rows& queries, const Rows& items, int64_t bits, const Find& find, const Context& context) {
  const int64_t words = divide_up(bits, 32);
  const auto run = words <= 2 ? launch<2> : words <= 4 ? launch<4> : words <= 8 ? launch<8> : launch<16>;
  run(queries, items, bits, find, context);
}

}  // namespace nhl::cuda
