"""One schema per operator, with its shape function and its gradient.

The compiled library defines the schemas of the operators it implements (so that
it also works from C++ without Python); this module defines the rest, gives every
operator a default kernel (the reference), and registers fakes and gradients. A
backend only adds kernels: no caller changes.
"""

from __future__ import annotations

import torch

from . import library, reference

SCHEMAS = {
    "dynamic_conv2d": "(Tensor x, Tensor kernel, Tensor? bias=None, int dilation=1, "
    'str padding_mode="reflect") -> Tensor',
    "dynamic_conv2d_backward": "(Tensor grad, Tensor x, Tensor kernel, int dilation, str padding_mode, "
    "bool need_x, bool need_kernel, bool need_sum) -> (Tensor, Tensor, Tensor)",
    "spatial_mean": "(Tensor x) -> Tensor",
    "modulated_filter": "(Tensor logits, Tensor mean, Tensor low, Tensor inner, Tensor high, "
    "str activation) -> (Tensor, Tensor)",
    "modulated_filter_backward": "(Tensor grad_kernel, Tensor grad_bias, Tensor logits, Tensor mean, "
    "Tensor low, Tensor inner, str activation) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    "local_mean": "(Tensor x, int[2] window) -> Tensor",
    "pool_pyramid": "(Tensor x, int[] rates) -> Tensor[]",
    "merge_pyramid": "(Tensor x, Tensor[] branches) -> Tensor",
    "conv2d_bias_act": "(Tensor x, Tensor weight, Tensor? bias=None, str? activation=None, "
    "Tensor? residual=None) -> Tensor",
}

load_failure = library.load()
_library = torch.library.Library("irnext", "FRAGMENT")
for _name, _schema in SCHEMAS.items():
    if not hasattr(torch.ops.irnext, _name):
        _library.define(_name + _schema)


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


def _sum_to(grad: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """The gradient of a bias of `shape` (N, C, H or 1, W or 1), summed in float32 or wider."""
    dims = [dim for dim in (2, 3) if shape[dim] != grad.shape[dim]]
    wide = reference.accumulation_dtype(grad.dtype)
    return grad.sum(dims, keepdim=True, dtype=wide) if dims else grad


def _save_dynamic_conv2d(ctx, inputs, output):
    x, kernel, bias, ctx.dilation, ctx.padding_mode = inputs
    ctx.save_for_backward(x, kernel)
    ctx.bias = None if bias is None else (bias.shape, bias.dtype)


def _dynamic_conv2d_gradient(ctx, grad):
    x, kernel = ctx.saved_tensors
    # The dispatcher leaves out trailing arguments that have their default value.
    need_x, need_kernel, need_bias = (*ctx.needs_input_grad[:3], False)[:3]
    need_sum = need_bias and len(ctx.bias[0]) == 2
    dx = dkernel = dbias = None
    if need_x or need_kernel or need_sum:
        dx, dkernel, dbias = torch.ops.irnext.dynamic_conv2d_backward.default(
            grad, x, kernel, ctx.dilation, ctx.padding_mode, need_x, need_kernel, need_sum
        )
    if need_bias:
        shape, dtype = ctx.bias
        dbias = (dbias if need_sum else _sum_to(grad, shape)).to(dtype)
    return dx if need_x else None, dkernel if need_kernel else None, dbias if need_bias else None, None, None


def _save_dynamic_conv2d_backward(ctx, inputs, output):
    grad, x, kernel, ctx.dilation, ctx.padding_mode, ctx.need_x, ctx.need_kernel, ctx.need_sum = inputs
    ctx.save_for_backward(grad, x, kernel)


def _dynamic_conv2d_double_gradient(ctx, grad_dx, grad_dkernel, grad_sum):
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
            terms.append(torch.ops.irnext.dynamic_conv2d.default(v, kernel, None, *shape))
        if w is not None:
            terms.append(torch.ops.irnext.dynamic_conv2d.default(x, w, None, *shape))
        if bias is not None:
            terms.append(bias.to(u.dtype)[..., None, None].expand(u.shape))
        du = sum(terms)
    if need_x and w is not None:
        dx = torch.ops.irnext.dynamic_conv2d_backward.default(u, x, w, *shape, True, False, False)[0]
    if need_kernel and v is not None:
        dk = torch.ops.irnext.dynamic_conv2d_backward.default(u, v, kernel, *shape, False, True, False)[1]
    return du, dx, dk, None, None, None, None, None


_library.impl("dynamic_conv2d", reference.dynamic_conv2d, "CompositeExplicitAutograd")
_library.impl("dynamic_conv2d_backward", _dynamic_conv2d_backward_reference, "CompositeExplicitAutograd")
torch.library.register_fake("irnext::dynamic_conv2d", _dynamic_conv2d_fake, lib=_library)
torch.library.register_fake("irnext::dynamic_conv2d_backward", _dynamic_conv2d_backward_fake, lib=_library)
torch.library.register_autograd(
    "irnext::dynamic_conv2d",
    _dynamic_conv2d_gradient,
    setup_context=_save_dynamic_conv2d,
    lib=_library,
)
torch.library.register_autograd(
    "irnext::dynamic_conv2d_backward",
    _dynamic_conv2d_double_gradient,
    setup_context=_save_dynamic_conv2d_backward,
    lib=_library,
)


# ---- spatial_mean --------------------------------------------------------------------------------


def _spatial_mean_fake(x):
    return x.new_empty(x.shape[:2], dtype=reference.accumulation_dtype(x.dtype))


def _save_spatial_mean(ctx, inputs, output):
    (x,) = inputs
    ctx.shape, ctx.dtype = x.shape, x.dtype


def _spatial_mean_gradient(ctx, grad):
    n, c, height, width = ctx.shape
    return (grad * (1 / max(height * width, 1))).to(ctx.dtype).view(n, c, 1, 1).expand(ctx.shape)


_library.impl("spatial_mean", reference.spatial_mean, "CompositeExplicitAutograd")
torch.library.register_fake("irnext::spatial_mean", _spatial_mean_fake, lib=_library)
torch.library.register_autograd(
    "irnext::spatial_mean", _spatial_mean_gradient, setup_context=_save_spatial_mean, lib=_library
)


# ---- modulated_filter ----------------------------------------------------------------------------


def _modulated_filter_fake(logits, mean, low, inner, high, activation):
    return logits.new_empty(*mean.shape, *logits.shape[2:]), mean.new_empty(mean.shape)


def _modulated_filter_backward_fake(grad_kernel, grad_bias, logits, mean, low, inner, activation):
    return (
        logits.new_empty(logits.shape),
        mean.new_empty(mean.shape),
        *(low.new_empty(low.numel()) for _ in "lsh"),
    )


def _save_modulated_filter(ctx, inputs, output):
    logits, mean, low, inner, high, ctx.activation = inputs
    ctx.gain_shapes = low.shape, inner.shape, high.shape
    ctx.save_for_backward(logits, mean, low, inner)


def _modulated_filter_gradient(ctx, grad_kernel, grad_bias):
    # Where the gradient is to be differentiated itself, it is computed by differentiable operators.
    fused = torch.ops.irnext.modulated_filter_backward.default
    backward = reference.modulated_filter_backward if torch.is_grad_enabled() else fused
    dlogits, dmean, *gains = backward(grad_kernel, grad_bias, *ctx.saved_tensors, ctx.activation)
    gains = [g if g.shape == s else g.view(s) for g, s in zip(gains, ctx.gain_shapes, strict=True)]
    return dlogits, dmean, *gains, None


_library.impl("modulated_filter", reference.modulated_filter, "CompositeExplicitAutograd")
_library.impl("modulated_filter_backward", reference.modulated_filter_backward, "CompositeExplicitAutograd")
torch.library.register_fake("irnext::modulated_filter", _modulated_filter_fake, lib=_library)
torch.library.register_fake(
    "irnext::modulated_filter_backward", _modulated_filter_backward_fake, lib=_library
)
torch.library.register_autograd(
    "irnext::modulated_filter",
    _modulated_filter_gradient,
    setup_context=_save_modulated_filter,
    lib=_library,
)


# ---- operators that only the reference implements: their gradients and fakes follow from it -------

for _name in ("local_mean", "pool_pyramid", "merge_pyramid", "conv2d_bias_act"):
    _library.impl(_name, getattr(reference, _name), "CompositeImplicitAutograd")
