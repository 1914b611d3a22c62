"""One schema per operator, with its shape function and its gradient, for every backend.

A backend is a namespace of operators: `irnext` (C++, for CPU and CUDA tensors), `irnext_triton`,
`irnext_cuda_host`. All share the schemas, fakes and gradients below, and the gradient of an operator
calls operators of the same namespace: what served the forward serves the backward. A backend adds
plain kernels; an operator without one runs as the reference.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import SimpleNamespace

import torch
from torch import Tensor

from . import library, reference

SCHEMAS = {
    "dynamic_conv2d": "(Tensor x, Tensor kernel, Tensor? bias=None, int dilation=1, "
    'str padding_mode="reflect") -> Tensor',
    "dynamic_conv2d_backward": "(Tensor grad, Tensor x, Tensor kernel, int dilation, str padding_mode, "
    "bool need_x, bool need_kernel, bool need_sum) -> (Tensor, Tensor, Tensor)",
    "spatial_mean": "(Tensor x) -> Tensor",
    "local_mean": "(Tensor x, SymInt[2] window) -> Tensor",
    "local_mean_backward": "(Tensor grad, SymInt[2] window) -> Tensor",
    "local_attention": "(Tensor x, Tensor weight, Tensor norm_weight, Tensor norm_bias, "
    "Tensor? running_mean, Tensor? running_var, Tensor low, Tensor inner, Tensor high, "
    "int[2] kernel_size, bool training, float eps, str activation, SymInt[2]? window) "
    "-> (Tensor, Tensor, Tensor, Tensor)",
    "local_attention_backward": "(Tensor grad, Tensor x, Tensor mean, Tensor weight, Tensor norm_weight, "
    "Tensor norm_bias, Tensor logit_mean, Tensor logit_var, Tensor low, Tensor inner, Tensor high, "
    "int[2] kernel_size, bool training, float eps, str activation, SymInt[2]? window) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    "update_statistics": "(Tensor(a!) running_mean, Tensor(b!) running_var, Tensor(c!) batches, "
    "Tensor mean, Tensor var, SymInt count, float? momentum) -> ()",
    "pool_pyramid": "(Tensor x, int[] rates) -> Tensor[]",
    "pool_pyramid_backward": "(Tensor[] grads, int[] rates, SymInt[2] size) -> Tensor",
    "merge_pyramid": '(Tensor x, Tensor[] branches, str? activation="gelu") -> Tensor',
    "merge_pyramid_backward": "(Tensor grad, Tensor x, Tensor[] branches, str? activation) "
    "-> (Tensor, Tensor[])",
    "fused_conv2d": "(Tensor x, Tensor weight, Tensor? bias, str? activation, Tensor? residual, bool keep) "
    "-> (Tensor, Tensor)",
    "conv2d_backward": "(Tensor grad, Tensor x, Tensor weight, bool need_x, bool need_weight, "
    "bool need_bias) -> (Tensor, Tensor, Tensor)",
}
# Operators that only the reference implements: their gradients and fakes follow from it.
COMPOSITES = {
    "conv2d_bias_act": "(Tensor x, Tensor weight, Tensor? bias=None, str? activation=None, "
    "Tensor? residual=None) -> Tensor",
}

Operators = SimpleNamespace  # the overloads of one namespace, by name


# ---- dynamic_conv2d ------------------------------------------------------------------------------


def _dynamic_conv2d_backward_reference(
    grad, x, kernel, dilation, padding_mode, need_x, need_kernel, need_sum
):
    with torch.enable_grad():
        inputs = [t.detach().requires_grad_(need) for t, need in ((x, need_x), (kernel, need_kernel))]
        wanted = [t for t in inputs if t.requires_grad]
        found = iter(())
        if wanted:
            y = reference.dynamic_conv2d(*inputs, None, dilation, padding_mode)
            found = iter(torch.autograd.grad(y, wanted, grad))
    wide = reference.accumulation_dtype(x.dtype)
    return (
        torch.empty_like(x).copy_(next(found)) if need_x else x.new_empty(0),
        next(found) if need_kernel else kernel.new_empty(0),
        grad.sum((2, 3), dtype=wide) if need_sum else x.new_empty(0, dtype=wide),
    )


def _dynamic_conv2d_fake(x, kernel, bias=None, dilation=1, padding_mode="reflect"):
    return torch.empty_like(x)


def _dynamic_conv2d_backward_fake(grad, x, kernel, dilation, padding_mode, need_x, need_kernel, need_sum):
    wide = reference.accumulation_dtype(x.dtype)
    return (
        torch.empty_like(x) if need_x else x.new_empty(0),
        kernel.new_empty(kernel.shape if need_kernel else 0),
        x.new_empty(x.shape[:2] if need_sum else 0, dtype=wide),
    )


def _sum_to(grad: Tensor, shape: torch.Size) -> Tensor:
    """The gradient of a bias of `shape` (N, C, H or 1, W or 1), summed in float32 or wider."""
    dims = [dim for dim in (2, 3) if shape[dim] != grad.shape[dim]]
    wide = reference.accumulation_dtype(grad.dtype)
    return grad.sum(dims, keepdim=True, dtype=wide) if dims else grad


def _save_dynamic_conv2d(ctx, inputs, output):
    x, kernel, bias, ctx.dilation, ctx.padding_mode = inputs
    ctx.save_for_backward(x, kernel)
    ctx.bias = None if bias is None else (bias.shape, bias.dtype)


def _dynamic_conv2d_gradient(operators: Operators, ctx, grad):
    x, kernel = ctx.saved_tensors
    need_x, need_kernel, need_bias = ctx.needs_input_grad[:3]
    need_sum = need_bias and len(ctx.bias[0]) == 2
    dx = dkernel = dbias = None
    if need_x or need_kernel or need_sum:
        dx, dkernel, dbias = operators.dynamic_conv2d_backward(
            grad, x, kernel, ctx.dilation, ctx.padding_mode, need_x, need_kernel, need_sum
        )
    if need_bias:
        shape, dtype = ctx.bias
        dbias = (dbias if need_sum else _sum_to(grad, shape)).to(dtype)
    return dx if need_x else None, dkernel if need_kernel else None, dbias if need_bias else None, None, None


def _save_dynamic_conv2d_backward(ctx, inputs, output):
    grad, x, kernel, ctx.dilation, ctx.padding_mode, ctx.need_x, ctx.need_kernel, ctx.need_sum = inputs
    ctx.save_for_backward(grad, x, kernel)


def _dynamic_conv2d_double_gradient(operators: Operators, ctx, grad_dx, grad_dkernel, grad_sum):
    """The operator is linear in x and in the kernel, so its gradients are made of itself.

    With F(x; k) the filter: dx = F^T(u; k), dk = <u, shifted x> and the sum of u. For cotangents
    v, w, b of these: du = F(v; k) + F(x; w) + b, d(x) = F^T(u; w), d(k) = <u, shifted v>.
    """
    u, x, kernel = ctx.saved_tensors
    shape = (ctx.dilation, ctx.padding_mode)
    v = grad_dx if ctx.need_x else None
    w = grad_dkernel if ctx.need_kernel else None
    bias = grad_sum if ctx.need_sum else None
    need_u, need_x, need_kernel = ctx.needs_input_grad[:3]
    du = dx = dk = None
    if need_u:
        terms = []
        if v is not None:
            terms.append(operators.dynamic_conv2d(v, kernel, None, *shape))
        if w is not None:
            terms.append(operators.dynamic_conv2d(x, w, None, *shape))
        if bias is not None:
            terms.append(bias.to(u.dtype)[..., None, None].expand(u.shape))
        du = sum(terms)
    if need_x and w is not None:
        dx = operators.dynamic_conv2d_backward(u, x, w, *shape, True, False, False)[0]
    if need_kernel and v is not None:
        dk = operators.dynamic_conv2d_backward(u, v, kernel, *shape, False, True, False)[1]
    return du, dx, dk, None, None, None, None, None


# ---- spatial_mean and local_mean -----------------------------------------------------------------


def _spatial_mean_fake(x):
    return x.new_empty(x.shape[:2], dtype=reference.accumulation_dtype(x.dtype))


def _save_spatial_mean(ctx, inputs, output):
    (x,) = inputs
    ctx.shape, ctx.dtype = x.shape, x.dtype


def _spatial_mean_gradient(operators: Operators, ctx, grad):
    n, c, height, width = ctx.shape
    return (grad * (1 / max(height * width, 1))).to(ctx.dtype).view(n, c, 1, 1).expand(ctx.shape)


def _local_mean_fake(x, window):
    return torch.empty_like(x)


def _save_window(ctx, inputs, output):
    _, ctx.window = inputs


def _local_mean_gradient(operators: Operators, ctx, grad):
    return operators.local_mean_backward(grad, ctx.window), None


def _local_mean_double_gradient(operators: Operators, ctx, grad):
    return operators.local_mean(grad, ctx.window), None


# ---- local_attention -----------------------------------------------------------------------------


def _local_attention_fake(x, weight, norm_weight, norm_bias, *rest):
    training = rest[6]
    wide = reference.accumulation_dtype(x.dtype)
    statistics = [x.new_empty(weight.shape[:1] if training else 0, dtype=wide) for _ in ("mean", "var")]
    return torch.empty_like(x), x.new_empty(x.shape[:2], dtype=wide), *statistics


def _local_attention_backward_fake(
    grad, x, mean, weight, norm_weight, norm_bias, logit_mean, logit_var, low, inner, high, *options
):
    return (
        torch.empty_like(x),
        weight.new_empty(weight.shape[0], x.shape[1]),
        norm_weight.new_empty(norm_weight.shape),
        norm_bias.new_empty(norm_bias.shape),
        *(gain.new_empty(x.shape[1]) for gain in (low, inner, high)),
    )


def _save_local_attention(ctx, inputs, output):
    x, weight, norm_weight, norm_bias, running_mean, running_var, low, inner, high, *ctx.options = inputs
    _, mean, logit_mean, logit_var = output
    ctx.mark_non_differentiable(mean, logit_mean, logit_var)
    ctx.set_materialize_grads(False)
    training = ctx.options[1]
    statistics = (logit_mean, logit_var) if training else (running_mean, running_var)
    ctx.save_for_backward(x, mean, weight, norm_weight, norm_bias, *statistics, low, inner, high)


def _local_attention_gradient(operators: Operators, ctx, grad, *_):
    needs = [need for i, need in enumerate(ctx.needs_input_grad[:9]) if i not in (4, 5)]
    if grad is None:
        return (None,) * 14
    x, mean, weight, norm_weight, norm_bias, logit_mean, logit_var, *gains = ctx.saved_tensors
    inputs = (x, weight, norm_weight, norm_bias, *gains)
    if torch.is_grad_enabled():  # to be differentiated again: by operators that can be
        statistics = (None, None) if ctx.options[1] else (logit_mean, logit_var)
        # Views, so that an input that was computed from another one takes only its own part.
        inputs = [tensor.view_as(tensor) for tensor in inputs]
        y = reference.local_attention(*inputs[:4], *statistics, *inputs[4:], *ctx.options, operators)[0]
        wanted = [tensor for tensor, need in zip(inputs, needs, strict=True) if need]
        found = iter(torch.autograd.grad(y, wanted, grad, create_graph=True))
        grads = [next(found) if need else None for need in needs]
    else:
        found = operators.local_attention_backward(
            grad, x, mean, *inputs[1:4], logit_mean, logit_var, *gains, *ctx.options
        )
        grads = [
            None if not need else g if g.shape == tensor.shape else g.view(tensor.shape)
            for g, tensor, need in zip(found, inputs, needs, strict=True)
        ]
    return *grads[:4], None, None, *grads[4:], None, None, None, None, None


def _update_statistics_fake(running_mean, running_var, batches, mean, var, count, momentum):
    return None


# ---- pyramids ------------------------------------------------------------------------------------


def _empty_plane(x, height, width):
    """A tensor of x's samples and channels: channels_last where x's channels lie side by side."""
    channels_last = x.shape[1] > 1 and x.stride(1) == 1
    layout = torch.channels_last if channels_last else torch.contiguous_format
    return torch.empty(*x.shape[:2], height, width, dtype=x.dtype, device=x.device, memory_format=layout)


def _pool_pyramid_reference(x, rates):
    pools = reference.pool_pyramid(x, rates)
    return [_empty_plane(x, *pool.shape[2:]).copy_(pool) for pool in pools]


def _pool_pyramid_fake(x, rates):
    return [_empty_plane(x, x.shape[2] // rate, x.shape[3] // rate) for rate in rates]


def _pool_pyramid_backward_reference(grads, rates, size):
    dx = reference.pool_pyramid_backward(grads, rates, size)
    return _empty_plane(grads[0], *size).copy_(dx)


def _pool_pyramid_backward_fake(grads, rates, size):
    return _empty_plane(grads[0], *size)


def _save_pool_pyramid(ctx, inputs, output):
    x, ctx.rates = inputs
    ctx.size = x.shape[2:]


def _pool_pyramid_gradient(operators: Operators, ctx, *grads):
    return operators.pool_pyramid_backward(list(grads), ctx.rates, ctx.size), None


def _save_pool_pyramid_backward(ctx, inputs, output):
    _, ctx.rates, _ = inputs


def _pool_pyramid_double_gradient(operators: Operators, ctx, grad):
    return operators.pool_pyramid(grad, ctx.rates), None, None


def _merge_pyramid_fake(x, branches, activation="gelu"):
    return torch.empty_like(x)


def _merge_pyramid_backward_fake(grad, x, branches, activation):
    dx = x.new_empty(0) if activation is None else torch.empty_like(x)
    return dx, [torch.empty_like(branch) for branch in branches]


def _save_merge_pyramid(ctx, inputs, output):
    x, branches, ctx.activation = inputs
    ctx.save_for_backward(x, *branches)


def _merge_pyramid_gradient(operators: Operators, ctx, grad):
    x, *branches = ctx.saved_tensors
    if torch.is_grad_enabled():  # to be differentiated again: by operators that can be
        # Views, so that an input that was computed from another one takes only its own part.
        inputs = [tensor.view_as(tensor).requires_grad_() for tensor in (x, *branches)]
        y = reference.merge_pyramid(inputs[0], inputs[1:], ctx.activation)
        dx, *dbranches = torch.autograd.grad(y, inputs, grad, create_graph=True)
    else:
        dx, dbranches = operators.merge_pyramid_backward(grad, x, branches, ctx.activation)
        if ctx.activation is None:
            dx = grad
    return dx, dbranches, None


# ---- fused_conv2d --------------------------------------------------------------------------------


def _channels_last_plane(x, channels):
    shape = (x.shape[0], channels, *x.shape[2:])
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)


def _fused_conv2d_fake(x, weight, bias, activation, residual, keep):
    y = _channels_last_plane(x, weight.shape[0])
    return y, torch.empty_like(y) if keep else x.new_empty(0)


def _winograd_conv2d_fake(x, packed, outputs, tile, bias, activation, residual):
    return _channels_last_plane(x, outputs)


def _conv2d_backward_fake(grad, x, weight, need_x, need_weight, need_bias):
    wide = reference.accumulation_dtype(x.dtype)
    return (
        _channels_last_plane(x, x.shape[1]) if need_x else x.new_empty(0),
        weight.new_empty(weight.shape if need_weight else 0),
        x.new_empty(weight.shape[0] if need_bias else 0, dtype=wide),
    )


def _save_fused_conv2d(ctx, inputs, output):
    x, weight, bias, ctx.activation, _, keep = inputs
    _, z = output
    ctx.mark_non_differentiable(z)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(x, weight, bias, z if keep else None)


def _fused_conv2d_gradient(operators: Operators, ctx, grad, _):
    if grad is None:
        return (None,) * 6
    x, weight, bias, z = ctx.saved_tensors
    need_x, need_weight, need_bias, _, need_residual = ctx.needs_input_grad[:5]
    of_residual = grad if need_residual else None
    if not (need_x or need_weight or need_bias):
        return None, None, None, None, of_residual, None
    inner = grad
    if torch.is_grad_enabled():  # to be differentiated again: by operators that can be, from inputs alone
        narrow = weight.to(x.dtype)
        if ctx.activation is not None:
            z = reference.conv2d_bias_act(x, narrow, None if bias is None else bias.to(x.dtype))
            inner = torch.ops.aten.gelu_backward(grad, z)
        padding = [weight.shape[2] // 2, weight.shape[3] // 2]
        dx = torch.nn.grad.conv2d_input(x.shape, narrow, inner, padding=padding) if need_x else None
        dweight = (
            torch.nn.grad.conv2d_weight(x, weight.shape, inner, padding=padding) if need_weight else None
        )
        dbias = inner.sum((0, 2, 3)) if need_bias else None
    else:
        if ctx.activation is not None:
            if z is None:
                z = operators.fused_conv2d(x, weight, bias, None, None, False)[0]
            inner, _ = operators.merge_pyramid_backward(grad, z, [], "gelu")
        dx, dweight, dbias = operators.conv2d_backward(inner, x, weight, need_x, need_weight, need_bias)
    return (
        dx if need_x else None,
        dweight.to(weight.dtype) if need_weight else None,
        dbias.to(bias.dtype) if need_bias else None,
        None,
        of_residual,
        None,
    )


# ---- every namespace alike -----------------------------------------------------------------------


def _in_layout(function: Callable) -> Callable:
    """The function with its (first) result in the layout of its first argument, as the fakes say."""

    def call(x, *arguments):
        found = function(x, *arguments)
        first, *rest = (found,) if isinstance(found, Tensor) else found
        first = torch.empty_like(x).copy_(first)
        return first if isinstance(found, Tensor) else (first, *rest)

    return call


REFERENCE = {
    "dynamic_conv2d": _in_layout(reference.dynamic_conv2d),
    "dynamic_conv2d_backward": _dynamic_conv2d_backward_reference,
    "spatial_mean": reference.spatial_mean,
    "local_mean": _in_layout(reference.local_mean),
    "local_mean_backward": _in_layout(reference.local_mean_backward),
    "local_attention": _in_layout(reference.local_attention),
    "local_attention_backward": reference.local_attention_backward,
    "update_statistics": reference.update_statistics,
    "pool_pyramid": _pool_pyramid_reference,
    "pool_pyramid_backward": _pool_pyramid_backward_reference,
    "merge_pyramid": _in_layout(reference.merge_pyramid),
    "merge_pyramid_backward": reference.merge_pyramid_backward,
    "fused_conv2d": reference.fused_conv2d,
    "conv2d_backward": reference.conv2d_backward,
}
FAKES = {
    "dynamic_conv2d": _dynamic_conv2d_fake,
    "dynamic_conv2d_backward": _dynamic_conv2d_backward_fake,
    "spatial_mean": _spatial_mean_fake,
    "local_mean": _local_mean_fake,
    "local_mean_backward": _local_mean_fake,
    "local_attention": _local_attention_fake,
    "local_attention_backward": _local_attention_backward_fake,
    "update_statistics": _update_statistics_fake,
    "pool_pyramid": _pool_pyramid_fake,
    "pool_pyramid_backward": _pool_pyramid_backward_fake,
    "merge_pyramid": _merge_pyramid_fake,
    "merge_pyramid_backward": _merge_pyramid_backward_fake,
    "fused_conv2d": _fused_conv2d_fake,
    "conv2d_backward": _conv2d_backward_fake,
}
GRADIENTS: dict[str, tuple[Callable, Callable]] = {
    "dynamic_conv2d": (_dynamic_conv2d_gradient, _save_dynamic_conv2d),
    "dynamic_conv2d_backward": (_dynamic_conv2d_double_gradient, _save_dynamic_conv2d_backward),
    "spatial_mean": (_spatial_mean_gradient, _save_spatial_mean),
    "local_mean": (_local_mean_gradient, _save_window),
    "local_mean_backward": (_local_mean_double_gradient, _save_window),
    "local_attention": (_local_attention_gradient, _save_local_attention),
    "pool_pyramid": (_pool_pyramid_gradient, _save_pool_pyramid),
    "pool_pyramid_backward": (_pool_pyramid_double_gradient, _save_pool_pyramid_backward),
    "merge_pyramid": (_merge_pyramid_gradient, _save_merge_pyramid),
    "fused_conv2d": (_fused_conv2d_gradient, _save_fused_conv2d),
}
_libraries = []  # registrations last as long as their Library objects


def _recorded(operator, operators: Operators, gradient: Callable, save: Callable) -> Callable:
    """The kernel that records a call of the operator for autograd.

    It does what `torch.library.register_autograd` does, which however reads the schema anew in every
    call: 45 µs for the arguments of `local_attention`.
    """
    schema, lists = operator._schema, "List[Tensor]"
    defaults = tuple(argument.default_value for argument in schema.arguments)
    returns_list = str(schema.returns[0].type) == lists
    listed = [i for i, argument in enumerate(schema.arguments) if str(argument.type) == lists]

    def run(keyset, arguments):
        with torch._C._AutoDispatchBelowAutograd():
            return operator.redispatch(keyset & torch._C._after_autograd_keyset, *arguments)

    class Recorded(torch.autograd.Function):
        """Of the arguments, the keyset, and the tensors of the argument that is a list, if there is one."""

        @staticmethod
        def forward(ctx, *arguments):
            inputs, (keyset, *tensors) = list(arguments[: len(defaults)]), arguments[len(defaults) :]
            for i in listed:
                inputs[i] = tensors
            output = run(keyset, inputs)
            save(ctx, inputs, output)
            return tuple(output) if returns_list else output

        @staticmethod
        def backward(ctx, *grads):
            found = gradient(operators, ctx, *grads)
            found = list(found) if isinstance(found, tuple) else [found]
            of_tensors = []
            for i in listed:
                of_tensors, found[i] = found[i], None
            return (*found, None, *of_tensors)

    def kernel(keyset, *arguments):
        arguments += defaults[len(arguments) :]  # the dispatcher leaves out what has its default value
        tensors = [tensor for i in listed for tensor in arguments[i]]
        if torch.is_grad_enabled() and torch._C._any_requires_grad(*arguments, *tensors):
            plain = [None if i in listed else argument for i, argument in enumerate(arguments)]
            output = Recorded.apply(*plain, keyset, *tensors)
            return list(output) if returns_list else output
        return run(keyset, arguments)

    return kernel


def _noticed(operator, changed: int) -> Callable:
    """The kernel that tells autograd that an operator has changed its first `changed` arguments."""

    def kernel(keyset, *arguments):
        torch.autograd.graph.increment_version(arguments[:changed])
        return operator.redispatch(keyset & torch._C._after_ADInplaceOrView_keyset, *arguments)

    return kernel


def register(namespace: str, kernels: Mapping[str, Callable] | None = None, key: str = "CPU") -> Operators:
    """Complete the operators of a namespace and return them.

    Schemas that a compiled library has not defined are defined here. Every operator gets the
    reference as its default kernel, and `kernels` (by operator, for dispatch key `key`) before it.
    """
    library_ = torch.library.Library(namespace, "FRAGMENT")
    _libraries.append(library_)
    packets = getattr(torch.ops, namespace)
    for name, schema in SCHEMAS.items():
        if not hasattr(packets, name):
            library_.define(name + schema)
    operators = Operators(**{name: getattr(packets, name).default for name in SCHEMAS})
    for name in SCHEMAS:
        qualified = f"{namespace}::{name}"
        library_.impl(name, REFERENCE[name], "CompositeExplicitAutograd")
        torch.library.register_fake(qualified, FAKES[name], lib=library_)
        if name in GRADIENTS:
            operator = getattr(operators, name)
            kernel = _recorded(operator, operators, *GRADIENTS[name])
            library_.impl(name, kernel, "Autograd", with_keyset=True)
    noticed = _noticed(operators.update_statistics, changed=3)
    library_.impl("update_statistics", noticed, "ADInplaceOrView", with_keyset=True)
    for name, kernel in (kernels or {}).items():
        library_.impl(name, kernel, key)
    return operators


load_failure = library.load(library.CPU)
OPERATORS = register("irnext")
if hasattr(torch.ops.irnext, "winograd_conv2d"):  # of the compiled library alone
    torch.library.register_fake("irnext::winograd_conv2d", _winograd_conv2d_fake, lib=_libraries[0])
for _name, _schema in COMPOSITES.items():
    _libraries[0].define(_name + _schema)
    _libraries[0].impl(_name, getattr(reference, _name), "CompositeImplicitAutograd")
    setattr(OPERATORS, _name, getattr(torch.ops.irnext, _name).default)
