// Sign + pack. x > 0 is decided on the bits of x: as an integer, x lies in 1 .. infinity. That is the same
// answer in every rounding mode, denormals included.
#include "plan.h"

namespace nhl::hamming {
namespace {

void pack64(const uint64_t* x, int64_t bits, uint8_t* out) {
  for (int64_t i = 0; i < bits; i += 8) {
    uint32_t byte = 0;
    for (int64_t j = i; j < bits && j < i + 8; ++j)
      byte |= static_cast<uint32_t>(x[j] - 1 < 0x7ff0000000000000ull) << (7 - (j - i));
    out[i / 8] = static_cast<uint8_t>(byte);
  }
}

template <class T, class PackRow>
void pack_rows(const T* x, int64_t rows, int64_t bits, int64_t row_stride, int64_t column_stride, uint8_t* out,
               const Executor& executor, const PackRow& pack_row) {
  const int64_t bytes = (bits + 7) / 8, rows_a_unit = std::max<int64_t>(1, 65536 / bits);
  run_units(
      executor, divide_up(rows, rows_a_unit),
      [&] { return std::make_unique<std::vector<T>>(column_stride == 1 ? 0 : bits); },
      [&](int64_t unit, std::vector<T>& gathered) {
        for (int64_t r = unit * rows_a_unit; r < std::min(rows, (unit + 1) * rows_a_unit); ++r) {
          const T* row = x + r * row_stride;
          if (column_stride != 1) {
            for (int64_t i = 0; i < bits; ++i) gathered[i] = row[i * column_stride];
            row = gathered.data();
          }
          pack_row(row, out + r * bytes);
        }
      });
}

}  // namespace

void pack(const void* x, Float type, int64_t rows, int64_t bits, int64_t row_stride, int64_t column_stride,
          uint8_t* out, const Executor& executor) {
  const Kernels& kernels = active_kernels();
  if (rows == 0 || bits == 0) return;
  switch (type) {
    case Float::f16:
    case Float::bf16: {
      const uint16_t infinity = type == Float::f16 ? 0x7c00 : 0x7f80;
      return pack_rows(static_cast<const uint16_t*>(x), rows, bits, row_stride, column_stride, out, executor,
                       [&](const uint16_t* row, uint8_t* to) { kernels.pack16(row, bits, infinity, to); });
    }
    case Float::f32:
      return pack_rows(static_cast<const uint32_t*>(x), rows, bits, row_stride, column_stride, out, executor,
                       [&](const uint32_t* row, uint8_t* to) { kernels.pack32(row, bits, to); });
    case Float::f64:
      return pack_rows(static_cast<const uint64_t*>(x), rows, bits, row_stride, column_stride, out, executor,
                       [&](const uint64_t* row, uint8_t* to) { pack64(row, bits, to); });
  }
}

}  // namespace nhl::hamming
