// Half-precision numbers as bits, converted as the device does: to nearest, ties to even.
#pragma once

#include <cstdint>
#include <cstring>

namespace irnext::cuda::host {

inline uint32_t bits_of(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

inline float float_of(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

inline float half_to_float(uint16_t half) {
  const uint32_t sign = uint32_t(half & 0x8000) << 16, rest = uint32_t(half & 0x7fff) << 13;
  constexpr float kRebias = 0x1p112f;  // exact, for subnormal numbers too
  const uint32_t magnitude = rest >= 0x0f800000u ? rest | 0x7f800000u : bits_of(float_of(rest) * kRebias);
  return float_of(sign | magnitude);
}

inline uint16_t float_to_half(float value) {
  const uint32_t bits = bits_of(value), sign = bits >> 16 & 0x8000;
  uint32_t magnitude = bits & 0x7fffffff;
  if (magnitude > 0x7f800000u) return uint16_t(sign | 0x7e00);   // not a number
  if (magnitude >= 0x477ff000u) return uint16_t(sign | 0x7c00);  // 65520 and above
  if (magnitude < 0x38800000u)  // subnormal: the last place of 0.5f is that of the smallest half
    return uint16_t(sign | (bits_of(float_of(magnitude) + 0.5f) - bits_of(0.5f)));
  magnitude += 0xfff + (magnitude >> 13 & 1);
  return uint16_t(sign | (magnitude - 0x38000000u) >> 13);
}

inline float bfloat16_to_float(uint16_t number) { return float_of(uint32_t(number) << 16); }

inline uint16_t float_to_bfloat16(float value) {
  const uint32_t bits = bits_of(value);
  if ((bits & 0x7fffffff) > 0x7f800000u) return uint16_t(bits >> 16 | 0x40);
  return uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

}  // namespace irnext::cuda::host
