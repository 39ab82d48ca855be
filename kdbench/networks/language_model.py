"""The language-model teacher of LinguGKD: opening it, its features (stage 2), its answers and its likelihood.

Source: Hu et al., "Large Language Model Meets Graph Neural Network in Knowledge Distillation", arXiv 2402.05894
(AAAI 2025, doi 10.1609/aaai.v39i16.33901). ``instruction_tuning.py`` teaches it to answer the prompts of
``prompts.py`` (stage 1); what it knows leaves it as one hidden state per node and hop.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from kdbench.errors import KdbenchError, UsageError, unknown
from kdbench.networks.sentence_encoder import require

IGNORED = -100  # the label of a token that carries no loss, as in F.cross_entropy
WORDS = 2000  # merges of the tiny Llama's tokenizer

Progress = Callable[[int, int], None]
Row = tuple[list[int], list[int]]  # token ids of a prompt and of its answer


@dataclass(frozen=True)
class TuningOptions:
    """How the teacher is tuned and read. Defaults are the released code's (arXiv 2402.05894, repository LinguGKD).

    lr: AdamW's learning rate, constant (no schedule is stated), without weight decay.
    epochs: passes over the prompts.
    batch_size: prompts per forward pass in tuning.
    accumulate: forward passes per optimiser step; the effective batch is batch_size · accumulate.
    max_steps: optimiser steps after which tuning stops early; -1 for no limit.
    max_length: tokens of a prompt and its answer together; a longer prompt loses those before its ending.
    ending: how every prompt ends, which it keeps.
    lora_r: rank r of the update (alpha / r) B A of a linear map W.
    lora_alpha: its scale alpha.
    lora_dropout: dropout on the update's input.
    target_modules: names of the linear maps that get an update. The released list lacks a comma after "v_proj", so
        that "v_projo_proj" matches nothing and only q_proj, k_proj and lm_head are tuned; here all five named are.
    neftune_alpha: scale of the noise on the input embeddings in tuning (NEFTune); 0 for none.
    quantize: "nf4" holds the frozen base in 4 bits (QLoRA), "none" does not, "auto" does where CUDA and bitsandbytes
        are there and says in the notes if they are not. An unquantised base is bfloat16 on CUDA, float32 elsewhere.
    precision: Lightning's precision in tuning; "auto" is bf16-mixed on CUDA, 32-true elsewhere.
    """

    lr: float = 2e-4
    epochs: int = 1
    batch_size: int = 2
    accumulate: int = 2
    max_steps: int = -1
    max_length: int = 520
    ending: str = ""
    lora_r: int = 64
    lora_alpha: float = 32
    lora_dropout: float = 0.1
    target_modules: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj", "lm_head")
    neftune_alpha: float = 5.0
    quantize: Literal["auto", "none", "nf4"] = "auto"
    precision: str = "auto"


class LanguageModel(NamedTuple):
    """A tokenizer, a frozen causal language model in eval mode, and what a record should say about them."""

    tokenizer: Any
    network: Any
    notes: tuple[str, ...] = ()


def load(model: str | Path, quantize: str = "none", base: str | Path | None = None) -> LanguageModel:
    """Open a causal language model: a hub id, a local folder, or a folder that ``tune`` wrote (adapter).

    ``base``: the model under an adapter; None takes the one it was tuned on, by the name or path it had then.
    The network comes frozen, in eval mode, on the GPU if there is one. ``quantize`` as in TuningOptions.
    Raises KdbenchError if the model cannot be read, UsageError for an impossible ``quantize``, MissingExtraError
    without transformers or peft.
    """
    name = str(model)
    if (Path(name) / "adapter_config.json").is_file():
        peft = require("peft", "graph")
        below = load(base or peft.PeftConfig.from_pretrained(name).base_model_name_or_path, quantize)
        network = peft.PeftModel.from_pretrained(below.network, name)
        tokenizer = require("transformers", "graph").AutoTokenizer.from_pretrained(name)
        return LanguageModel(tokenizer, network.requires_grad_(False).eval(), below.notes)
    config, notes = _quantization(quantize)
    transformers = _transformers()
    place = f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if torch.cuda.is_available() else "cpu"
    name = str(Path(name).resolve()) if Path(name).is_dir() else name
    how = {"quantization_config": config, "device_map": {"": place}} if config is not None else {}
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(name)
        network = transformers.AutoModelForCausalLM.from_pretrained(name, dtype=_base_dtype(), **how)
    except (OSError, ValueError) as error:
        why = str(error).strip().split("\n")[0]
        if Path(name).is_dir():
            raise KdbenchError(f"The folder '{name}' holds no causal language model and tokenizer: {why}") from error
        raise KdbenchError(
            f"Cannot open the language model '{name}': it is not a local folder and the hub cannot be reached or does "
            f"not serve it. Pass teacher.model=FOLDER. ({why})"
        ) from error
    network = network if config is not None else network.to(place)
    return LanguageModel(tokenizer, network.requires_grad_(False).eval(), notes)


def _transformers() -> Any:
    package = require("transformers", "graph")
    package.utils.logging.disable_progress_bar()
    return package


def _quantization(choice: str) -> tuple[Any, tuple[str, ...]]:
    if choice not in (choices := ("auto", "none", "nf4")):
        raise unknown("value of quantize", choice, choices)
    if choice == "none":
        return None, ()
    there = {"CUDA device": torch.cuda.is_available(), "bitsandbytes": find_spec("bitsandbytes") is not None}
    if missing := " and no ".join(name for name, there_is in there.items() if not there_is):
        if choice == "nf4":
            raise UsageError(f"quantize=nf4 is impossible here: there is no {missing}. Use quantize=auto or none.")
        return None, (f"base held in {_base_dtype()}, not quantised: quantize=auto found no {missing}",)
    config = require("transformers", "graph").BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16
    )
    return config, ("base held in 4-bit NF4",)


def _base_dtype() -> torch.dtype:
    return torch.bfloat16 if torch.cuda.is_available() else torch.float32


def encode(tokenizer: Any, prompt: str, response: str | None, options: TuningOptions) -> Row:
    """Token ids of a prompt and of its answer (the response and the end token; empty for None).

    The two are tokenised apart, so that the boundary is the same in tuning and in reading. If both exceed
    ``max_length``, the tokens just before the prompt's ending go: what it begins with stays. Raises UsageError if not
    even the ending and the answer fit.
    """

    def plain(text: str) -> list[int]:
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])

    answer = [] if response is None else [*plain(response), tokenizer.eos_token_id]
    ids = list(tokenizer(prompt)["input_ids"])
    if ids and ids[-1] == tokenizer.eos_token_id:
        ids.pop()
    room, tail = options.max_length - len(answer), len(plain(options.ending))
    if len(ids) > room:
        if room <= tail:
            least = tail + len(answer) + 1
            raise UsageError(f"max_length={options.max_length} leaves no room for a prompt; give at least {least}.")
        ids = ids[: room - tail] + ids[-tail:]
    return ids, answer


def completion_nll(logits: Tensor, labels: Tensor) -> Tensor:
    """L_LM of each row: -Σ_t log P(y_t | prompt, y_<t), in nats.

    logits: [B, T, V], those at t score the token at t + 1. labels: [B, T], token ids, -100 on prompt and padding.
    Returns [B], float32 or the logits' dtype if that is wider. Source: arXiv 2402.05894, stage 1.
    """
    scores = logits[:, :-1].to(torch.promote_types(logits.dtype, torch.float32))
    return F.cross_entropy(scores.transpose(1, 2), labels[:, 1:], ignore_index=IGNORED, reduction="none").sum(1)


def collate(rows: Sequence[Row], pad: int) -> dict[str, Tensor]:
    """Rows of ``encode`` as input_ids, attention_mask and labels, each [B, T], padded on the right.

    On the right, because in a causal model nothing after a token reaches it and positions stay those of the row alone.
    """
    return {
        "input_ids": _padded([ids + answer for ids, answer in rows], pad),
        "attention_mask": _padded([[1] * (len(ids) + len(answer)) for ids, answer in rows], 0),
        "labels": _padded([[IGNORED] * len(ids) + answer for ids, answer in rows], IGNORED),
    }


def _padded(rows: Sequence[list[int]], value: int, *, left: bool = False) -> Tensor:
    width = max(map(len, rows))
    fill = [[value] * (width - len(row)) for row in rows]
    return torch.tensor([more + row if left else row + more for row, more in zip(rows, fill, strict=True)])


def pad_id(tokenizer: Any) -> int:
    return int(tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id)


def _open(model: str | Path | LanguageModel, options: TuningOptions) -> LanguageModel:
    opened = model if isinstance(model, LanguageModel) else load(model, options.quantize)
    opened.network.eval()
    return opened


def _batches(
    tokenizer: Any,
    prompts: Sequence[Sequence[str | None]],
    options: TuningOptions,
    batch_size: int,
    progress: Progress | None,
) -> Iterator[tuple[list[tuple[int, int]], list[list[int]]]]:
    """(node, hop) cells and their prompts' ids, shortest first so that padding is small."""
    cells = {(i, hop): text for i, row in enumerate(prompts) for hop, text in enumerate(row) if text is not None}
    order = sorted(cells, key=lambda cell: len(cells[cell]))
    for start in range(0, len(order), batch_size):
        some = order[start : start + batch_size]
        yield some, [encode(tokenizer, cells[cell], None, options)[0] for cell in some]
        if progress is not None:
            progress(start + len(some), len(order))


@torch.no_grad()
def features(
    model: str | Path | LanguageModel,
    prompts: Sequence[Sequence[str | None]],
    options: TuningOptions,
    batch_size: int = 8,
    progress: Progress | None = None,
) -> Tensor:
    """Stage 2: t_i^(l), the last-layer hidden state at the last token of node i's hop-l prompt.

    prompts: node by hop; None (no node lies l links away) copies hop l - 1, or the first prompt there is if none
    comes before. Returns float32 [nodes, hops, d] on the CPU. Batches change results only by rounding.
    Source: arXiv 2402.05894, stage 2. Raises UsageError for a node without any prompt or for rows of unequal length.
    """
    hops = len(prompts[0]) if prompts else 0
    for node, row in enumerate(prompts):
        if len(row) != hops or all(text is None for text in row):
            raise UsageError(f"Node {node} needs {hops} prompts, one for each hop and not all of them None.")
    tokenizer, network, _ = _open(model, options)
    causal = getattr(network, "get_base_model", lambda: network)()
    result = torch.empty(len(prompts), hops, causal.get_input_embeddings().embedding_dim)
    for cells, rows in _batches(tokenizer, prompts, options, batch_size, progress):
        batch = collate([(ids, []) for ids in rows], pad_id(tokenizer))
        inputs = {name: batch[name].to(causal.device) for name in ("input_ids", "attention_mask")}
        states = causal.base_model(**inputs).last_hidden_state  # [b, T, d]; base_model is the network below lm_head
        ends = [len(ids) - 1 for ids in rows]
        nodes, levels = zip(*cells, strict=True)
        result[nodes, levels] = states[range(len(rows)), ends].float().cpu()
    for node, row in enumerate(prompts):
        source = next(hop for hop, text in enumerate(row) if text is not None)
        for hop, text in enumerate(row):
            source = hop if text is not None else source
            result[node, hop] = result[node, source]
    return result


@torch.no_grad()
def answers(
    model: str | Path | LanguageModel,
    prompts: Sequence[Sequence[str | None]],
    class_names: Sequence[str],
    options: TuningOptions,
    batch_size: int = 8,
    progress: Progress | None = None,
) -> list[list[str | None]]:
    """The class the teacher names for each prompt, node by hop; None where there is no prompt.

    It is the greedy answer if that, stripped, is exactly a class name. Otherwise it is the most likely name,
    argmax_c Σ_t log P(y_t^c | prompt, y_<t^c) with y^c the tokens of name c and the end token. The released evaluation
    instead looks for the true name inside the answer, which favours long answers.
    """
    tokenizer, network, _ = _open(model, options)
    pad = pad_id(tokenizer)
    endings = [encode(tokenizer, "", name, options)[1] for name in class_names]
    settings = require("transformers", "graph").GenerationConfig(
        do_sample=False, max_new_tokens=max(map(len, endings)), pad_token_id=pad, eos_token_id=tokenizer.eos_token_id
    )
    result: list[list[str | None]] = [[None] * len(row) for row in prompts]
    for cells, rows in _batches(tokenizer, prompts, options, batch_size, progress):
        inputs = _padded(rows, pad, left=True).to(network.device)
        mask = _padded([[1] * len(ids) for ids in rows], 0, left=True).to(network.device)
        written = network.generate(input_ids=inputs, attention_mask=mask, generation_config=settings)
        said = tokenizer.batch_decode(written[:, inputs.shape[1] :], skip_special_tokens=True)
        for (node, hop), ids, text in zip(cells, rows, said, strict=True):
            name = text.strip()
            if name not in class_names:
                batch = {k: v.to(network.device) for k, v in collate([(ids, end) for end in endings], pad).items()}
                labels = batch.pop("labels")
                name = class_names[int(completion_nll(network(**batch).logits, labels).argmin())]
            result[node][hop] = name
    return result


def read_out(named: Sequence[Sequence[str | None]], rule: Literal["majority", "last"]) -> list[str]:
    """One class per node from the ``answers`` to its hops: the most frequent, or the one of the last hop that has one.

    Equal frequencies are settled by the later hop. Raises UsageError for a node without any answer.
    Source: arXiv 2402.05894's released evaluation also prints a majority vote beside its any-hop score.
    """
    result = []
    for node, row in enumerate(named):
        heard = [name for name in reversed(row) if name is not None]
        if not heard:
            raise UsageError(f"Node {node} has no answer to read out.")
        result.append(heard[0] if rule == "last" else Counter(heard).most_common(1)[0][0])
    return result


def tiny_llama(
    folder: Path, seed: int, texts: Sequence[str] = (), width: int = 64, layers: int = 2, heads: int = 4
) -> Path:
    """Write a small random Llama and its tokenizer to ``folder``, in the form that ``load`` reads.

    Vocabulary: <pad>, <s>, </s>, the 256 bytes, and up to ``WORDS`` merges of bytes that make the frequent words of
    ``texts`` one token each; texts begin with <s>. For tests and for the tiny scale: it knows nothing until tuned.
    Weights have standard deviation 1/√width, because with the usual 0.02 attention adds next to nothing to the
    residual stream and adapters on a frozen base hardly learn. Returns ``folder``.
    Raises MissingExtraError without transformers.
    """
    tokenizers, transformers = require("tokenizers", "graph"), _transformers()
    split = tokenizers.pre_tokenizers
    core = tokenizers.Tokenizer(tokenizers.models.BPE())
    core.pre_tokenizer = split.Sequence(
        [split.Split(" ", "merged_with_next"), split.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    core.decoder = tokenizers.decoders.ByteLevel()
    core.train_from_iterator(
        texts,
        tokenizers.trainers.BpeTrainer(
            vocab_size=259 + WORDS,
            min_frequency=2,
            special_tokens=["<pad>", "<s>", "</s>"],
            initial_alphabet=sorted(split.ByteLevel.alphabet()),
            show_progress=False,
        ),
    )
    vocabulary = core.get_vocab()
    core.post_processor = tokenizers.processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", vocabulary["<s>"])]
    )
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    )
    config = transformers.LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        max_position_embeddings=2048,
        initializer_range=width**-0.5,
        pad_token_id=vocabulary["<pad>"],
        bos_token_id=vocabulary["<s>"],
        eos_token_id=vocabulary["</s>"],
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = transformers.LlamaForCausalLM(config)
    network.save_pretrained(str(folder))
    tokenizer.save_pretrained(str(folder))
    return folder
