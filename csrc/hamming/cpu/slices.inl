// The one body of the bit-sliced kernels, written on a small instruction-set trait B:
//   words, V                  64-bit words of a block, a multiple of 4, and a vector of that many
//   load, store, fill         words, and one word over and over
//   and_, without, or_, xor_  without(a, b) = a & ~b
//   add(a, b, c, &carry)      full adder: the sum
//   any(x)                    is a bit set
//   tally(masks, sums)        sums[k] += ones of masks[k], for k from 0 to 7
//   pass(masks, state)        adds the ones of masks[k] to both halves of state[k] (to one, if it is not read)
//   turn(masks, state, before, inside)
//                             the same, and what `turns_of` reads: inside[k * words + w], the ones before word w among
//                             its four words, and before[k * words / 4 + h], the state before the h-th four words
//   unslice(planes, out)      numbers of eight planes as bytes, in the items' order
//   take(bytes)               64 bytes of 0 or 1 as bits; the bytes become 0
//   meet(sets, wanted)        one bit for each of 64 words: does it share a bit with `wanted`
//   positions(bits, at, out)  at + the place of every one, in order, with room for 64 more; returns their number
//   ratios(places, count, number, at, parts)
//                             parts[i % 8] += (number + i + 1) / (at + places[i] + 1), for i < count
// Included by one file per instruction set, inside its NHL_TARGET region: no standard header in here.

namespace nhl::hamming {
namespace {

constexpr int kPlanes = 16;  // two bytes; a distance up to kSlicedBits has eleven

inline int width_of(int64_t n) { return 64 - __builtin_clzll(static_cast<uint64_t>(n)); }

// 8 x 8 bits: bit c of byte r becomes bit r of byte c.
inline uint64_t transpose8(uint64_t x) {
  uint64_t t = (x ^ x >> 7) & 0x00aa00aa00aa00aaull;
  x ^= t ^ t << 7;
  t = (x ^ x >> 14) & 0x0000cccc0000ccccull;
  x ^= t ^ t << 14;
  t = (x ^ x >> 28) & 0x00000000f0f0f0f0ull;
  return x ^ t ^ t << 28;
}

// The places of ones, with no branch a one: words with more than eight are few, or have many more.
template <int64_t words>
int64_t scalar_positions(const uint64_t* bits, uint16_t at, uint16_t* out) {
  uint16_t* to = out;
  for (int64_t w = 0; w < words; ++w, at = static_cast<uint16_t>(at + 64)) {
    uint64_t rest = bits[w];
    const int64_t count = __builtin_popcountll(rest);
    for (int64_t i = 0; i < count; i += 8)
#pragma GCC unroll 8
      for (int64_t u = 0; u < 8; ++u, rest &= rest - 1)
        to[i + u] = static_cast<uint16_t>(at + __builtin_ctzll(rest | 1ull << 63));
    to += count;
  }
  return to - out;
}

template <int width>
void swap_bits(uint64_t* rows, uint64_t low) {
  for (int first = 0; first < 64; first += 2 * width)
    for (int k = first; k < first + width; ++k) {
      const uint64_t t = (rows[k] >> width ^ rows[k + width]) & low;
      rows[k + width] ^= t;
      rows[k] ^= t << width;
    }
}

// 64 x 64 bits: bit c of row r becomes bit r of row c.
inline void transpose64(uint64_t* rows) {
  swap_bits<32>(rows, 0x00000000ffffffffull);
  swap_bits<16>(rows, 0x0000ffff0000ffffull);
  swap_bits<8>(rows, 0x00ff00ff00ff00ffull);
  swap_bits<4>(rows, 0x0f0f0f0f0f0f0f0full);
  swap_bits<2>(rows, 0x3333333333333333ull);
  swap_bits<1>(rows, 0x5555555555555555ull);
}

// Up to eight bits of up to 64 rows, from one byte of each: a word a bit. Bit 0 of a code is its first byte's most
// significant one.
inline void slice_byte(const uint8_t* column, int64_t stride, int64_t count, uint64_t* out) {
  for (int b = 0; b < 8; ++b) out[b] = 0;
  for (int64_t at = 0; at < count; at += 8) {
    const int64_t here = count - at < 8 ? count - at : 8;
    uint64_t eight = 0;
    for (int64_t i = 0; i < here; ++i) eight |= static_cast<uint64_t>(column[(at + i) * stride]) << (8 * i);
    eight = transpose8(eight);
    for (int b = 0; b < 8; ++b) out[b] |= (eight >> (56 - 8 * b) & 0xff) << at;
  }
}

template <class B>
void slice_body(const uint8_t* rows, int64_t stride, int64_t count, int64_t bits, uint64_t* planes) {
  constexpr int64_t W = B::words, kFewBits = 24;  // so few are sliced byte by byte
  uint64_t table[64];
  for (int64_t w = 0; w < W; ++w) {
    const int64_t left = count - 64 * w, here = left < 0 ? 0 : left < 64 ? left : 64;
    const uint8_t* const from = rows + 64 * w * stride;
    for (int64_t first = 0, width; first < bits; first += width) {
      width = bits - first < 64 ? bits - first : 64;
      const uint8_t* const column = from + first / 8;
      if (width <= kFewBits) {
        width = width < 8 ? width : 8;
        slice_byte(column, stride, here, table);
        for (int64_t b = 0; b < width; ++b) planes[(first + b) * W + w] = table[b];
        continue;
      }
      for (int64_t i = 0; i < 64; ++i) table[i] = 0;
      if (width > 56)
        for (int64_t i = 0; i < here; ++i) __builtin_memcpy(table + i, column + i * stride, 8);
      else
        for (int64_t i = 0; i < here; ++i) __builtin_memcpy(table + i, column + i * stride, (width + 7) / 8);
      transpose64(table);
      for (int64_t b = 0; b < width; ++b) planes[(first + b) * W + w] = table[b ^ 7];
    }
  }
}

// Bit-sliced distances of a block: plane p holds bit p of every item's.
template <class B>
struct Sums {
  using V = typename B::V;
  static constexpr int64_t W = B::words;
  V plane[kPlanes];

  Sums() {
#pragma GCC unroll 16
    for (int p = 0; p < kPlanes; ++p) plane[p] = B::fill(0);
  }

  void ripple(int from, int planes, V carry) {
    for (int p = from; p < planes; ++p) {
      const V next = B::and_(plane[p], carry);
      plane[p] = B::xor_(plane[p], carry);
      carry = next;
    }
  }

  // Adds bits [from, to).
  void add(const uint64_t* planes, const uint64_t* query, int64_t from, int64_t to) {
    const auto differs = [&](int64_t i) { return B::xor_(B::load(planes + i * W), B::fill(query[i])); };
    const int most = width_of(to);
    V one = plane[0], two = plane[1], four = plane[2];
    const auto add8 = [&](int64_t i) {
      V a, b, c, d, eight;
      one = B::add(one, differs(i), differs(i + 1), a);
      one = B::add(one, differs(i + 2), differs(i + 3), b);
      two = B::add(two, a, b, c);
      one = B::add(one, differs(i + 4), differs(i + 5), a);
      one = B::add(one, differs(i + 6), differs(i + 7), b);
      two = B::add(two, a, b, d);
      four = B::add(four, c, d, eight);
      return eight;
    };
    for (; from + 16 <= to; from += 16) {
      V carry;
      const V low = add8(from), high = add8(from + 8);
      plane[3] = B::add(plane[3], low, high, carry);
      ripple(4, most, carry);
    }
    if (from + 8 <= to) {
      ripple(3, most, add8(from));
      from += 8;
    }
    plane[0] = one, plane[1] = two, plane[2] = four;
    for (; from < to; ++from) ripple(0, most, differs(from));
  }

  // Calls visit(distance, masks) for every eight distances that some item of `valid` may have.
  template <class Visit>
  void each_eight(int64_t bits, V valid, const Visit& visit) const {
    const int planes = width_of(bits);
    V low[4], middle[4];
    fours(plane, low);
    fours(plane + 2, middle);
    for (int64_t d = 0; d <= bits; d += 16) {
      V rest = valid;
      for (int p = 4; p < planes; ++p)
        rest = d >> p & 1 ? B::and_(rest, plane[p]) : B::without(rest, plane[p]);
      if (!B::any(rest)) continue;
      for (int64_t half = 0; half < 2 && d + 8 * half <= bits; ++half) {
        V masks[8];
        for (int j = 0; j < 2; ++j) {
          const V some = B::and_(rest, middle[2 * half + j]);
          for (int i = 0; i < 4; ++i) masks[4 * j + i] = B::and_(some, low[i]);
        }
        visit(d + 8 * half, masks);
      }
    }
  }

  static void fours(const V* two, V* out) {
    const V ones = B::fill(~0ull);
    out[1] = B::without(two[0], two[1]);
    out[2] = B::without(two[1], two[0]);
    out[3] = B::and_(two[0], two[1]);
    out[0] = B::without(ones, B::or_(two[0], two[1]));
  }
};

template <class B>
void tally_body(const SliceTask& task, uint64_t* items, uint64_t* marked) {
  using V = typename B::V;
  const V valid = B::load(task.valid), chosen = B::load(task.marks);
  const bool some = B::any(chosen);
  Sums<B> sums;
  for (int64_t m = 0, from = 0; m < task.num_lengths; ++m) {
    const int64_t bits = task.lengths[m];
    sums.add(task.planes, task.query, from, bits);
    sums.each_eight(bits, valid, [&](int64_t d, V* masks) {
      B::tally(masks, items + d);
      if (!some) return;
      for (int k = 0; k < 8; ++k) masks[k] = B::and_(masks[k], chosen);
      B::tally(masks, marked + d);
    });
    from = bits;
    items += sliced_rows(bits);
    marked += sliced_rows(bits);
  }
}

template <class B, bool wide>
void turns_of(const TurnScratch& s, int64_t count, uint32_t* out) {
  const uint16_t* const marked = s.marked;
  for (int64_t j = 0; j < count; j += kSpareRecords)
#pragma GCC unroll 8
    for (int64_t u = 0; u < kSpareRecords; ++u) {
      const uint64_t item = marked[j + u];
      uint64_t d = s.low[item];
      if (wide) d |= static_cast<uint64_t>(s.high[item]) << 8;
      const uint64_t at = d * B::words + item / 64, earlier = ~(~0ull << item % 64);
      out[j + u] = s.before[at / 4] + s.inside[at] + static_cast<uint32_t>(__builtin_popcountll(s.masks[at] & earlier));
    }
}

template <class B>
int64_t turns_body(const SliceTask& task, const TurnScratch& s, uint64_t* state, uint32_t* const* records,
                   int64_t at) {
  using V = typename B::V;
  const V valid = B::load(task.valid);
  const int64_t count = B::positions(task.marks, 0, s.marked);
  Sums<B> sums;
  for (int64_t m = 0, from = 0; m < task.num_lengths; ++m) {
    const int64_t bits = task.lengths[m];
    sums.add(task.planes, task.query, from, bits);
    if (count == 0) {
      sums.each_eight(bits, valid, [&](int64_t d, V* masks) { B::pass(masks, state + d); });
    } else {
      const bool wide = bits > 255;
      B::unslice(sums.plane, s.low);
      if (wide) B::unslice(sums.plane + 8, s.high);
      sums.each_eight(bits, valid, [&](int64_t d, V* masks) {
        for (int k = 0; k < 8; ++k) B::store(s.masks + (d + k) * B::words, masks[k]);
        B::turn(masks, state + d, s.before + d * (B::words / 4), s.inside + d * B::words);
      });
      if (wide)
        turns_of<B, true>(s, count, records[m] + at);
      else
        turns_of<B, false>(s, count, records[m] + at);
    }
    from = bits;
    state += sliced_rows(bits);
  }
  return count;
}

// Bits are set by way of bytes where these stay in the second-level cache: a store need not wait for another's.
template <class B>
void place_body(const uint32_t* records, int64_t count, const int64_t* start, int64_t words, uint8_t* bytes,
                uint64_t* ranks) {
  if (bytes == nullptr) {
    for (int64_t j = 0; j < count; ++j) {
      const auto rank = static_cast<uint64_t>(records[j] + start[records[j] >> kTurnBits]);
      ranks[rank / 64] |= 1ull << rank % 64;
    }
    return;
  }
#pragma GCC unroll 4
  for (int64_t j = 0; j < count; ++j) bytes[records[j] + start[records[j] >> kTurnBits]] = 1;
  for (int64_t w = 0; w < words; ++w) ranks[w] |= B::take(bytes + 64 * w);
}

inline void ones_body(const uint64_t* bits, const int64_t* ends, int64_t num_ends, int64_t* out) {
  int64_t w = 0, before = 0;
  for (int64_t i = 0; i < num_ends; ++i) {
    for (; 64 * w + 64 <= ends[i]; ++w) before += __builtin_popcountll(bits[w]);
    const int64_t left = ends[i] - 64 * w;
    out[i] = before + (left > 0 ? __builtin_popcountll(bits[w] & ~(~0ull << left)) : 0);
  }
}

// Sums are taken in eight interleaved parts of each kRankWords words, whatever the instruction set.
template <class B>
double precision_body(const uint64_t* ranks, int64_t cutoff, int64_t* found) {
  uint64_t last[kRankWords];
  uint16_t places[64 * kRankWords + 64];
  double parts[8] = {};
  int64_t number = 0;
  for (int64_t at = 0; at < cutoff; at += 64 * kRankWords) {
    const uint64_t* words = ranks + at / 64;
    if (const int64_t left = cutoff - at; left < 64 * kRankWords) {
      for (int64_t w = 0; w < kRankWords; ++w)
        last[w] = 64 * w + 64 <= left ? words[w] : 64 * w < left ? words[w] & ~(~0ull << left % 64) : 0;
      words = last;
    }
    int64_t count = 0;
    for (int64_t w = 0; w < kRankWords; w += B::words)
      count += B::positions(words + w, static_cast<uint16_t>(64 * w), places + count);
    B::ratios(places, count, number, at, parts);
    number += count;
  }
  *found = number;
  return ((parts[0] + parts[4]) + (parts[2] + parts[6])) + ((parts[1] + parts[5]) + (parts[3] + parts[7]));
}

template <class B>
void add_body(const uint64_t* const* ranks, int64_t count, double weight, int64_t num_ranks, double* hits,
              double* recall) {
  using V = typename B::V;
  const int planes = width_of(count);
  for (int64_t w = 0; w < kRankWords && 64 * w < num_ranks; w += B::words) {
    Sums<B> sums;
    V any = B::fill(0);
    for (int64_t j = 0; j < count; ++j) {
      const V one = B::load(ranks[j] + w);
      any = B::or_(any, one);
      sums.ripple(0, planes, one);
    }
    if (!B::any(any)) continue;
    uint8_t numbers[64 * B::words];
    B::unslice(sums.plane, numbers);
    const int64_t left = num_ranks - 64 * w, here = left < 64 * B::words ? left : 64 * B::words;
    double* const h = hits + 64 * w;
    double* const r = recall + 64 * w;
    for (int64_t i = 0; i < here; ++i) {
      const double number = numbers[i];
      h[i] += number;
      r[i] += number * weight;
    }
  }
}

template <class B>
void meet_body(const uint64_t* sets, int64_t words, int64_t items, const uint64_t* wanted, uint64_t* out) {
  for (int64_t at = 0; at < items; at += 64) {
    const int64_t here = items - at < 64 ? items - at : 64;
    if (words == 1 && here == 64) {
      out[at / 64] = B::meet(sets + at, wanted[0]);
      continue;
    }
    uint64_t bits = 0;
    for (int64_t i = 0; i < here; ++i) {
      uint64_t shared = 0;
      for (int64_t j = 0; j < words; ++j) shared |= sets[(at + i) * words + j] & wanted[j];
      bits |= static_cast<uint64_t>(shared != 0) << i;
    }
    out[at / 64] = bits;
  }
}

template <class B>
constexpr SliceKernels make_slices() {
  return {B::words,      slice_body<B>, tally_body<B>,     turns_body<B>,
          place_body<B>, ones_body,     precision_body<B>, add_body<B>, meet_body<B>};
}

}  // namespace
}  // namespace nhl::hamming
