// The operators of the Winograd convolution for CPU tensors, through PyTorch's stable ABI. For inference: they
// have no derivatives.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <array>
#include <optional>
#include <string>
#include <vector>

#include "binding/arguments.h"
#include "winograd.h"

namespace {

using namespace irnext::binding;
using irnext::Tensor;
using irnext::Type;
using irnext::cpu::kWinogradBlock;
using irnext::cpu::WinogradCall;

// What lies between the steps of a task stays in a core's own cache.
constexpr int64_t kTaskBytes = 400 << 10;
// Tasks hold a multiple of what the kernels take at once, and are enough for many threads.
constexpr int64_t kTilesAtOnce = 12, kTasks = 32;

stable::Tensor empty(const Sizes& sizes, const Sizes& strides, ScalarType type) {
  const auto code = type == ScalarType::Half       ? aoti_torch_dtype_float16()
                    : type == ScalarType::BFloat16 ? aoti_torch_dtype_bfloat16()
                                                   : aoti_torch_dtype_float32();
  AtenTensorHandle handle;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(int64_t(sizes.size()), sizes.data(), strides.data(), code,
                                                         aoti_torch_device_type_cpu(), 0, &handle));
  return stable::Tensor(handle);
}

void check_tile(int64_t tile) { STD_TORCH_CHECK(tile == 2 || tile == 4, "tile must be 2 or 4, got ", tile); }

void check_channels(int64_t inputs, int64_t outputs) {
  STD_TORCH_CHECK(inputs > 0 && outputs > 0 && inputs % kWinogradBlock == 0 && outputs % kWinogradBlock == 0,
                  "inputs and outputs must be multiples of ", kWinogradBlock, ", got ", inputs, " and ", outputs);
}

// G g G^T of every filter, in the order the kernels read it.
template <size_t A>
void pack(const float* weight, int64_t outputs, int64_t inputs, const double (&transform)[A][3], float* packed) {
  for (int64_t k = 0; k < outputs; ++k)
    for (int64_t c = 0; c < inputs; ++c) {
      const float* filter = weight + (k * inputs + c) * 9;
      for (size_t i = 0; i < A; ++i) {
        double row[3] = {};
        for (int u = 0; u < 3; ++u)
          for (int v = 0; v < 3; ++v) row[v] += transform[i][u] * double(filter[u * 3 + v]);
        for (size_t j = 0; j < A; ++j) {
          const int64_t block = int64_t(i * A + j) * (outputs / kWinogradBlock) + k / kWinogradBlock;
          packed[(block * inputs + c) * kWinogradBlock + k % kWinogradBlock] =
              float(transform[j][0] * row[0] + transform[j][1] * row[1] + transform[j][2] * row[2]);
        }
      }
    }
}

stable::Tensor winograd_pack(const stable::Tensor& weight, int64_t tile) {
  check_tile(tile);
  STD_TORCH_CHECK(weight.dim() == 4 && weight.size(2) == 3 && weight.size(3) == 3,
                  "weight must be (outputs, inputs, 3, 3)");
  type_of(weight, "weight");
  const int64_t outputs = weight.size(0), inputs = weight.size(1), points = (tile + 2) * (tile + 2);
  check_channels(inputs, outputs);
  const stable::Tensor filters = widened(weight, ScalarType::Float);
  const int64_t blocks = outputs / kWinogradBlock, block = inputs * kWinogradBlock;
  stable::Tensor packed = empty({points, blocks, inputs, kWinogradBlock},
                                {blocks * block, block, kWinogradBlock, 1}, ScalarType::Float);
  const float* from = static_cast<const float*>(filters.data_ptr());
  float* to = static_cast<float*>(packed.data_ptr());
  if (tile == 2)
    pack(from, outputs, inputs, irnext::cpu::kFilterTransform2, to);
  else
    pack(from, outputs, inputs, irnext::cpu::kFilterTransform4, to);
  return packed;
}

// The view of a picture, whose channels must lie side by side unless there is nothing in it.
Tensor picture(const stable::Tensor& tensor, const char* name) {
  const Tensor found = view(tensor, name);
  STD_TORCH_CHECK(found.type != Type::f64, name, " must be float32, float16 or bfloat16");
  STD_TORCH_CHECK(tensor.stride(1) == 1 || tensor.numel() == 0, name, " must be channels_last");
  return found;
}

int64_t tiles_of_task(int64_t all, int64_t channels, int64_t tile) {
  const int64_t bytes = (tile + 2) * (tile + 2) * channels * 4;
  const int64_t most = std::min(kTaskBytes / bytes, (all + kTasks - 1) / kTasks);
  return std::max<int64_t>(most / kTilesAtOnce, 1) * kTilesAtOnce;
}

stable::Tensor winograd_conv2d(const stable::Tensor& x, const stable::Tensor& packed, int64_t outputs, int64_t tile,
                               const std::optional<stable::Tensor>& bias,
                               const std::optional<std::string>& activation,
                               const std::optional<stable::Tensor>& residual) {
  check_tile(tile);
  const Tensor input = picture(x, "x");
  const int64_t n = x.size(0), c = x.size(1), h = x.size(2), w = x.size(3);
  check_channels(c, outputs);
  const std::array<int64_t, 4> expected{(tile + 2) * (tile + 2), outputs / kWinogradBlock, c, kWinogradBlock};
  STD_TORCH_CHECK(packed.dim() == 4 && packed.scalar_type() == ScalarType::Float &&
                      std::equal(expected.begin(), expected.end(), packed.sizes().begin()),
                  "packed must be what winograd_pack makes of weights (", outputs, ", ", c, ", 3, 3) for tile ", tile);
  check_beside(packed, x, "packed");
  STD_TORCH_CHECK(!activation || *activation == "gelu", "unknown activation '", activation.value_or(""),
                  "': choose gelu or none");
  std::vector<float> offset(outputs);
  if (bias) {
    STD_TORCH_CHECK(bias->dim() == 1 && bias->numel() == outputs, "bias must hold ", outputs, " numbers");
    type_of(*bias, "bias");
    check_beside(*bias, x, "bias");
    const stable::Tensor numbers = widened(*bias, ScalarType::Float);
    std::copy_n(static_cast<const float*>(numbers.data_ptr()), outputs, offset.begin());
  }
  const Sizes sizes{n, outputs, h, w};
  Tensor added = nothing();
  if (residual) {
    added = picture(*residual, "residual");
    STD_TORCH_CHECK(std::equal(sizes.begin(), sizes.end(), residual->sizes().begin()) && added.type == input.type,
                    "residual must be (", n, ", ", outputs, ", ", h, ", ", w, ") in the type of x");
    check_beside(*residual, x, "residual");
  }
  stable::Tensor y = empty(sizes, {h * w * outputs, 1, w * outputs, outputs}, x.scalar_type());
  if (y.numel() == 0) return y;

  const stable::Tensor weight = dense(packed);
  WinogradCall call{n, c, h, w, outputs, tile, input, picture(y, "y"), added,
                    static_cast<const float*>(weight.data_ptr()), offset.data(), activation.has_value(), 1};
  call.tiles = tiles_of_task(call.count(), c + outputs, tile);
  const auto kernel = irnext::cpu::winograd();
  stable::parallel_for(0, call.count(), 1, [&](int64_t begin, int64_t end) { kernel(call, begin, end); });
  return y;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(irnext, m) {
  m.def("winograd_pack(Tensor weight, int tile) -> Tensor");
  m.def(
      "winograd_conv2d(Tensor x, Tensor packed, int outputs, int tile, Tensor? bias, str? activation, "
      "Tensor? residual) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(irnext, CPU, m) {
  m.impl("winograd_pack", TORCH_BOX(&winograd_pack));
  m.impl("winograd_conv2d", TORCH_BOX(&winograd_conv2d));
}
