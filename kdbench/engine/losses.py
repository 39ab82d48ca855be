"""Losses that more than one method uses."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def at_least_float32(x: Tensor) -> Tensor:
    """``x`` in float32, or in float64 if it is that already."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def distillation_kl(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Softened Kullback–Leibler divergence, Hinton et al. 2015 (arXiv 1503.02531), section 2.

    ``T² · mean_b Σ_c p_c (log p_c − log q_c)``, ``p = softmax(teacher / T)``, ``q = softmax(student / T)``.
    ``student``, ``teacher``: logits ``[b, C]``; returns a scalar, at least in float32.
    """
    log_q, log_p = (F.log_softmax(at_least_float32(z) / temperature, dim=-1) for z in (student, teacher))
    return temperature**2 * F.kl_div(log_q, log_p, reduction="batchmean", log_target=True)


def info_nce(anchors: Tensor, candidates: Tensor, positives: Tensor, negatives: Tensor, temperature: float) -> Tensor:
    """Contrastive loss over cosine similarities, one direction.

    ``−mean_i log( exp(c_ip/τ) / (exp(c_ip/τ) + Σ_{j ∈ N(i)} exp(c_ij/τ)) )``, ``c_ij = cos(a_i, z_j)``,
    ``p = positives[i]``. ``anchors`` ``[b, d]``, ``candidates`` ``[n, d]``, ``positives`` int64 ``[b]``, ``negatives``
    bool ``[b, n]``. At least in float32, with a log-softmax; an anchor without negatives contributes 0.
    Source: van den Oord et al. 2018 (arXiv 1807.03748), equation 4.
    """
    with torch.autocast(anchors.device.type, enabled=False):
        a, z = (F.normalize(at_least_float32(x), dim=-1) for x in (anchors, candidates))
        similarity = a @ z.T / temperature
        keep = negatives.scatter(1, positives[:, None], True)
        return F.cross_entropy(similarity.masked_fill(~keep, -torch.inf), positives)
