"""Losses and distributed helpers that more than one method uses."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.nn.functional import all_gather
from torch.nn import functional as F


def distillation_kl(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Softened Kullback–Leibler divergence, Hinton et al. 2015 (arXiv 1503.02531), section 2.

    ``T² · mean_b Σ_c p_c (log p_c − log q_c)``, ``p = softmax(teacher / T)``, ``q = softmax(student / T)``.
    ``student``, ``teacher``: logits ``[b, C]``; returns a scalar in float32.
    """
    log_q = F.log_softmax(student.float() / temperature, dim=-1)
    log_p = F.log_softmax(teacher.float() / temperature, dim=-1)
    return temperature**2 * F.kl_div(log_q, log_p, reduction="batchmean", log_target=True)


def info_nce(anchors: Tensor, candidates: Tensor, positives: Tensor, negatives: Tensor, temperature: float) -> Tensor:
    """Contrastive loss over cosine similarities, one direction.

    ``−mean_i log( exp(c_ip/τ) / (exp(c_ip/τ) + Σ_{j ∈ N(i)} exp(c_ij/τ)) )``, ``c_ij = cos(a_i, z_j)``, ``p = positives[i]``.
    ``anchors`` ``[b, d]``, ``candidates`` ``[n, d]``, ``positives`` int64 ``[b]``, ``negatives`` bool ``[b, n]``. In float32
    with a log-softmax; an anchor without negatives contributes 0. Source: van den Oord et al. 2018 (arXiv 1807.03748), eq. 4.
    """
    with torch.autocast(anchors.device.type, enabled=False):
        a, z = F.normalize(anchors.float(), dim=-1), F.normalize(candidates.float(), dim=-1)
        similarity = a @ z.T / temperature
        keep = negatives.scatter(1, positives[:, None], True)
        return F.cross_entropy(similarity.masked_fill(~keep, -torch.inf), positives)


def gather(rows: Tensor) -> tuple[Tensor, int]:
    """All processes' rows ``[W·b, *]`` in rank order, and the offset of ours; gradients flow back to every process.

    A loss over gathered rows, averaged over local anchors, equals under DDP the same loss of one process on the global
    batch. Every process must hold the same number of rows.
    """
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return rows, 0
    parts = all_gather(rows) if rows.requires_grad else _all_gather(rows)  # type: ignore[no-untyped-call]
    return torch.cat(list(parts)), dist.get_rank() * len(rows)


def _all_gather(rows: Tensor) -> list[Tensor]:
    parts = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, rows.contiguous())
    return parts
