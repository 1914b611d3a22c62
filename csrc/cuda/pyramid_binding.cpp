// The operators of the pyramids on CUDA tensors, through PyTorch's stable ABI: see binding.cpp.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "binding/arguments.h"
#include "binding/cuda.h"
#include "irnext/cuda/pyramid.h"

namespace {

using namespace irnext::binding;
namespace cuda = irnext::cuda;

void check_count(size_t count, const char* what) {
  STD_TORCH_CHECK(count <= size_t(cuda::kMostLevels), what, ": there may be at most ", cuda::kMostLevels, ", got ",
                  count);
}

// ---- pool_pyramid ----

cuda::PoolCall pool_call(const stable::Tensor& x, const Sizes& rates, const std::vector<stable::Tensor>& pools) {
  check_count(rates.size(), "rates");
  cuda::PoolCall call = {x.size(0), x.size(1), x.size(2), x.size(3), view(x, "x"), int(rates.size()), {}, {}};
  for (size_t i = 0; i < rates.size(); ++i) {
    call.rates[i] = rates[i];
    call.pools[i] = view(pools[i], "a pool");
  }
  return call;
}

std::vector<stable::Tensor> pool_pyramid(const stable::Tensor& x, Sizes rates) {
  STD_TORCH_CHECK(x.dim() == 4, "x must be (N, C, H, W)");
  check_rates(rates, x.size(2), x.size(3));
  const Execution execution(x);
  std::vector<stable::Tensor> pools;
  for (const int64_t rate : rates) pools.push_back(empty_plane(x, x.size(2) / rate, x.size(3) / rate));
  check(cuda::pool_pyramid(pool_call(x, rates, pools), execution.stream()), "pool_pyramid");
  return pools;
}

stable::Tensor pool_pyramid_backward(std::vector<stable::Tensor> grads, Sizes rates, Sizes size) {
  check_pools(grads, rates, size);
  const Execution execution(grads[0]);
  const stable::Tensor dx = empty_plane(grads[0], size[0], size[1]);
  check(cuda::pool_pyramid_backward(pool_call(dx, rates, grads), execution.stream()), "pool_pyramid_backward");
  return dx;
}

// ---- merge_pyramid ----

void add_branches(const std::vector<stable::Tensor>& tensors, cuda::Branch* branches) {
  for (size_t i = 0; i < tensors.size(); ++i)
    branches[i] = {tensors[i].size(2), tensors[i].size(3), view(tensors[i], "a branch")};
}

cuda::MergeCall merge_call(const stable::Tensor& x, const std::vector<stable::Tensor>& branches, bool gelu,
                           const stable::Tensor& y) {
  cuda::MergeCall call = {x.size(0),    x.size(1), x.size(2),            x.size(3), gelu, view(x, "x"),
                          view(y, "y"), nothing(), int(branches.size()), {}};
  add_branches(branches, call.branches);
  return call;
}

stable::Tensor merge_pyramid(const stable::Tensor& x, std::vector<stable::Tensor> branches,
                             std::optional<std::string> activation) {
  check_branches(x, branches);
  check_count(branches.size(), "branches");
  const bool gelu = gelu_of(activation);
  const Execution execution(x);
  const stable::Tensor y = stable::empty_like(x);
  check(cuda::merge_pyramid(merge_call(x, branches, gelu, y), execution.stream()), "merge_pyramid");
  return y;
}

std::tuple<stable::Tensor, std::vector<stable::Tensor>> merge_pyramid_backward(const stable::Tensor& grad,
                                                                               const stable::Tensor& x,
                                                                               std::vector<stable::Tensor> branches,
                                                                               std::optional<std::string> activation) {
  check_branches(x, branches);
  check_count(branches.size(), "branches");
  check_gradient(grad, x);
  const bool gelu = gelu_of(activation);
  const Execution execution(x);
  const stable::Tensor dx = gelu ? stable::empty_like(x) : stable::new_empty(x, {0});
  if (gelu) {
    cuda::MergeCall call = merge_call(x, branches, gelu, dx);
    call.grad = view(grad, "grad");
    check(cuda::merge_input_gradient(call, execution.stream()), "merge_pyramid_backward");
  }
  std::vector<stable::Tensor> dbranches;
  for (const stable::Tensor& branch : branches) dbranches.push_back(stable::empty_like(branch));
  cuda::AdjointCall call = {x.size(0), x.size(1), x.size(2), x.size(3), view(gelu ? dx : grad, "grad"),
                            int(branches.size()), {}};
  add_branches(dbranches, call.branches);
  check(cuda::merge_branch_gradients(call, execution.stream()), "merge_pyramid_backward");
  return {dx, dbranches};
}

}  // namespace

IRNEXT_CUDA_IMPL(IRNEXT_CUDA_NAMESPACE, IRNEXT_CUDA_KEY, m) {
  m.impl("pool_pyramid", TORCH_BOX(&pool_pyramid));
  m.impl("pool_pyramid_backward", TORCH_BOX(&pool_pyramid_backward));
  m.impl("merge_pyramid", TORCH_BOX(&merge_pyramid));
  m.impl("merge_pyramid_backward", TORCH_BOX(&merge_pyramid_backward));
}
