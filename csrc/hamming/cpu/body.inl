// The one body of the block kernels, written on a small instruction-set trait I:
//   lanes                     items a vector holds
//   load, set1, xor_, add     on vectors of 32-bit lanes; and_ with a broadcast word
//   count(x)                  partial population counts; up to `flush` of them may be added before finish
//   finish(partial)           32-bit lane counts
//   below(d, limit)           one bit a lane: d < limit
//   compress(...)             append the chosen lanes
//   store16(p, d)             low 16 bits of every lane
//   transpose4(...)           `lanes` rows x 16 bytes -> 4 words; transpose2: adjacent rows of 8 bytes
//   repeat<S>(row)            a row of S bytes over and over
//   rows<S>(p, q, mask)       distances of `lanes` adjacent rows of S bytes, in an order of its own
//   in_order<S>(d)            the same in the rows' order
//   nonzero64(p)              one bit a byte of 64: is it not zero
//   positive16/32(p, inf)     one bit a lane: 0 < x <= inf, as signed integers (floats order like integers)
// Included by one file per instruction set, inside its NHL_TARGET region: no standard header in here.

namespace nhl::hamming {
namespace {

// The first n bytes (at most 4) of a word.
inline uint32_t load_bytes(const uint8_t* p, int64_t n) {
  uint8_t bytes[4] = {};
  for (int64_t i = 0; i < 4; ++i)
    if (i < n) bytes[i] = p[i];
  uint32_t word;
  __builtin_memcpy(&word, bytes, 4);
  return word;
}

// numpy.packbits puts the first number into the most significant bit.
inline uint8_t reverse_bits(uint32_t b) {
  return static_cast<uint8_t>(((b * 0x0802u & 0x22110u) | (b * 0x8020u & 0x88440u)) * 0x10101u >> 16);
}

template <class I>
void transpose_body(const uint8_t* rows, int64_t stride, int64_t count, int64_t bytes, uint32_t tail,
                    uint32_t* block, int64_t pitch) {
  const int64_t words = (bytes + 3) / 4;
  const int64_t padded = (count + kBlockAlign - 1) / kBlockAlign * kBlockAlign;
  const int64_t end = (count - 1) * stride + bytes;  // bytes that may be read
  for (int64_t w = 0; w < words; w += 4) {
    uint32_t* const out = block + w * pitch;
    const int64_t width = bytes - 4 * w < 16 ? bytes - 4 * w : 16;
    int64_t i = 0;
    if (width == 4 && stride == 4) {
      __builtin_memcpy(out, rows, 4 * count);
      i = count;
    } else if (width == 8 && stride == 8) {
      for (; i + I::lanes <= count; i += I::lanes) I::transpose2(rows + i * 8, out + i, pitch);
    } else {
      // Reads 16 bytes a row, which may be the next rows' where a row has fewer; what lies beyond `bytes` ends
      // up in words that nobody reads, or is masked by `tail`.
      for (; i + I::lanes <= count && (i + I::lanes - 1) * stride + 4 * w + 16 <= end; i += I::lanes)
        I::transpose4(rows + i * stride + 4 * w, stride, out + i, pitch);
    }
    for (; i < count; ++i)
      for (int64_t j = 0; 4 * j < width; ++j)
        out[j * pitch + i] = load_bytes(rows + i * stride + 4 * (w + j), width - 4 * j);
  }
  if (tail != ~0u) {
    uint32_t* const out = block + (words - 1) * pitch;
    for (int64_t i = 0; i < count; ++i) out[i] &= tail;
  }
  for (int64_t w = 0; w < words; ++w)
    for (int64_t i = count; i < padded; ++i) block[w * pitch + i] = 0;
}

template <class I>
void distances_body(const uint32_t* block, int64_t pitch, int64_t count, const uint32_t* query, int64_t words,
                    const Step* steps, int64_t num_steps, uint16_t* out, int64_t out_pitch) {
  using V = typename I::V;
  constexpr int U = 4;
  for (int64_t i = 0; i < count; i += U * I::lanes) {
    V partial[U], total[U];
    for (int u = 0; u < U; ++u) partial[u] = total[u] = I::set1(0);
    int64_t s = 0;
    int pending = 0;
    for (int64_t w = 0; w < words; ++w) {
      const V q = I::set1(query[w]);
      V x[U];
      for (int u = 0; u < U; ++u) x[u] = I::xor_(I::load(block + w * pitch + i + u * I::lanes), q);
      for (; s < num_steps && steps[s].word == w && steps[s].mask != ~0u; ++s)
        for (int u = 0; u < U; ++u) {
          const V d = I::add(partial[u], I::count(I::and_(x[u], steps[s].mask)));
          I::store16(out + s * out_pitch + i + u * I::lanes, I::add(total[u], I::finish(d)));
        }
      for (int u = 0; u < U; ++u) partial[u] = I::add(partial[u], I::count(x[u]));
      if (s < num_steps && steps[s].word == w) {
        for (int u = 0; u < U; ++u)
          I::store16(out + s * out_pitch + i + u * I::lanes, I::add(total[u], I::finish(partial[u])));
        ++s;
      }
      if (++pending == I::flush) {
        pending = 0;
        for (int u = 0; u < U; ++u) {
          total[u] = I::add(total[u], I::finish(partial[u]));
          partial[u] = I::set1(0);
        }
      }
    }
  }
}

// W words a code (0: `words`, known at run time only), G queries, U vectors of items a turn.
template <class I, int W, int G, int U>
void filter_body(const uint32_t* block, int64_t pitch, int64_t count, const uint64_t* valid,
                 const uint32_t* queries, int64_t words, const uint32_t* limits, Hits* hits) {
  using V = typename I::V;
  constexpr int kFixed = W > 0 ? W : 1;
  V q[G][kFixed], limit[G];
  for (int g = 0; g < G; ++g) {
    limit[g] = I::set1(limits[g]);
    for (int w = 0; w < W; ++w) q[g][w] = I::set1(queries[g * words + w]);
  }
  for (int64_t i = 0; i < count; i += U * I::lanes) {
    V d[G][U];
    if constexpr (W > 0) {
      for (int u = 0; u < U; ++u) {
        V x[kFixed];
        for (int w = 0; w < W; ++w) x[w] = I::load(block + w * pitch + i + u * I::lanes);
        for (int g = 0; g < G; ++g) {
          V sum = I::count(I::xor_(x[0], q[g][0]));
          for (int w = 1; w < W; ++w) sum = I::add(sum, I::count(I::xor_(x[w], q[g][w])));
          d[g][u] = I::finish(sum);
        }
      }
    } else {
      for (int g = 0; g < G; ++g)
        for (int u = 0; u < U; ++u) d[g][u] = I::set1(0);
      for (int64_t first = 0; first < words; first += I::flush) {
        const int64_t last = first + I::flush < words ? first + I::flush : words;
        V sum[G][U];
        for (int g = 0; g < G; ++g)
          for (int u = 0; u < U; ++u) sum[g][u] = I::set1(0);
        for (int64_t w = first; w < last; ++w)
          for (int u = 0; u < U; ++u) {
            const V x = I::load(block + w * pitch + i + u * I::lanes);
            for (int g = 0; g < G; ++g)
              sum[g][u] = I::add(sum[g][u], I::count(I::xor_(x, I::set1(queries[g * words + w]))));
          }
        for (int g = 0; g < G; ++g)
          for (int u = 0; u < U; ++u) d[g][u] = I::add(d[g][u], I::finish(sum[g][u]));
      }
    }
    uint32_t mask[G][U], any = 0;
    for (int g = 0; g < G; ++g)
      for (int u = 0; u < U; ++u) any |= mask[g][u] = I::below(d[g][u], limit[g]);
    if (__builtin_expect(any != 0, 0)) {
      for (int u = 0; u < U; ++u) {
        const int64_t at = i + u * I::lanes;
        const uint32_t keep = static_cast<uint32_t>(valid[at / 64] >> (at % 64)) & I::all;
        for (int g = 0; g < G; ++g)
          if (const uint32_t chosen = mask[g][u] & keep)
            hits[g].count += I::compress(chosen, d[g][u], static_cast<uint32_t>(at),
                                         hits[g].distances + hits[g].count, hits[g].positions + hits[g].count);
      }
    }
  }
}

template <class I, int W, int U4, int U1>
void filter_words(const uint32_t* block, int64_t pitch, int64_t count, const uint64_t* valid,
                  const uint32_t* queries, int64_t words, int64_t group, const uint32_t* limits, Hits* hits) {
  if (group == kGroup)
    return filter_body<I, W, kGroup, U4>(block, pitch, count, valid, queries, words, limits, hits);
  for (int64_t g = 0; g < group; ++g)
    filter_body<I, W, 1, U1>(block, pitch, count, valid, queries + g * words, words, limits + g, hits + g);
}

template <class I>
void filter_any(const uint32_t* block, int64_t pitch, int64_t count, const uint64_t* valid,
                const uint32_t* queries, int64_t words, int64_t group, const uint32_t* limits, Hits* hits) {
  for (int64_t g = 0; g < group; ++g) hits[g].count = 0;
  switch (words) {
    case 1: return filter_words<I, 1, 2, 4>(block, pitch, count, valid, queries, words, group, limits, hits);
    case 2: return filter_words<I, 2, 2, 4>(block, pitch, count, valid, queries, words, group, limits, hits);
    case 3: return filter_words<I, 3, 1, 4>(block, pitch, count, valid, queries, words, group, limits, hits);
    case 4: return filter_words<I, 4, 1, 2>(block, pitch, count, valid, queries, words, group, limits, hits);
    default: return filter_words<I, 0, 1, 4>(block, pitch, count, valid, queries, words, group, limits, hits);
  }
}

// Rows are asked for this many bytes ahead: from the third-level cache that is worth a fifth of the time.
constexpr int64_t kAhead = 4096;

// S bytes a row, U vectors of distances a turn.
template <class I, int S, int U>
void filter_rows_body(const uint8_t* rows, int64_t count, const uint64_t* valid, const uint32_t* query,
                      const uint32_t* mask, uint32_t limit, Hits* hits) {
  using V = typename I::V;
  const V q = I::template repeat<S>(query), m = I::template repeat<S>(mask), most = I::set1(limit);
  for (int64_t i = 0; i < count; i += U * I::lanes) {
    const uint8_t* const p = rows + i * S;
    V d[U];
    uint32_t any = 0;
    for (int u = 0; u < U; ++u) {
      const uint8_t* const some = p + u * I::lanes * S;
      for (int64_t line = 0; line < I::lanes * S; line += 64) __builtin_prefetch(some + kAhead + line);
      d[u] = I::template rows<S>(some, q, m);
      any |= I::below(d[u], most);
    }
    if (__builtin_expect(any != 0, 0)) {
      for (int u = 0; u < U; ++u) {
        const int64_t at = i + u * I::lanes;
        const V ordered = I::template in_order<S>(d[u]);
        const uint32_t keep = static_cast<uint32_t>(valid[at / 64] >> (at % 64)) & I::all;
        if (const uint32_t chosen = I::below(ordered, most) & keep)
          hits->count += I::compress(chosen, ordered, static_cast<uint32_t>(at), hits->distances + hits->count,
                                     hits->positions + hits->count);
      }
    }
  }
}

template <class I>
void filter_rows_any(const uint8_t* rows, int64_t stride, int64_t count, const uint64_t* valid,
                     const uint32_t* query, const uint32_t* mask, uint32_t limit, Hits* hits) {
  hits->count = 0;
  switch (stride) {
    case 4: return filter_rows_body<I, 4, 4>(rows, count, valid, query, mask, limit, hits);
    case 8: return filter_rows_body<I, 8, 4>(rows, count, valid, query, mask, limit, hits);
    case 16: return filter_rows_body<I, 16, 2>(rows, count, valid, query, mask, limit, hits);
    default: return filter_rows_body<I, 32, 1>(rows, count, valid, query, mask, limit, hits);
  }
}

// A cache line ahead by as many rows as hide a miss.
constexpr int64_t kRowsAhead = 12;

inline uint32_t differing_bits(const uint8_t* a, const uint8_t* b, int64_t bytes, uint8_t tail) {
  uint32_t sum = 0;
  int64_t i = 0;
  for (; i + 8 < bytes; i += 8) {
    uint64_t x, y;
    std::memcpy(&x, a + i, 8);
    std::memcpy(&y, b + i, 8);
    sum += static_cast<uint32_t>(__builtin_popcountll(x ^ y));
  }
  uint64_t x = 0, y = 0;  // the last 1 to 8 bytes
  std::memcpy(&x, a + i, bytes - i);
  std::memcpy(&y, b + i, bytes - i);
  const uint64_t mask = (static_cast<uint64_t>(tail) << 8 * (bytes - i - 1)) | ((uint64_t{1} << 8 * (bytes - i - 1)) - 1);
  return sum + static_cast<uint32_t>(__builtin_popcountll((x ^ y) & mask));
}

template <class I>
void distances_of_body(const uint8_t* rows, int64_t stride, const int64_t* ids, int64_t count, const uint8_t* query,
                       int64_t bytes, uint8_t tail, uint32_t* out) {
  for (int64_t i = 0; i < count; ++i) {
    if (i + kRowsAhead < count && ids[i + kRowsAhead] >= 0)
      for (int64_t at = 0; at < bytes; at += 64) __builtin_prefetch(rows + ids[i + kRowsAhead] * stride + at);
    out[i] = ids[i] < 0 ? kFar : differing_bits(rows + ids[i] * stride, query, bytes, tail);
  }
}

template <class I>
void nonzero_body(const uint8_t* bytes, int64_t count, uint64_t* out) {
  int64_t i = 0;
  for (; i + 64 <= count; i += 64) out[i / 64] = I::nonzero64(bytes + i);
  if (i == count) return;
  uint64_t last = 0;
  for (int64_t j = i; j < count; ++j) last |= static_cast<uint64_t>(bytes[j] != 0) << (j - i);
  out[i / 64] = last;
}

template <class I, class T, uint32_t (*positive)(const T*, T)>
void pack_body(const T* x, int64_t bits, T infinity, uint8_t* out) {
  int64_t i = 0;
  for (; i + I::lanes <= bits && I::lanes % 8 == 0; i += I::lanes) {
    const uint32_t mask = positive(x + i, infinity);
    for (int b = 0; b < I::lanes / 8; ++b) out[i / 8 + b] = reverse_bits(mask >> (8 * b) & 0xff);
  }
  for (; i < bits; i += 8) {
    uint32_t byte = 0;
    for (int64_t j = i; j < bits && j < i + 8; ++j)
      byte |= static_cast<uint32_t>(static_cast<T>(x[j] - 1) < infinity) << (7 - (j - i));
    out[i / 8] = static_cast<uint8_t>(byte);
  }
}

template <class I>
void pack16_body(const uint16_t* x, int64_t bits, uint16_t infinity, uint8_t* out) {
  pack_body<I, uint16_t, I::positive16>(x, bits, infinity, out);
}

template <class I>
void pack32_body(const uint32_t* x, int64_t bits, uint8_t* out) {
  pack_body<I, uint32_t, I::positive32>(x, bits, 0x7f800000u, out);
}

template <class I>
constexpr Kernels make_kernels() {
  return {transpose_body<I>,    distances_body<I>, filter_any<I>,  filter_rows_any<I>,
          distances_of_body<I>, nonzero_body<I>,   pack16_body<I>, pack32_body<I>};
}

}  // namespace
}  // namespace nhl::hamming
