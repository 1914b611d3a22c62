// Runs the CUDA sources on the host: main SECTION [CASES].
#include <cstdlib>

#include "check.h"

int main(int count, char** arguments) {
  const std::string section = count > 1 ? arguments[1] : "";
  const int cases = count > 2 ? std::atoi(arguments[2]) : 100;
  if (section == "conversions")
    check_conversions();
  else if (section == "schedule")
    print_schedule();
  else if (section == "shim")
    check_shim();
  else if (section == "operators")
    check_operators(cases);
  else if (section == "pyramids")
    check_pyramids(cases);
  else if (section == "addressing")
    check_addressing();
  else
    return 2;
  std::printf("%s: %lld checks, %lld failures\n", section.c_str(), (long long)checks, (long long)failures);
  return failures == 0 ? 0 : 1;
}
