// Sums over rows.

namespace nhl::step {
namespace {

double dot(const float* a, const float* b, int64_t n) {
  // Partial sums of one vector's lanes stay short.
  double total = 0;
  for (int64_t i = 0; i < n; i += 64 * kLanes) {
    const int64_t end = n - i < 64 * kLanes ? n : i + 64 * kLanes;
    V s[2] = {};
    int64_t j = i;
    for (; j + 2 * kLanes <= end; j += 2 * kLanes) {
      s[0] += load(a + j) * load(b + j);
      s[1] += load(a + j + kLanes) * load(b + j + kLanes);
    }
    for (; j < end; j += kLanes) s[0] += load_first(a + j, end - j) * load_first(b + j, end - j);
    total += sum(s[0] + s[1]);
  }
  return total;
}

void add_scaled(const float* x, float scale, int64_t n, float* out) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) store(out + i, load(out + i) + scale * load(x + i));
  for (; i < n; ++i) out[i] += scale * x[i];
}

bool finite(const float* x, int64_t n) {
  I bad = {};
  for (int64_t i = 0; i < n; i += kLanes) bad |= (bits_of(load_first(x + i, n - i)) & 0x7f800000) == 0x7f800000;
  V ones = only(bad, splat(1.0f));
  return sum(ones) == 0;
}

// out[k * m + i] += sum over rows of <left_k, right_i[:b_k]> for i >= k; both rows x padded_width.
void gram_dots(const Layout& layout, const float* left, const float* right, int64_t rows, double* out) {
  const int64_t m = layout.m, stride = layout.padded_width();
  for (int64_t k = 0; k < m; ++k) {
    const int64_t b = layout.lengths[k], whole = b / kLanes * kLanes;
    const int64_t together = rows_together(b);
    for (int64_t i = k; i < m; ++i) {
      for (int64_t begin = 0; begin < rows; begin += together) {
        V total = {};
        for (int64_t r = begin; r < rows && r < begin + together; ++r) {
          const float *const x = left + r * stride + layout.padded_starts[k];
          const float *const y = right + r * stride + layout.padded_starts[i];
          for (int64_t c = 0; c < whole; c += kLanes) total += load(x + c) * load(y + c);
          if (whole < b) total += only(first_lanes(b - whole), load(x + whole) * load(y + whole));
        }
        out[k * m + i] += sum(total);
      }
    }
  }
}

// out (rows x bits) = sum over k of weights[k] deltas_k, deltas rows x padded_width.
void weigh(const Layout& layout, const float* deltas, int64_t rows, const float* weights, float* out) {
  const int64_t bits = layout.bits();
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t k = layout.m - 1; k >= 0; --k) {
      const float* const x = deltas + r * layout.padded_width() + layout.padded_starts[k];
      float* const y = out + r * bits;
      const int64_t b = layout.lengths[k];
      const V a = splat(weights[k]);
      for (int64_t c = 0; c < b; c += kLanes) {
        const V old = k == layout.m - 1 ? V{} : load_first(y + c, b - c);
        store_first(y + c, old + a * load(x + c), b - c);
      }
    }
}

}  // namespace
}  // namespace nhl::step
