"""The few numbers of a local attention between the plane means and the filter, forward and backward.

z = W m, logits = BatchNorm(z), A = activation(logits), kernel = l (1 + s) A + (1 + h) [centre tap]
and bias = -l s m. A program has one group g: its taps are columns t of W and of the logits.
"""

import triton
import triton.language as tl

TANH = tl.constexpr(0)
SIGMOID = tl.constexpr(1)
SOFTMAX = tl.constexpr(2)
ACTIVATIONS = {"tanh": 0, "sigmoid": 1, "softmax": 2}


@triton.jit
def product(
    p_a, p_b, o_i, o_j, n_i, n_j, n_k, n_splits, s_split, s_ai, s_ak, s_bk, s_bj,
    ACC: tl.constexpr, B_I: tl.constexpr, B_J: tl.constexpr, B_K: tl.constexpr,
):  # fmt: skip
    """sum over k of a[i, k] b[k, j] at [B_I, B_J], a being the sum of n_splits matrices.

    Not tl.dot: its float32 products are rounded to fewer digits on tensor cores.
    """
    total = tl.zeros([B_I, B_J], ACC)
    for start in range(0, n_k, B_K):
        k = start + tl.arange(0, B_K)
        m_a = (o_i < n_i)[:, None] & (k < n_k)[None, :]
        p_block = p_a + o_i[:, None] * s_ai + k[None, :] * s_ak
        a = tl.load(p_block, mask=m_a, other=0.0)
        for i_split in range(1, n_splits):
            a += tl.load(p_block + i_split * s_split, mask=m_a, other=0.0)
        m_b = (k < n_k)[None, :] & (o_j < n_j)[:, None]
        b = tl.load(p_b + k[None, :] * s_bk + o_j[:, None] * s_bj, mask=m_b, other=0.0)
        total += tl.sum(a[:, None, :] * b[None, :, :], 2)
    return total


@triton.jit
def activate(logits, m_t, ACTIVATION: tl.constexpr):
    """A from its logits [B_N, B_T], taps m_t [1, B_T]; zero beyond the taps."""
    if ACTIVATION == SOFTMAX:
        logits = tl.where(m_t, logits, float("-inf"))
        weights = tl.exp(logits - tl.max(logits, 1)[:, None])
        return weights / tl.sum(weights, 1)[:, None]
    elif ACTIVATION == TANH:
        shrunk = tl.exp(-2 * tl.abs(logits))
        size = (1 - shrunk) / (1 + shrunk)
        return tl.where(m_t, tl.where(logits < 0, -size, size), 0.0)
    else:
        return tl.where(m_t, 1 / (1 + tl.exp(-logits)), 0.0)


@triton.jit
def activation_gradient(attention, d, ACTIVATION: tl.constexpr):
    """From the gradient d of A [B_N, B_T] that of the logits."""
    if ACTIVATION == SOFTMAX:
        return attention * (d - tl.sum(attention * d, 1)[:, None])
    elif ACTIVATION == TANH:
        return d * (1 - attention * attention)
    else:
        return d * attention * (1 - attention)


@triton.jit
def group_means(p_partial, n, m_n, i_c, n_n, n_c, n_splits, area, ACC: tl.constexpr):
    """The plane means of channel i_c for samples n, from partial sums."""
    total = tl.load(p_partial + n * n_c + i_c, mask=m_n, other=0.0)
    for i_split in range(1, n_splits):
        total += tl.load(p_partial + (i_split * n_n + n) * n_c + i_c, mask=m_n, other=0.0)
    return total / area


@triton.jit
def write_filter(
    p_partial, p_low, p_inner, p_high, p_mean, p_kernel, p_bias,
    attention, n, i_g, n_n, n_c, n_shared, n_splits, area,
    CENTRE: tl.constexpr, TAPS: tl.constexpr, LOCAL: tl.constexpr, ACC: tl.constexpr, B_T: tl.constexpr,
):  # fmt: skip
    """The plane means, kernels and biases of group i_g from A [B_N, B_T]."""
    t = tl.arange(0, B_T)
    m_n = n < n_n
    for i in range(n_shared):
        i_c = i_g * n_shared + i
        low, inner, high = tl.load(p_low + i_c), tl.load(p_inner + i_c), tl.load(p_high + i_c)
        mean = group_means(p_partial, n, m_n, i_c, n_n, n_c, n_splits, area, ACC)
        kernel = low * (1 + inner) * attention + tl.where(t == CENTRE, 1 + high, 0.0)[None, :]
        o_plane = n * n_c + i_c
        tl.store(p_mean + o_plane, mean, mask=m_n)
        offsets = o_plane[:, None] * TAPS + t[None, :]
        tl.store(p_kernel + offsets, kernel, mask=m_n[:, None] & (t < TAPS)[None, :])
        bias = -low * inner * tl.where(m_n, 1.0, 0.0) if LOCAL else -low * inner * mean
        tl.store(p_bias + o_plane, bias.to(ACC), mask=m_n)


@triton.jit
def predict_filter(
    p_partial, p_weight, p_norm_weight, p_norm_bias, p_mu, p_var, p_low, p_inner, p_high,
    p_mean, p_kernel, p_bias, p_z,
    n_n, n_c, n_groups, n_splits, area,
    EPS: tl.constexpr, ACTIVATION: tl.constexpr, CENTRE: tl.constexpr, TAPS: tl.constexpr,
    TRAINING: tl.constexpr, LOCAL: tl.constexpr, ACC: tl.constexpr,
    B_N: tl.constexpr, B_T: tl.constexpr, B_K: tl.constexpr,
):  # fmt: skip
    """mean, kernel and bias (or -l s, where the bias is a local mean) from the planes' partial sums.

    In training a program passes over all samples three times: z and its mean, its variance (both
    written to p_mu and p_var), the filter. Else it has B_N samples.
    """
    i_g = tl.program_id(0) % n_groups
    n_shared = n_c // n_groups
    t = tl.arange(0, B_T)
    o_t, n_t = i_g * TAPS + t, i_g * TAPS + TAPS
    norm_weight = tl.load(p_norm_weight + o_t, mask=t < TAPS, other=0.0)[None, :]
    norm_bias = tl.load(p_norm_bias + o_t, mask=t < TAPS, other=0.0)[None, :]
    first, last = (tl.program_id(0) // n_groups) * B_N, (tl.program_id(0) // n_groups + 1) * B_N
    if TRAINING:
        first, last = 0, n_n
        total = tl.zeros([B_T], ACC)
        for start in range(0, n_n, B_N):
            n = start + tl.arange(0, B_N)
            z = product(
                p_partial, p_weight, n, o_t, n_n, n_t, n_c, n_splits, n_n * n_c, n_c, 1, 1, n_c,
                ACC, B_N, B_T, B_K,
            ) / area  # fmt: skip
            m = (n < n_n)[:, None] & (t < TAPS)[None, :]
            tl.store(p_z + n[:, None] * (n_groups * TAPS) + o_t[None, :], z, mask=m)
            total += tl.sum(z, 0)
        tl.debug_barrier()
        mu = total / n_n
        total = tl.zeros([B_T], ACC)
        for start in range(0, n_n, B_N):
            n = start + tl.arange(0, B_N)
            m = (n < n_n)[:, None] & (t < TAPS)[None, :]
            z = tl.load(p_z + n[:, None] * (n_groups * TAPS) + o_t[None, :], mask=m, other=0.0)
            total += tl.sum(tl.where(m, (z - mu[None, :]) * (z - mu[None, :]), 0.0), 0)
        var = total / n_n
        tl.store(p_mu + o_t, mu, mask=t < TAPS)
        tl.store(p_var + o_t, var, mask=t < TAPS)
    else:
        mu = tl.load(p_mu + o_t, mask=t < TAPS, other=0.0)
        var = tl.load(p_var + o_t, mask=t < TAPS, other=0.0)
    scale = norm_weight / tl.sqrt(var + EPS)[None, :]
    for start in range(first, last, B_N):
        n = start + tl.arange(0, B_N)
        if TRAINING:
            m = (n < n_n)[:, None] & (t < TAPS)[None, :]
            z = tl.load(p_z + n[:, None] * (n_groups * TAPS) + o_t[None, :], mask=m, other=0.0)
        else:
            z = product(
                p_partial, p_weight, n, o_t, n_n, n_t, n_c, n_splits, n_n * n_c, n_c, 1, 1, n_c,
                ACC, B_N, B_T, B_K,
            ) / area  # fmt: skip
        attention = activate((z - mu[None, :]) * scale + norm_bias, (t < TAPS)[None, :], ACTIVATION)
        write_filter(
            p_partial, p_low, p_inner, p_high, p_mean, p_kernel, p_bias,
            attention, n, i_g, n_n, n_c, n_shared, n_splits, area, CENTRE, TAPS, LOCAL, ACC, B_T,
        )  # fmt: skip
