"""The gradients of `predict`: from the T + 1 sums per plane to all parameters and the plane means."""

import triton
import triton.language as tl

from .predict import activate, activation_gradient, product


@triton.jit
def plane_sums_of_group(p_sums, n, c, t, m, n_n, n_c, n_splits, ROW: tl.constexpr):
    """The sums [B_N, B_G, B_T] (or without the last axis) of samples n, channels c, columns t."""
    p = p_sums + (n * n_c + c) * ROW + t
    total = tl.load(p, mask=m, other=0.0)
    for i_split in range(1, n_splits):
        total += tl.load(p + i_split * (n_n * n_c) * ROW, mask=m, other=0.0)
    return total


@triton.jit
def predict_filter_backward(
    p_sums, p_mean, p_weight, p_norm_weight, p_norm_bias, p_mu, p_var, p_low, p_inner, p_high,
    p_kernel, p_scale, p_plane, p_dz, p_zhat,
    p_dnorm_weight, p_dnorm_bias, p_dlow, p_dinner, p_dhigh,
    n_n, n_c, n_groups, n_splits,
    EPS: tl.constexpr, ACTIVATION: tl.constexpr, CENTRE: tl.constexpr, TAPS: tl.constexpr,
    TRAINING: tl.constexpr, LOCAL: tl.constexpr, ACC: tl.constexpr,
    B_N: tl.constexpr, B_G: tl.constexpr, B_T: tl.constexpr, B_K: tl.constexpr,
):  # fmt: skip
    """All gradients of group g but those of W and m, for which dz (N, G * T) is left; the kernel anew.

    p_plane gets what dm has beside dz W: -l s (sum of u), or zero where the bias is a local mean;
    then p_scale gets -l s.
    """
    i_g = tl.program_id(0)
    n_shared = n_c // n_groups
    t, s = tl.arange(0, B_T), tl.arange(0, B_G)
    o_t, n_t, o_c = i_g * TAPS + t, i_g * TAPS + TAPS, i_g * n_shared + s
    m_t, m_s = t < TAPS, s < n_shared
    low = tl.load(p_low + o_c, mask=m_s, other=0.0)[None, :]
    inner = tl.load(p_inner + o_c, mask=m_s, other=0.0)[None, :]
    high = tl.load(p_high + o_c, mask=m_s, other=0.0)[None, :]
    gain = low * (1 + inner)
    norm_weight = tl.load(p_norm_weight + o_t, mask=m_t, other=0.0)[None, :]
    norm_bias = tl.load(p_norm_bias + o_t, mask=m_t, other=0.0)[None, :]
    mu = tl.load(p_mu + o_t, mask=m_t, other=0.0)[None, :]
    rstd = 1 / tl.sqrt(tl.load(p_var + o_t, mask=m_t, other=0.0) + EPS)[None, :]
    dlow, dinner, dhigh = tl.zeros([B_G], ACC), tl.zeros([B_G], ACC), tl.zeros([B_G], ACC)
    dnorm_weight, dnorm_bias = tl.zeros([B_T], ACC), tl.zeros([B_T], ACC)
    for start in range(0, n_n, B_N):
        n = start + tl.arange(0, B_N)
        m_n = n < n_n
        o_logit = n[:, None] * (n_groups * TAPS) + o_t[None, :]
        m_logit = m_n[:, None] & m_t[None, :]
        z = product(p_mean, p_weight, n, o_t, n_n, n_t, n_c, 1, 0, n_c, 1, 1, n_c, ACC, B_N, B_T, B_K)
        zhat = (z - mu) * rstd
        attention = activate(zhat * norm_weight + norm_bias, m_t[None, :], ACTIVATION)

        o_plane, m_plane = n[:, None] * n_c + o_c[None, :], m_n[:, None] & m_s[None, :]
        m_sums = m_plane[:, :, None] & m_t[None, None, :]
        sums = plane_sums_of_group(
            p_sums,
            n[:, None, None],
            o_c[None, :, None],
            t[None, None, :],
            m_sums,
            n_n,
            n_c,
            n_splits,
            TAPS + 1,
        )
        response = tl.sum(attention[:, None, :] * sums, 2)
        centre = tl.sum(tl.where((t == CENTRE)[None, None, :], sums, 0.0), 2)
        # The sum of u times the mean, or of u times the local mean.
        total = plane_sums_of_group(
            p_sums, n[:, None], o_c[None, :], TAPS, m_plane, n_n, n_c, n_splits, TAPS + 1
        )
        if LOCAL:
            offset = total
            tl.store(p_scale + o_plane, -low * inner + tl.zeros([B_N, B_G], ACC), mask=m_plane)
            tl.store(p_plane + o_plane, tl.zeros([B_N, B_G], ACC), mask=m_plane)
        else:
            offset = total * tl.load(p_mean + o_plane, mask=m_plane, other=0.0)
            tl.store(p_plane + o_plane, -low * inner * total, mask=m_plane)
        dlow += tl.sum((1 + inner) * response - inner * offset, 0)
        dinner += tl.sum(low * (response - offset), 0)
        dhigh += tl.sum(centre, 0)

        kernel = gain[:, :, None] * attention[:, None, :]
        kernel += tl.where((t == CENTRE)[None, None, :], (1 + high)[:, :, None], 0.0)
        tl.store(p_kernel + o_plane[:, :, None] * TAPS + t[None, None, :], kernel, mask=m_sums)

        d = activation_gradient(attention, tl.sum(gain[:, :, None] * sums, 1), ACTIVATION)
        dnorm_bias += tl.sum(d, 0)
        dnorm_weight += tl.sum(d * tl.where(m_logit, zhat, 0.0), 0)
        if TRAINING:
            tl.store(p_dz + o_logit, d, mask=m_logit)
            tl.store(p_zhat + o_logit, zhat, mask=m_logit)
        else:
            tl.store(p_dz + o_logit, d * norm_weight * rstd, mask=m_logit)
    if TRAINING:
        tl.debug_barrier()
        for start in range(0, n_n, B_N):
            n = start + tl.arange(0, B_N)
            o_logit = n[:, None] * (n_groups * TAPS) + o_t[None, :]
            m_logit = (n < n_n)[:, None] & m_t[None, :]
            d = tl.load(p_dz + o_logit, mask=m_logit, other=0.0)
            zhat = tl.load(p_zhat + o_logit, mask=m_logit, other=0.0)
            d -= (dnorm_bias[None, :] + zhat * dnorm_weight[None, :]) / n_n
            tl.store(p_dz + o_logit, d * norm_weight * rstd, mask=m_logit)
    tl.store(p_dnorm_weight + o_t, dnorm_weight, mask=m_t)
    tl.store(p_dnorm_bias + o_t, dnorm_bias, mask=m_t)
    tl.store(p_dlow + o_c, dlow, mask=m_s)
    tl.store(p_dinner + o_c, dinner, mask=m_s)
    tl.store(p_dhigh + o_c, dhigh, mask=m_s)


@triton.jit
def projection_backward(
    p_dz, p_mean, p_weight, p_plane, p_dweight,
    n_n, n_c, n_logits, area,
    ACC: tl.constexpr, B_I: tl.constexpr, B_J: tl.constexpr, B_K: tl.constexpr,
):  # fmt: skip
    """dW = dz^T m, and in p_plane dm / area for dm = dz W + p_plane: one tile of either per program."""
    i, tiles_c = tl.program_id(0), tl.cdiv(n_c, B_J)
    tiles_weight = tl.cdiv(n_logits, B_I) * tiles_c
    if i < tiles_weight:
        o_i = (i // tiles_c) * B_I + tl.arange(0, B_I)
        o_j = (i % tiles_c) * B_J + tl.arange(0, B_J)
        d = product(p_dz, p_mean, o_i, o_j, n_logits, n_c, n_n, 1, 0, 1, n_logits, n_c, 1, ACC, B_I, B_J, B_K)
        m = (o_i < n_logits)[:, None] & (o_j < n_c)[None, :]
        tl.store(p_dweight + o_i[:, None] * n_c + o_j[None, :], d, mask=m)
    else:
        i -= tiles_weight
        o_i = (i // tiles_c) * B_I + tl.arange(0, B_I)
        o_j = (i % tiles_c) * B_J + tl.arange(0, B_J)
        d = product(
            p_dz, p_weight, o_i, o_j, n_n, n_c, n_logits, 1, 0, n_logits, 1, n_c, 1, ACC, B_I, B_J, B_K
        )
        m = (o_i < n_n)[:, None] & (o_j < n_c)[None, :]
        p_tile = p_plane + o_i[:, None] * n_c + o_j[None, :]
        tl.store(p_tile, (d + tl.load(p_tile, mask=m, other=0.0)) / area, mask=m)
