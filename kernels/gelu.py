"""GELU by the error function, x times the probability that a normal number is below x, and its derivative."""

import triton
import triton.language as tl


@triton.jit
def normal_distribution(x):
    """The probability that a normal number is below x."""
    return 0.5 * (1 + tl.erf(x * 0.7071067811865476))


@triton.jit
def gelu(x):
    """x times `normal_distribution`."""
    return x * normal_distribution(x)


@triton.jit
def gelu_derivative(x):
    """`normal_distribution` + x times its density."""
    return normal_distribution(x) + x * 0.3989422804014327 * tl.exp(-0.5 * x * x)
