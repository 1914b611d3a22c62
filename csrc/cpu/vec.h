// Vectors as wide as the instruction set that this translation unit is compiled for, and the
// conversions between them and the element types. Everything is internal to the translation unit:
// the same names are compiled for several instruction sets.
#pragma once

#include <cstdint>
#include <cstring>
#include <utility>

#if defined(__F16C__)
#include <immintrin.h>
#endif

namespace {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif

#define IRNEXT_INLINE inline __attribute__((always_inline))

struct half {
  uint16_t bits;
};
struct bfloat16 {
  uint16_t bits;
};

template <class T>
struct Accumulator {
  using type = float;
};
template <>
struct Accumulator<double> {
  using type = double;
};
template <class T>
using Acc = typename Accumulator<T>::type;

template <class A>
struct VecOf {
  typedef A type __attribute__((vector_size(kVectorBytes)));
  // The same at any address. Reading through it, unlike memcpy, tells the compiler that a store of
  // numbers changes no pointer or size, which can then stay in registers.
  typedef A anywhere __attribute__((vector_size(kVectorBytes), aligned(sizeof(A))));
};
template <class A>
using Vec = typename VecOf<A>::type;
template <class A>
constexpr int64_t kLanes = kVectorBytes / sizeof(A);

// As many lanes of double.
template <class A>
struct WideVecOf {
  typedef double type __attribute__((vector_size(kLanes<A> * 8)));
};
template <class A>
using WideVec = typename WideVecOf<A>::type;

typedef uint32_t BitVec __attribute__((vector_size(kVectorBytes)));
typedef uint16_t HalfVec __attribute__((vector_size(kVectorBytes / 2)));

// ---- one element ----

IRNEXT_INLINE float bits_to_float(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}
IRNEXT_INLINE uint32_t float_to_bits(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  return bits;
}

IRNEXT_INLINE float widen(float value) { return value; }
IRNEXT_INLINE double widen(double value) { return value; }
IRNEXT_INLINE float widen(bfloat16 value) { return bits_to_float(uint32_t(value.bits) << 16); }
IRNEXT_INLINE float widen(half value) {
  const uint32_t sign = uint32_t(value.bits & 0x8000) << 16, magnitude = value.bits & 0x7fff;
  if (magnitude >= 0x7c00)  // infinity or NaN
    return bits_to_float(sign | 0x7f800000 | (magnitude & 0x3ff) << 13);
  // Scaling by 2^112 turns a half's exponent into a float's and normalises subnormals.
  return bits_to_float(sign | float_to_bits(bits_to_float(magnitude << 13) * 0x1p112f));
}

IRNEXT_INLINE void narrow(float value, float* out) { *out = value; }
IRNEXT_INLINE void narrow(double value, double* out) { *out = value; }
IRNEXT_INLINE void narrow(float value, bfloat16* out) {
  const uint32_t bits = float_to_bits(value);
  out->bits = value != value ? 0x7fc0 : uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
IRNEXT_INLINE void narrow(float value, half* out) {
  const uint32_t bits = float_to_bits(value), sign = bits >> 16 & 0x8000, magnitude = bits & 0x7fffffff;
  uint32_t result;
  if (magnitude > 0x7f800000) {
    result = 0x7e00;  // NaN
  } else if (magnitude >= 0x477ff000) {
    result = 0x7c00;  // at least 65520: infinity
  } else if (magnitude < 0x38800000) {
    // Subnormal: adding 0.5 puts the result's last bit at the last bit of the sum.
    result = float_to_bits(bits_to_float(magnitude) + 0.5f) - 0x3f000000;
  } else {
    result = (magnitude - 0x38000000 + 0xfff + (magnitude >> 13 & 1)) >> 13;
  }
  out->bits = uint16_t(sign | result);
}

// ---- a vector of consecutive elements ----

IRNEXT_INLINE Vec<float> load(const float* from) { return *(const VecOf<float>::anywhere*)from; }
IRNEXT_INLINE Vec<double> load(const double* from) { return *(const VecOf<double>::anywhere*)from; }
IRNEXT_INLINE Vec<float> load(const bfloat16* from) {
  HalfVec bits;
  std::memcpy(&bits, from, sizeof bits);
  const BitVec wide = __builtin_convertvector(bits, BitVec) << 16;
  Vec<float> value;
  std::memcpy(&value, &wide, sizeof value);
  return value;
}
IRNEXT_INLINE Vec<float> load(const half* from) {
#if defined(__AVX512F__)
  return (Vec<float>)_mm512_maskz_cvtph_ps(-1, _mm256_loadu_si256((const __m256i*)from));
#elif defined(__F16C__) && defined(__AVX2__)
  return (Vec<float>)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)from));
#else
  Vec<float> value;
  for (int i = 0; i < kLanes<float>; ++i) value[i] = widen(from[i]);
  return value;
#endif
}

IRNEXT_INLINE void store(const Vec<float>& value, float* to) { *(VecOf<float>::anywhere*)to = value; }
IRNEXT_INLINE void store(const Vec<double>& value, double* to) { *(VecOf<double>::anywhere*)to = value; }
IRNEXT_INLINE void store(const Vec<float>& value, bfloat16* to) {
  BitVec bits;
  std::memcpy(&bits, &value, sizeof bits);
  const BitVec rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
  const BitVec is_nan = (BitVec)(value != value);
  const HalfVec result = __builtin_convertvector((rounded & ~is_nan) | (is_nan & 0x7fc0), HalfVec);
  std::memcpy(to, &result, sizeof result);
}
IRNEXT_INLINE void store(const Vec<float>& value, half* to) {
#if defined(__AVX512F__)
  _mm256_storeu_si256((__m256i*)to, _mm512_maskz_cvtps_ph(-1, (__m512)value, _MM_FROUND_TO_NEAREST_INT));
#elif defined(__F16C__) && defined(__AVX2__)
  _mm_storeu_si128((__m128i*)to, _mm256_cvtps_ph((__m256)value, _MM_FROUND_TO_NEAREST_INT));
#else
  for (int i = 0; i < kLanes<float>; ++i) narrow(value[i], to + i);
#endif
}

// The first `count` lanes only; the others are zero.
template <class T>
IRNEXT_INLINE Vec<Acc<T>> load(const T* from, int64_t count) {
  Vec<Acc<T>> value{};
  for (int64_t i = 0; i < count; ++i) value[i] = widen(from[i]);
  return value;
}
template <class T>
IRNEXT_INLINE void store(const Vec<Acc<T>>& value, T* to, int64_t count) {
  T whole[kLanes<Acc<T>>];
  store(value, whole);
  for (int64_t i = 0; i < count; ++i) to[i] = whole[i];
}

template <class A>
IRNEXT_INLINE Vec<A> splat(A value) {
  return value - Vec<A>{};
}

// The lanes moved up by Places, zeros from below.
template <int Places, int... Lane>
IRNEXT_INLINE Vec<double> moved_up(const Vec<double>& value, std::integer_sequence<int, Lane...>) {
  constexpr int lanes = kLanes<double>;
#if defined(__clang__)
  return __builtin_shufflevector(value, Vec<double>{}, (Lane < Places ? lanes : Lane - Places)...);
#else
  typedef int64_t Index __attribute__((vector_size(kVectorBytes)));
  return __builtin_shuffle(value, Vec<double>{}, Index{(Lane < Places ? lanes : Lane - Places)...});
#endif
}

// Lane i becomes the sum of lanes 0 ... i.
template <int Places = 1>
IRNEXT_INLINE Vec<double> prefix_sums(const Vec<double>& value) {
  if constexpr (Places < kLanes<double>)
    return prefix_sums<2 * Places>(value + moved_up<Places>(value, std::make_integer_sequence<int, kLanes<double>>()));
  else
    return value;
}

}  // namespace
