// The operators of the pyramids for CPU tensors, through PyTorch's stable ABI.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <memory>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "binding/arguments.h"
#include "tasks.h"

namespace {

using namespace irnext::binding;
using irnext::Aligned;
using irnext::Tensor;
using irnext::cpu::along_channels;
using irnext::cpu::Branch;
using irnext::cpu::kernels;
using irnext::cpu::kTaskElements;
using irnext::cpu::kTasks;
using irnext::cpu::MergeCall;
using irnext::cpu::PoolCall;
using irnext::cpu::PoolLevel;
using irnext::cpu::run;
using irnext::cpu::Tasks;
using Tensors = std::vector<stable::Tensor>;

// What a task does for its first row of x is worth this many rows at least, and its sums that others share.
constexpr int64_t kLeastRows = 16;

// Bands of at least `least` rows and a multiple of `multiple`.
Tasks cut(const stable::Tensor& x, int64_t h, int64_t w, bool channels_last, int64_t least, int64_t multiple) {
  const int64_t units = x.size(0) * (channels_last ? 1 : x.size(1)), block = channels_last ? x.size(1) : 1;
  const int64_t wanted = (kTasks + units - 1) / std::max<int64_t>(units, 1);
  const int64_t most = std::max<int64_t>(std::min(h / least, block * h * w / kTaskElements), 1);
  const int64_t bands = std::min(std::max<int64_t>(wanted, 1), most);
  const int64_t rows = std::max<int64_t>(((h + bands - 1) / bands + multiple - 1) / multiple * multiple, 1);
  return {channels_last, block, units, (h + rows - 1) / rows, rows};
}

// Whether the channels of one tensor lie side by side and those of the other do not, or it is a broadcast one.
bool differs(const stable::Tensor& tensor, const stable::Tensor& like) {
  return tensor.numel() > 0 && (channels_adjacent(tensor) != channels_adjacent(like) || tensor.stride(3) == 0);
}

// The tensor, or a copy in the layout of `like`.
stable::Tensor matched(const stable::Tensor& tensor, const stable::Tensor& like) {
  if (!differs(tensor, like)) return tensor;
  stable::Tensor copy = empty_plane(like, tensor.size(2), tensor.size(3));
  stable::copy_(copy, tensor);
  return copy;
}

// ---- pools ----

// The places of the rates, in chains: each rate is a multiple of the one before it in its chain.
std::vector<std::vector<size_t>> chains_of(const Sizes& rates) {
  std::vector<size_t> rising(rates.size());
  for (size_t i = 0; i < rising.size(); ++i) rising[i] = i;
  std::stable_sort(rising.begin(), rising.end(), [&](size_t a, size_t b) { return rates[a] < rates[b]; });
  std::vector<std::vector<size_t>> chains;
  for (const size_t i : rising) {
    std::vector<size_t>* longest = nullptr;  // that the rate can continue
    for (auto& chain : chains)
      if (rates[i] % rates[chain.back()] == 0 && (!longest || rates[chain.back()] > rates[longest->back()]))
        longest = &chain;
    if (longest)
      longest->push_back(i);
    else
      chains.push_back({i});
  }
  return chains;
}

std::vector<PoolLevel> levels_of(const std::vector<size_t>& chain, const Sizes& rates, const Tensors& pools) {
  std::vector<PoolLevel> levels;
  for (const size_t i : chain) levels.push_back({rates[i], levels.empty(), view(pools[i], "a pool")});
  return levels;
}

Tensors pool_pyramid(const stable::Tensor& x, Sizes rates) {
  const Tensor input = view(x, "x");
  const int64_t n = x.size(0), c = x.size(1), h = x.size(2), w = x.size(3);
  check_rates(rates, h, w);
  Tensors pools;
  for (const int64_t rate : rates) pools.push_back(empty_plane(x, h / rate, w / rate));
  for (const auto& chain : chains_of(rates)) {
    const std::vector<PoolLevel> levels = levels_of(chain, rates, pools);
    const Tasks tasks = cut(x, h, w, along_channels(x), 1, levels.back().rate);
    run(kernels().pool_pyramid, {n, c, h, w, input, levels.data(), int64_t(levels.size()), tasks}, x.numel());
  }
  return pools;
}

stable::Tensor pool_pyramid_backward(Tensors grads, Sizes rates, Sizes size) {
  check_pools(grads, rates, size);
  for (stable::Tensor& grad : grads) grad = matched(grad, grads[0]);
  const int64_t h = size[0], w = size[1];
  stable::Tensor dx = empty_plane(grads[0], h, w);
  std::vector<PoolLevel> levels;
  for (const auto& chain : chains_of(rates))
    for (const PoolLevel& level : levels_of(chain, rates, grads)) levels.push_back(level);
  const Tasks tasks = cut(dx, h, w, along_channels(dx) && along_channels(grads[0]), 1, 1);
  run(kernels().pool_pyramid_backward,
      {dx.size(0), dx.size(1), h, w, view(dx, "dx"), levels.data(), int64_t(levels.size()), tasks}, dx.numel());
  return dx;
}

// ---- merges ----

// Where the columns of x fall in a branch, for every column.
template <class A>
struct ColumnTables {
  std::vector<int32_t> below, first;
  std::vector<A> share;

  explicit ColumnTables(const Aligned& columns) {
    for (int64_t x = 0; x < columns.large; ++x) {
      below.push_back(int32_t(columns.below(x)));
      share.push_back(columns.share<A>(x));
    }
    for (int64_t i = 0; i <= columns.small; ++i) first.push_back(int32_t(columns.first(i)));
  }
};

// The branches of a merge as the kernels take them, and what these look up.
template <class A>
class Branches {
 public:
  Branches(const stable::Tensor& x, const Tensors& branches) {
    tables_.reserve(branches.size());
    for (const stable::Tensor& branch : branches) {
      const Aligned rows{branch.size(2), x.size(2)}, columns{branch.size(3), x.size(3)};
      const ColumnTables<A>& table = tables_.emplace_back(columns);
      views_.push_back({view(branch, "a branch"), nothing(), rows, columns, table.below.data(), table.share.data(),
                        table.first.data(), nullptr});
    }
  }

  // The gradients that are to be written, and memory for the sums that tasks share.
  void receive(const Tensors& gradients, const Tasks& tasks) {
    const int64_t lanes = kernels().vector_bytes / int64_t(sizeof(A));
    const int64_t step = tasks.channels_last ? (tasks.block + lanes - 1) / lanes * lanes : 1;
    for (size_t i = 0; i < gradients.size(); ++i) {
      views_[i].gradient = view(gradients[i], "a gradient");
      if (tasks.bands == 1) continue;
      partial_.emplace_back(new A[tasks.count() * 4 * views_[i].columns.small * step]);
      views_[i].partial = partial_.back().get();
    }
  }

  const Branch* data() const { return views_.data(); }
  int64_t count() const { return int64_t(views_.size()); }

 private:
  std::vector<ColumnTables<A>> tables_;
  std::vector<Branch> views_;
  std::vector<std::unique_ptr<A[]>> partial_;
};

// Call body with a number of the type that sums of `like` are taken in.
template <class Body>
void by_accumulator(const stable::Tensor& like, const Body& body) {
  if (like.scalar_type() == ScalarType::Double)
    body(double{});
  else
    body(float{});
}

stable::Tensor merge_pyramid(const stable::Tensor& x, Tensors branches, std::optional<std::string> activation) {
  const Tensor input = view(x, "x");
  const bool gelu = gelu_of(activation);
  check_branches(x, branches);
  stable::Tensor y = stable::empty_like(x);
  if (y.numel() == 0) return y;
  for (stable::Tensor& branch : branches) branch = matched(branch, x);
  const bool channels_last = along_channels(x) && along_channels(y);
  const Tasks tasks = cut(x, x.size(2), x.size(3), channels_last, kLeastRows, 1);
  by_accumulator(x, [&](auto number) {
    const Branches<decltype(number)> views(x, branches);
    const MergeCall call{x.size(0), x.size(1), x.size(2), x.size(3), input, nothing(), view(y, "y"),
                         views.data(), views.count(), gelu, tasks};
    run(kernels().merge_pyramid, call, x.numel());
  });
  return y;
}

std::tuple<stable::Tensor, Tensors> merge_pyramid_backward(const stable::Tensor& grad, const stable::Tensor& x,
                                                           Tensors branches, std::optional<std::string> activation) {
  type_of(x, "x");
  const bool gelu = gelu_of(activation);
  check_branches(x, branches);
  check_gradient(grad, x);
  stable::Tensor dx = gelu ? stable::empty_like(x) : stable::new_empty(x, {0});
  Tensors gradients;
  for (const stable::Tensor& branch : branches) gradients.push_back(stable::empty_like(branch));
  if (x.numel() == 0) {
    for (stable::Tensor& gradient : gradients) stable::zero_(gradient);
    return {dx, gradients};
  }
  // Without activation x is not read, and the gradient of x decides on the layout.
  const stable::Tensor u = gelu || grad.stride(3) == 0 ? matched(grad, x) : grad;
  const bool channels_last = along_channels(u) && (!gelu || (along_channels(x) && along_channels(dx)));
  Tensors written;
  for (size_t i = 0; i < branches.size(); ++i) {
    if (gelu) branches[i] = matched(branches[i], u);
    const stable::Tensor& gradient = gradients[i];
    written.push_back(differs(gradient, u) ? empty_plane(u, gradient.size(2), gradient.size(3)) : gradient);
  }
  const Tasks tasks = cut(x, x.size(2), x.size(3), channels_last, kLeastRows, 1);
  by_accumulator(x, [&](auto number) {
    Branches<decltype(number)> views(x, branches);
    views.receive(written, tasks);
    const MergeCall call{x.size(0), x.size(1), x.size(2), x.size(3), view(x, "x"), view(u, "grad"),
                         gelu ? view(dx, "dx") : nothing(), views.data(), views.count(), gelu, tasks};
    if (gelu || !branches.empty()) run(kernels().merge_pyramid_backward, call, x.numel());
    run(kernels().merge_pyramid_backward_shared, call, x.numel());
  });
  for (size_t i = 0; i < gradients.size(); ++i)
    if (written[i].data_ptr() != gradients[i].data_ptr()) stable::copy_(gradients[i], written[i]);
  return {dx, gradients};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(irnext, CPU, m) {
  m.impl("pool_pyramid", TORCH_BOX(&pool_pyramid));
  m.impl("pool_pyramid_backward", TORCH_BOX(&pool_pyramid_backward));
  m.impl("merge_pyramid", TORCH_BOX(&merge_pyramid));
  m.impl("merge_pyramid_backward", TORCH_BOX(&merge_pyramid_backward));
}
