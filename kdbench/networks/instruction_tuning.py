"""Stage 1 of LinguGKD: a language model learns to answer the prompts about nodes, through LoRA adapters only.

Source: Hu et al., "Large Language Model Meets Graph Neural Network in Knowledge Distillation", arXiv 2402.05894.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from kdbench.errors import UsageError, unknown
from kdbench.networks.language_model import IGNORED, TuningOptions, collate, completion_nll, encode, load, pad_id
from kdbench.networks.sentence_encoder import require

warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)  # peft asks for it


@dataclass(frozen=True)
class TuningResult:
    """loss_first, loss_last: mean training loss (nats per answer token) of the first and last ``accumulate`` batches.

    steps: optimiser steps taken. seconds: wall time of the fit. notes: what a record should say about the base.
    """

    loss_first: float
    loss_last: float
    steps: int
    seconds: float
    notes: tuple[str, ...]


class InstructionTuning(pl.LightningModule):
    """Stage 1: LoRA adapters learn to answer; the base stays as it is.

    Loss of a batch: Σ_i L_LM(i) / Σ_i |y_i|, the mean over answer tokens, so that lr does not depend on their number.
    NEFTune, in train mode: X + (alpha / √(T·d)) U, with X the input embeddings [B, T, d], U_btj uniform on [-1, 1].
    Sources: arXiv 2402.05894, stage 1; LoRA, arXiv 2106.09685, equation 3; QLoRA, arXiv 2305.14314;
    NEFTune, arXiv 2310.05914, algorithm 1.
    Raises UsageError for target_modules that the network lacks: peft would pass over them in silence.
    """

    def __init__(self, network: Any, options: TuningOptions) -> None:
        super().__init__()
        peft = require("peft", "graph")
        linear = {name.rpartition(".")[2] for name, part in network.named_modules() if hasattr(part, "in_features")}
        for name in options.target_modules:
            if name not in linear:
                raise unknown("LoRA target module", name, linear)
        self.options = options
        self.losses: list[Tensor] = []
        self.network = peft.get_peft_model(
            network,
            peft.LoraConfig(
                task_type="CAUSAL_LM",
                r=options.lora_r,
                lora_alpha=options.lora_alpha,
                lora_dropout=options.lora_dropout,
                target_modules=list(options.target_modules),
            ),
        )

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        """Logits [B, T, V] of a batch of ``collate``."""
        states = self.network.get_input_embeddings()(batch["input_ids"])  # [B, T, d]
        if self.training and self.options.neftune_alpha:
            scale = self.options.neftune_alpha / (states.shape[1] * states.shape[2]) ** 0.5
            states = states + torch.empty_like(states).uniform_(-scale, scale)
        logits: Tensor = self.network(inputs_embeds=states, attention_mask=batch["attention_mask"]).logits
        return logits

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        loss = completion_nll(self(batch), batch["labels"]).sum() / (batch["labels"][:, 1:] != IGNORED).sum()
        self.losses.append(loss.detach())
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        adapters = [parameter for parameter in self.parameters() if parameter.requires_grad]
        return torch.optim.AdamW(adapters, lr=self.options.lr, weight_decay=0.0)


class Examples(Dataset[tuple[str, str]]):
    """(prompt, response) pairs, tokenised batch by batch: the tokens of a large graph would take gigabytes."""

    def __init__(self, pairs: Sequence[tuple[str, str]]) -> None:
        self.pairs = pairs

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> tuple[str, str]:
        return self.pairs[index]


def tune(
    model: str | Path,
    examples: Sequence[tuple[str, str]],
    options: TuningOptions,
    folder: Path,
    seed: int,
    trainer_options: Mapping[str, Any] | None = None,
) -> TuningResult:
    """Stage 1: tune ``model`` on (prompt, response) pairs; write the adapter and the tokenizer to ``folder``.

    The folder refers to the base model and opens with ``load``. One ``seed`` draws adapters, order, dropout and noise;
    on a CPU it fixes every byte of the folder. The caller's random state is left as it was. ``trainer_options`` go
    to Lightning's Trainer over the defaults. Raises UsageError without examples, and what ``load`` raises.
    """
    if not examples:
        raise UsageError("There is nothing to tune on: no (prompt, response) pairs were given.")
    tokenizer, network, notes = load(model, options.quantize)

    def batch_of(some: Sequence[tuple[str, str]]) -> dict[str, Tensor]:
        return collate([encode(tokenizer, *example, options) for example in some], pad_id(tokenizer))

    precision = options.precision
    if precision == "auto":
        precision = "bf16-mixed" if torch.cuda.is_available() else "32-true"
    settings: dict[str, Any] = {
        "max_epochs": options.epochs,
        "max_steps": options.max_steps,
        "accumulate_grad_batches": options.accumulate,
        "precision": precision,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        module = InstructionTuning(network, options).train()
        loader = DataLoader(Examples(examples), batch_size=options.batch_size, shuffle=True, collate_fn=batch_of)
        trainer = pl.Trainer(**settings | dict(trainer_options or {}))
        start = time.perf_counter()
        trainer.fit(module, loader)
        seconds = time.perf_counter() - start
    if trainer.is_global_zero:
        # peft keeps the names in a set, whose order differs between processes; sorted, a seed fixes the bytes.
        module.network.peft_config["default"].target_modules = sorted(options.target_modules)
        # peft would add the whole embedding matrices, because lm_head is a target; they never change.
        module.network.save_pretrained(str(folder), save_embedding_layers=False)
        tokenizer.save_pretrained(str(folder))
    trainer.strategy.barrier()
    first, last = module.losses[: options.accumulate], module.losses[-options.accumulate :]
    return TuningResult(_mean(first), _mean(last), trainer.global_step, seconds, notes)


def _mean(losses: Sequence[Tensor]) -> float:
    return float(torch.stack(list(losses)).mean())
