// Half-precision conversions against their definition: the nearest number, of two equally near the even one.
#include <cmath>

#include "check.h"
#include "irnext/cuda/execution.h"

namespace host = irnext::cuda::host;

template <class Widen, class Narrow>
static void check_type(const char* name, uint16_t infinity, const Widen& widen, const Narrow& narrow) {
  for (unsigned bits = 0; bits < 0x10000; ++bits) {
    const float value = widen(uint16_t(bits));
    const std::string what = std::string(name) + " " + std::to_string(bits);
    if ((bits & 0x7fff) > infinity) {
      check(std::isnan(value) && std::isnan(widen(narrow(value))), what + " is not a number");
      continue;
    }
    check(narrow(value) == bits, what + " there and back");
    if ((bits & 0x7fff) >= infinity - 1u) continue;
    const float next = widen(uint16_t(bits + 1)), middle = value + (next - value) / 2;
    check(narrow(middle) == (bits % 2 == 0 ? bits : bits + 1), what + " a tie");
    check(narrow(std::nextafterf(middle, value)) == bits, what + " below a tie");
    check(narrow(std::nextafterf(middle, next)) == bits + 1, what + " above a tie");
  }
  check(narrow(INFINITY) == infinity && narrow(-INFINITY) == (infinity | 0x8000), "infinity");
  check(narrow(3.4e38f) == infinity, "overflow");
}

void check_conversions() {
  check_type("half", 0x7c00, host::half_to_float, host::float_to_half);
  check_type("bfloat16", 0x7f80, host::bfloat16_to_float, host::float_to_bfloat16);
  check(host::half_to_float(0x3c00) == 1 && host::half_to_float(0x0001) == 0x1p-24f, "half values");
  check(host::bfloat16_to_float(0x3f80) == 1, "bfloat16 values");
  check(host::float_to_half(65519) == 0x7bff && host::float_to_half(65520) == 0x7c00, "the largest half");
}
