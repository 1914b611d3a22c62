"""One schema per operator, with its shape function and its gradient.

The compiled library defines the schemas of the operators it implements (so that
it also works from C++ without Python); this module defines the rest, gives every
operator a default kernel (the reference), and registers fakes and gradients. A
backend only adds kernels: no caller changes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import library, reference

SCHEMAS = {
    "dynamic_conv2d": "(Tensor x, Tensor kernel, Tensor? bias=None, int dilation=1, "
    'str padding_mode="reflect") -> Tensor',
    "dynamic_conv2d_backward": "(Tensor grad, Tensor x, Tensor kernel, int dilation, str padding_mode, "
    "bool need_x, bool need_kernel) -> (Tensor, Tensor)",
    "spatial_mean": "(Tensor x) -> Tensor",
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


def _dynamic_conv2d_backward_reference(grad, x, kernel, dilation, padding_mode, need_x, need_kernel):
    with torch.enable_grad():
        inputs = [t.detach().requires_grad_(need) for t, need in ((x, need_x), (kernel, need_kernel))]
        y = reference.dynamic_conv2d(*inputs, None, dilation, padding_mode)
        wanted = [t for t in inputs if t.requires_grad]
        found = iter(torch.autograd.grad(y, wanted, grad) if wanted else ())
    absent = grad.new_empty(0)
    return (
        torch.empty_like(x).copy_(next(found)) if need_x else absent,
        next(found) if need_kernel else absent.to(kernel.dtype),
    )


def _dynamic_conv2d_fake(x, kernel, bias=None, dilation=1, padding_mode="reflect"):
    return torch.empty_like(x)


def _dynamic_conv2d_backward_fake(grad, x, kernel, dilation, padding_mode, need_x, need_kernel):
    return (
        torch.empty_like(x) if need_x else grad.new_empty(0),
        torch.empty_like(kernel, memory_format=torch.contiguous_format)
        if need_kernel
        else kernel.new_empty(0),
    )


def _bias_gradient(grad: Tensor, bias: Tensor) -> Tensor:
    """Sum `grad` over what `bias` is broadcast along: the plane, its rows, its columns, or nothing."""
    if bias.ndim == 2:
        total = reference.accumulation_dtype(bias.dtype)
        return grad.sum((2, 3), dtype=total).to(bias.dtype)
    return grad.sum_to_size(bias.shape).to(bias.dtype)


def _save_dynamic_conv2d(ctx, inputs, output):
    x, kernel, bias, ctx.dilation, ctx.padding_mode = inputs
    ctx.save_for_backward(x, kernel, bias)


def _dynamic_conv2d_gradient(ctx, grad):
    x, kernel, bias = ctx.saved_tensors
    need_x, need_kernel, need_bias = ctx.needs_input_grad[:3]
    dx = dkernel = dbias = None
    if need_x or need_kernel:
        dx, dkernel = torch.ops.irnext.dynamic_conv2d_backward(
            grad, x, kernel, ctx.dilation, ctx.padding_mode, need_x, need_kernel
        )
    if need_bias:
        dbias = _bias_gradient(grad, bias)
    return dx if need_x else None, dkernel if need_kernel else None, dbias, None, None


def _save_dynamic_conv2d_backward(ctx, inputs, output):
    grad, x, kernel, ctx.dilation, ctx.padding_mode, ctx.need_x, ctx.need_kernel = inputs
    ctx.save_for_backward(grad, x, kernel)


def _dynamic_conv2d_double_gradient(ctx, grad_dx, grad_dkernel):
    """The operator is linear in x and in the kernel, so its gradients are made of itself.

    With F(x; k) the filter: dx = F^T(u; k) and dk = <u, shifted x>. For cotangents v of dx and
    w of dk: du = F(v; k) + F(x; w), d(x) = F^T(u; w), d(k) = <u, shifted v>.
    """
    u, x, kernel = ctx.saved_tensors
    shape = (ctx.dilation, ctx.padding_mode)
    v = grad_dx if ctx.need_x else None
    w = grad_dkernel if ctx.need_kernel else None
    need_u, need_x, need_kernel = ctx.needs_input_grad[:3]
    du = dx = dk = None
    if need_u:
        terms = []
        if v is not None:
            terms.append(torch.ops.irnext.dynamic_conv2d(v, kernel, None, *shape))
        if w is not None:
            terms.append(torch.ops.irnext.dynamic_conv2d(x, w, None, *shape))
        du = sum(terms)
    if need_x and w is not None:
        dx, _ = torch.ops.irnext.dynamic_conv2d_backward(u, x, w, *shape, True, False)
    if need_kernel and v is not None:
        _, dk = torch.ops.irnext.dynamic_conv2d_backward(u, v, kernel, *shape, False, True)
    return du, dx, dk, None, None, None, None


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
    height, width = ctx.shape[2:]
    return (grad / (height * width)).to(ctx.dtype)[..., None, None].expand(ctx.shape)


_library.impl("spatial_mean", reference.spatial_mean, "CompositeExplicitAutograd")
torch.library.register_fake("irnext::spatial_mean", _spatial_mean_fake, lib=_library)
torch.library.register_autograd(
    "irnext::spatial_mean", _spatial_mean_gradient, setup_context=_save_spatial_mean, lib=_library
)


# ---- operators that only the reference implements: their gradients and fakes follow from it -------

for _name in ("local_mean", "pool_pyramid", "merge_pyramid", "conv2d_bias_act"):
    _library.impl(_name, getattr(reference, _name), "CompositeImplicitAutograd")
