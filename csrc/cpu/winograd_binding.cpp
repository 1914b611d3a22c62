// The operators of the Winograd convolution for CPU tensors, through PyTorch's stable ABI: fused_conv2d and
// conv2d_backward for the shapes it serves, and, for weights that stay, their packing apart from the convolution.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <array>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "allocate.h"
#include "binding/arguments.h"
#include "winograd.h"

namespace {

using namespace irnext::binding;
using irnext::Tensor;
using irnext::Type;
using irnext::cpu::kWinogradBlock;
using irnext::cpu::small_empty;
using irnext::cpu::WinogradCall;
using irnext::cpu::WinogradGradientCall;

// What lies between the steps of a task stays in a core's own cache.
constexpr int64_t kTaskBytes = 400 << 10, kGradientBytes = 200 << 10;
// Tasks hold a multiple of what the kernels take at once, and are enough for many threads.
constexpr int64_t kTilesAtOnce = 12, kTasks = 32;
// The gradient of weights keeps 36 sums per weight and part, and adding up a part costs as much as many tiles.
constexpr int64_t kPartTiles = 128, kParts = 32, kSumBytes = 16 << 20, kSlice = 64;
constexpr int64_t kTile = 4;  // of training

void check_tile(int64_t tile) { STD_TORCH_CHECK(tile == 2 || tile == 4, "tile must be 2 or 4, got ", tile); }

void check_channels(int64_t inputs, int64_t outputs) {
  STD_TORCH_CHECK(inputs > 0 && outputs > 0 && inputs % kWinogradBlock == 0 && outputs % kWinogradBlock == 0,
                  "inputs and outputs must be multiples of ", kWinogradBlock, ", got ", inputs, " and ", outputs);
}

// G g G^T of every filter, in the order the kernels read it. `transposed` packs the filters of the adjoint
// convolution: outputs and inputs change places and every filter is turned about its centre.
template <size_t A>
void pack(const float* weight, int64_t outputs, int64_t inputs, bool transposed, const double (&transform)[A][3],
          float* packed) {
  constexpr int64_t lanes = kWinogradBlock;
  const int64_t output_step = transposed ? 9 : inputs * 9, input_step = transposed ? outputs * 9 : 9;
  stable::parallel_for(0, outputs / lanes, 1, [&](int64_t begin, int64_t end) {
    for (int64_t block = begin; block < end; ++block)
      for (int64_t c = 0; c < inputs; ++c) {
        const float* filters = weight + block * lanes * output_step + c * input_step;
        double taps[9][lanes];
        for (int64_t lane = 0; lane < lanes; ++lane)
          for (int t = 0; t < 9; ++t) taps[transposed ? 8 - t : t][lane] = filters[lane * output_step + t];
        for (size_t i = 0; i < A; ++i) {
          double row[3][lanes];
          for (int v = 0; v < 3; ++v)
            for (int64_t lane = 0; lane < lanes; ++lane)
              row[v][lane] = transform[i][0] * taps[v][lane] + transform[i][1] * taps[3 + v][lane] +
                             transform[i][2] * taps[6 + v][lane];
          for (size_t j = 0; j < A; ++j) {
            float* to = packed + ((int64_t(i * A + j) * (outputs / lanes) + block) * inputs + c) * lanes;
            for (int64_t lane = 0; lane < lanes; ++lane)
              to[lane] = float(transform[j][0] * row[0][lane] + transform[j][1] * row[1][lane] +
                               transform[j][2] * row[2][lane]);
          }
        }
      }
  });
}

stable::Tensor winograd_pack(const stable::Tensor& weight, int64_t tile, bool transposed) {
  check_tile(tile);
  STD_TORCH_CHECK(weight.dim() == 4 && weight.size(2) == 3 && weight.size(3) == 3,
                  "weight must be (outputs, inputs, 3, 3)");
  type_of(weight, "weight");
  const int64_t outputs = weight.size(transposed), inputs = weight.size(!transposed);
  const int64_t points = (tile + 2) * (tile + 2);
  check_channels(inputs, outputs);
  const stable::Tensor filters = widened(weight, ScalarType::Float);
  stable::Tensor packed =
      small_empty({points, outputs / kWinogradBlock, inputs, kWinogradBlock}, ScalarType::Float);
  const float* from = static_cast<const float*>(filters.data_ptr());
  float* to = static_cast<float*>(packed.data_ptr());
  if (tile == 2)
    pack(from, outputs, inputs, transposed, irnext::cpu::kFilterTransform2, to);
  else
    pack(from, outputs, inputs, transposed, irnext::cpu::kFilterTransform4, to);
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

// Results of the convolution by packed weights, and where `keep` what they were before activation and residual.
std::array<stable::Tensor, 2> convolve(const stable::Tensor& x, const stable::Tensor& packed, int64_t outputs,
                                       int64_t tile, const std::optional<stable::Tensor>& bias,
                                       const std::optional<std::string>& activation,
                                       const std::optional<stable::Tensor>& residual, bool keep) {
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
  stable::Tensor y = stable::empty(sizes, x.scalar_type(), std::nullopt, x.device(), std::nullopt,
                                   torch::headeronly::MemoryFormat::ChannelsLast);
  stable::Tensor z = keep ? stable::empty_like(y) : stable::new_empty(x, {0});
  if (y.numel() == 0) return {y, z};

  const stable::Tensor weight = dense(packed);
  WinogradCall call{n, c, h, w, outputs, tile, input, picture(y, "y"), added, keep ? picture(z, "z") : nothing(),
                    static_cast<const float*>(weight.data_ptr()), offset.data(), activation.has_value(), 1};
  call.tiles = tiles_of_task(call.count(), c + outputs, tile);
  const auto kernel = irnext::cpu::winograd().convolve;
  stable::parallel_for(0, call.count(), 1, [&](int64_t begin, int64_t end) { kernel(call, begin, end); });
  return {y, z};
}

stable::Tensor winograd_conv2d(const stable::Tensor& x, const stable::Tensor& packed, int64_t outputs, int64_t tile,
                               const std::optional<stable::Tensor>& bias,
                               const std::optional<std::string>& activation,
                               const std::optional<stable::Tensor>& residual) {
  return convolve(x, packed, outputs, tile, bias, activation, residual, false)[0];
}

stable::Tensor channels_last(const stable::Tensor& tensor) {
  return tensor.stride(1) == 1 ? tensor : stable::contiguous(tensor, torch::headeronly::MemoryFormat::ChannelsLast);
}

void check_weight(const stable::Tensor& x, const stable::Tensor& weight) {
  STD_TORCH_CHECK(x.dim() == 4 && weight.dim() == 4 && weight.size(1) == x.size(1), "x must be (N, C, H, W) and ",
                  "weight (K, C, 3, 3)");
  check_beside(weight, x, "weight");
}

std::tuple<stable::Tensor, stable::Tensor> fused_conv2d(const stable::Tensor& x, const stable::Tensor& weight,
                                                        const std::optional<stable::Tensor>& bias,
                                                        const std::optional<std::string>& activation,
                                                        const std::optional<stable::Tensor>& residual, bool keep) {
  check_weight(x, weight);
  std::optional<stable::Tensor> added;
  if (residual) added = channels_last(*residual);
  const auto [y, z] = convolve(channels_last(x), winograd_pack(weight, kTile, false), weight.size(0), kTile, bias,
                               activation, added, keep);
  return {y, z};
}

// The gradients of the weights, in their own type, and of the bias, in that sums are taken in.
std::array<stable::Tensor, 2> weight_gradient(const stable::Tensor& grad, const stable::Tensor& x,
                                              const stable::Tensor& weight) {
  const int64_t n = x.size(0), c = x.size(1), h = x.size(2), w = x.size(3), k = weight.size(0);
  check_channels(c, k);
  stable::Tensor dweight = small_empty({k, c, 3, 3}, ScalarType::Float);
  stable::Tensor dbias = small_empty({k}, ScalarType::Float);
  WinogradGradientCall call{n, c, h, w, k, picture(x, "x"), picture(grad, "grad"), nullptr, nullptr,
                            static_cast<float*>(dweight.data_ptr()), 1, k, kTilesAtOnce};
  for (call.slice = std::min(k, kSlice); k % call.slice; call.slice -= kWinogradBlock) {}
  const int64_t all = n * call.down() * call.across(), bytes = 36 * (c + call.slice) * 4;
  call.tiles = std::max(kGradientBytes / bytes, kTilesAtOnce);
  const int64_t most = std::clamp<int64_t>(kSumBytes / (36 * c * k * 4), 1, kParts);
  call.parts = std::clamp<int64_t>(all / kPartTiles, 1, most);
  std::vector<float> totals(call.parts * k);
  const stable::Tensor sums = small_empty({call.parts * 36 * c * k}, ScalarType::Float);
  call.totals = totals.data();
  call.sums = static_cast<float*>(sums.data_ptr());
  const auto& kernels = irnext::cpu::winograd();
  stable::parallel_for(0, call.parts * call.slices(), 1,
                       [&](int64_t begin, int64_t end) { kernels.sum_weight_gradients(call, begin, end); });
  stable::parallel_for(0, c, 16, [&](int64_t begin, int64_t end) { kernels.finish_weight_gradient(call, begin, end); });
  float* bias = static_cast<float*>(dbias.data_ptr());
  std::fill_n(bias, k, 0.0f);
  for (int64_t i = 0; i < call.parts * k; ++i) bias[i % k] += totals[i];
  return {dweight, dbias};
}

std::tuple<stable::Tensor, stable::Tensor, stable::Tensor> conv2d_backward(const stable::Tensor& grad,
                                                                           const stable::Tensor& x,
                                                                           const stable::Tensor& weight, bool need_x,
                                                                           bool need_weight, bool need_bias) {
  check_weight(x, weight);
  STD_TORCH_CHECK(grad.dim() == 4 && grad.size(0) == x.size(0) && grad.size(1) == weight.size(0) &&
                      grad.size(2) == x.size(2) && grad.size(3) == x.size(3) &&
                      grad.scalar_type() == x.scalar_type(),
                  "grad must be (N, K, H, W) in the type of x");
  check_beside(grad, x, "grad");
  const stable::Tensor u = channels_last(grad);
  stable::Tensor dx = stable::new_empty(x, {0}), dweight = stable::new_empty(weight, {0});
  stable::Tensor dbias = small_empty({0}, ScalarType::Float);
  if (need_x)
    dx = convolve(u, winograd_pack(weight, kTile, true), x.size(1), kTile, std::nullopt, std::nullopt, std::nullopt,
                  false)[0];
  if (need_weight || need_bias) {
    const auto [of_weight, of_bias] = weight_gradient(u, channels_last(x), weight);
    const bool narrow = weight.scalar_type() != ScalarType::Float;
    if (need_weight) dweight = narrow ? stable::to(of_weight, weight.scalar_type()) : of_weight;
    if (need_bias) dbias = of_bias;
  }
  return {dx, dweight, dbias};
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(irnext, m) {
  m.def("winograd_pack(Tensor weight, int tile, bool transposed=False) -> Tensor");
  m.def(
      "winograd_conv2d(Tensor x, Tensor packed, int outputs, int tile, Tensor? bias, str? activation, "
      "Tensor? residual) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(irnext, CPU, m) {
  m.impl("winograd_pack", TORCH_BOX(&winograd_pack));
  m.impl("winograd_conv2d", TORCH_BOX(&winograd_conv2d));
  m.impl("fused_conv2d", TORCH_BOX(&fused_conv2d));
  m.impl("conv2d_backward", TORCH_BOX(&conv2d_backward));
}
