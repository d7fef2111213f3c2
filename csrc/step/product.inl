// Matrix products: a register tile of rows x vectors, walked over strips of the depth: what a strip reads stays in the
// first-level cache, and sums of strips round less than one long sum. An element's additions come in one order,
// whatever tile it falls into, so that how a product is cut into pieces (threads) changes no bit.

namespace nhl::step {
namespace {

constexpr int64_t kStrip = 64;

template <int R, int C>
NHL_INLINE void tile(const float* a, int64_t row_step, int64_t depth_step, const float* b, int64_t ldb, float* c,
                     int64_t ldc, int64_t depth, bool add) {
  V sum[R][C] = {};
  for (int64_t k = 0; k < depth; ++k) {
    V right[C];
    for (int j = 0; j < C; ++j) right[j] = load(b + k * ldb + j * kLanes);
    for (int r = 0; r < R; ++r) {
      const V left = splat(a[r * row_step + k * depth_step]);
      for (int j = 0; j < C; ++j) sum[r][j] += left * right[j];
    }
  }
  for (int r = 0; r < R; ++r)
    for (int j = 0; j < C; ++j) {
      float* const to = c + r * ldc + j * kLanes;
      store(to, add ? load(to) + sum[r][j] : sum[r][j]);
    }
}

template <int C>
void columns(const float* a, int64_t row_step, int64_t depth_step, const float* b, int64_t ldb, float* c,
             int64_t ldc, int64_t rows, int64_t depth, bool add) {
  int64_t i = 0;
#define NHL_ROWS(R)                                                                            \
  for (; i + R <= rows; i += R)                                                                \
    tile<R, C>(a + i * row_step, row_step, depth_step, b, ldb, c + i * ldc, ldc, depth, add);
  if constexpr (C * 12 <= kAccumulators) {
    NHL_ROWS(12)
  }
  NHL_ROWS(6)
  NHL_ROWS(4)
  NHL_ROWS(2)
  NHL_ROWS(1)
#undef NHL_ROWS
}

// The last columns, fewer than a vector: through buffers that are a vector wide.
void last_columns(const Product& p, const float* a, const float* b, float* c, int64_t count, int64_t depth,
                  bool add) {
  float right[kStrip * kLanes];
  for (int64_t k = 0; k < depth; ++k) store(right + k * kLanes, load_first(b + k * p.ldb, count));
  float out[12 * kLanes];
  for (int64_t i = 0; i < p.rows; i += 12) {
    const int64_t rows = p.rows - i < 12 ? p.rows - i : 12;
    if (add)
      for (int64_t r = 0; r < rows; ++r) store(out + r * kLanes, load_first(c + (i + r) * p.ldc, count));
    columns<1>(a + i * p.row_step, p.row_step, p.depth_step, right, kLanes, out, kLanes, rows, depth, add);
    for (int64_t r = 0; r < rows; ++r) store_first(c + (i + r) * p.ldc, load(out + r * kLanes), count);
  }
}

void product(const Product& p) {
  for (int64_t k = 0; k == 0 || k < p.depth; k += kStrip) {
    const int64_t depth = p.depth - k < kStrip ? p.depth - k : kStrip;
    const bool add = p.add || k > 0;
    const float *a = p.a + k * p.depth_step, *b = p.b + k * p.ldb;
    int64_t j = 0;
#define NHL_COLUMNS(C)                                                                            \
  for (; j + C * kLanes <= p.cols; j += C * kLanes)                                               \
    columns<C>(a, p.row_step, p.depth_step, b + j, p.ldb, p.c + j, p.ldc, p.rows, depth, add);
    if constexpr (kAccumulators >= 24) {
      NHL_COLUMNS(4)
      NHL_COLUMNS(3)
    }
    NHL_COLUMNS(2)
    NHL_COLUMNS(1)
#undef NHL_COLUMNS
    if (j < p.cols) last_columns(p, a, b + j, p.c + j, p.cols - j, depth, add);
  }
}

typedef float F4 __attribute__((vector_size(16)));

// out[c * ldo + r] = x[r * ldx + c]; columns r of out from `rows` to `filled` become zero.
void transpose(const float* x, int64_t ldx, int64_t rows, int64_t cols, float* out, int64_t ldo, int64_t filled) {
  int64_t r = 0;
  for (; r + 4 <= rows; r += 4) {
    int64_t c = 0;
    for (; c + 4 <= cols; c += 4) {
      F4 row[4];
      for (int i = 0; i < 4; ++i) __builtin_memcpy(&row[i], x + (r + i) * ldx + c, 16);
      const F4 a = __builtin_shufflevector(row[0], row[1], 0, 4, 1, 5);
      const F4 b = __builtin_shufflevector(row[2], row[3], 0, 4, 1, 5);
      const F4 d = __builtin_shufflevector(row[0], row[1], 2, 6, 3, 7);
      const F4 e = __builtin_shufflevector(row[2], row[3], 2, 6, 3, 7);
      const F4 done[4] = {__builtin_shufflevector(a, b, 0, 1, 4, 5), __builtin_shufflevector(a, b, 2, 3, 6, 7),
                          __builtin_shufflevector(d, e, 0, 1, 4, 5), __builtin_shufflevector(d, e, 2, 3, 6, 7)};
      for (int i = 0; i < 4; ++i) __builtin_memcpy(out + (c + i) * ldo + r, &done[i], 16);
    }
    for (; c < cols; ++c)
      for (int i = 0; i < 4; ++i) out[c * ldo + r + i] = x[(r + i) * ldx + c];
  }
  for (; r < rows; ++r)
    for (int64_t c = 0; c < cols; ++c) out[c * ldo + r] = x[r * ldx + c];
  if (rows < filled)
    for (int64_t c = 0; c < cols; ++c)
      for (int64_t i = rows; i < filled; ++i) out[c * ldo + i] = 0;
}

}  // namespace
}  // namespace nhl::step
