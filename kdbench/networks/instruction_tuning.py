"""Stage 1 of LinguGKD: a language model learns to answer the prompts about nodes, through LoRA adapters only.

Source: Hu et al., "Large Language Model Meets Graph Neural Network in Knowledge Distillation", arXiv 2402.05894.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from kdbench.engine.callbacks import Curves
from kdbench.engine.fitting import fit
from kdbench.engine.loaders import Loaders, RowLoader, Rows
from kdbench.errors import UsageError, unknown
from kdbench.networks.language_model import IGNORED, TuningOptions, collate, completion_nll, encode, load, pad_id
from kdbench.networks.sentence_encoder import require
from kdbench.plan.options import Trainer

warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)  # peft asks for it

CHECKPOINT = 100  # optimiser steps between two


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
        self.strict_loading = False  # a checkpoint holds the adapters alone
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

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        trained = {name for name, value in self.named_parameters() if value.requires_grad}
        checkpoint["state_dict"] = {k: v for k, v in checkpoint["state_dict"].items() if k in trained}
        checkpoint["losses"] = [float(loss) for loss in self.losses]

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.losses = [torch.tensor(loss) for loss in checkpoint["losses"]]


class Examples(pl.LightningDataModule):
    """Batches of (prompt, response) pairs, tokenised as they come: the tokens of a large graph would take gigabytes."""

    def __init__(self, rows: Rows, seed: int) -> None:
        super().__init__()
        self._loaders = Loaders(lambda split: rows, seed)

    def train_dataloader(self) -> RowLoader:
        self._loaders.trainer = self.trainer
        return self._loaders.train_dataloader()


def tune(
    model: str | Path,
    examples: Sequence[tuple[str, str]],
    options: TuningOptions,
    folder: Path,
    seed: int,
    trainer: Trainer | None = None,
) -> TuningResult:
    """Stage 1: tune ``model`` on (prompt, response) pairs; write the adapter and the tokenizer to ``folder``.

    The folder refers to the base model and opens with ``load``. One ``seed`` draws adapters, order, dropout and noise;
    on a CPU it fixes every byte of the folder. The caller's random state is left as it was. A killed tuning goes on
    from the checkpoint of its adapters in ``folder``. ``trainer`` says where to train and how often to checkpoint; the
    budget is that of ``options``. Raises UsageError without examples, and what ``load`` raises.
    """
    if not examples:
        raise UsageError("There is nothing to tune on: no (prompt, response) pairs were given.")
    tokenizer, network, notes = load(model, options.quantize)

    def batch_of(rows: Sequence[int], epoch: int) -> dict[str, Tensor]:
        return collate([encode(tokenizer, *examples[row], options) for row in rows], pad_id(tokenizer))

    precision: Any = options.precision
    if precision == "auto":
        precision = "bf16-mixed" if torch.cuda.is_available() else "32-true"
    settings = replace(
        trainer or Trainer(checkpoint_every_n_steps=CHECKPOINT),
        max_steps=options.max_steps if options.max_steps > 0 else None,
        accumulate_grad_batches=options.accumulate,
        precision=precision,
    )
    data = Examples(Rows(len(examples), batch_of, options.batch_size), seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        module = InstructionTuning(network, options).train()
        curves = Curves()
        fit(module, data, settings, options.epochs, seed, folder, [curves])
    # peft keeps the names in a set, whose order differs between processes; sorted, a seed fixes the bytes.
    module.network.peft_config["default"].target_modules = sorted(options.target_modules)
    # peft would add the whole embedding matrices, because lm_head is a target; they never change.
    module.network.save_pretrained(str(folder), save_embedding_layers=False)
    tokenizer.save_pretrained(str(folder))
    (folder / "last.ckpt").unlink(missing_ok=True)
    first, last = module.losses[: options.accumulate], module.losses[-options.accumulate :]
    return TuningResult(_mean(first), _mean(last), module.global_step, curves.seconds, notes)


def _mean(losses: Sequence[Tensor]) -> float:
    return float(torch.stack(list(losses)).mean())
