"""What a training run will need, and whether it can work, before it starts.

Memory is estimated from shapes: weights, gradients and Adam's moments are exact, what a step holds
besides is proportional to the weights and to one [batch, d_sae] matrix, with factors measured on
the CPU (`tests/test_preflight.py` holds the sum to the peak that is measured).
"""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from sae_lens.activations.model_adapters import model_device, vocabulary_size
from sae_lens.activations.model_loading import load_model
from sae_lens.activations.store_settings import sliced_length
from sae_lens.activations.stores import store_class_for
from sae_lens.config.runner import LanguageModelSAERunnerConfig
from sae_lens.constants import DTYPE_MAP
from sae_lens.saes.training import TrainingSAE
from sae_lens.saes.weights import weights_without_values
from sae_lens.saes.whitening import WHITENING
from sae_lens.training.checkpoints import checkpoint_thresholds, ensure_writable
from sae_lens.training.features import TrainingFeatures

# Matrices of the shape [batch, d_sae] that a dense training step holds at its peak.
_MATRICES_PER_STEP = {"standard": 6.0, "topk": 5.3, "jumprelu": 9.4, "gated": 10.6}
_MATRICES_OF_OTHERS = 10.6
# The same where only active entries are computed, known beforehand for these.
_OF_KNOWN_DENSITY = ("topk", "batchtopk", "matryoshka_batchtopk")
_MATRICES_PER_SPARSE_STEP = 2.0
# Temporary copies of the weights in a dense step, in units of all weights.
_COPIES_PER_STEP = 2.0
# A checkpoint is written from copies of weights and moments, the final one beside one of its own.
_COPIES_PER_CHECKPOINT = 4.0
# A whitening and its inverse, in float32, for each entry of a covariance.
_BYTES_OF_MAPS = 8
# Random generators and descriptions in a checkpoint.
_SMALL_STATE = 16 << 10
# What a forward pass of the language model holds per token, in units of its width.
_WIDTHS_PER_TOKEN = 16
_N_SAMPLES = 3


class PreflightError(ValueError):
    """A run that cannot work; the message lists every reason."""


@dataclass
class PreflightReport:
    """What a run will need, and what is odd about it.

    Attributes:
        memory: device -> part -> bytes.
        peak: device -> bytes at the worst moment.
        available: device -> bytes that are free now, where that can be asked.
        disk: what is written -> bytes.
        disk_free: bytes free where checkpoints go.
        n_steps: training steps.
        n_tokens: tokens to train on.
        n_passes: passes over the data, None where their length is not known.
        samples: data as the model will see them, decoded where there is a tokenizer.
        warnings: what may be a mistake.
        problems: what makes the run impossible.
    """

    memory: dict[str, dict[str, int]] = field(default_factory=dict)
    peak: dict[str, int] = field(default_factory=dict)
    available: dict[str, int] = field(default_factory=dict)
    disk: dict[str, int] = field(default_factory=dict)
    disk_free: int = 0
    n_steps: int = 0
    n_tokens: int = 0
    n_passes: float | None = None
    samples: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        """The report as text."""
        lines = [f"{self.n_steps} steps on {self.n_tokens} tokens"]
        if self.n_passes is not None:
            lines[0] += f", {self.n_passes:.2f} passes over the data"
        for device, parts in self.memory.items():
            free = self.available.get(device)
            lines.append(
                f"memory on {device}: {_readable(self.peak[device])} at the peak"
                + ("" if free is None else f", {_readable(free)} free")
            )
            lines += [f"  {part}: {_readable(size)}" for part, size in parts.items()]
        lines.append(
            f"disk: {_readable(sum(self.disk.values()))}, {_readable(self.disk_free)} free"
        )
        lines += [f"  {part}: {_readable(size)}" for part, size in self.disk.items()]
        lines += [f"sample {i}: {text!r}" for i, text in enumerate(self.samples, 1)]
        lines += [f"warning: {text}" for text in self.warnings]
        lines += [f"problem: {text}" for text in self.problems]
        return lines

    def raise_problems(self) -> None:
        """`PreflightError` when the run cannot work."""
        if self.problems:
            raise PreflightError("The run cannot work: " + " ".join(self.problems))


def preflight(
    cfg: LanguageModelSAERunnerConfig, model: Any = None, store: Any = None
) -> PreflightReport:
    """Look at a run before it starts. Nothing is trained, and the SAE is not made.

    Args:
        cfg: the run's config.
        model: its language model; loaded when not given.
        store: its data; opened when not given. They are left where they are.

    Returns:
        The report. Its `problems` say whether the run can work.
    """
    report = PreflightReport(n_steps=cfg.total_training_steps, n_tokens=cfg.total_training_tokens)
    if report.n_steps == 0:
        report.problems.append(
            f"training_tokens={cfg.training_tokens} is less than one batch of "
            f"{cfg.train_batch_size_tokens}."
        )
    _estimate_memory(report, cfg, None)
    _estimate_disk(report, cfg)
    if report.problems and model is None:
        return report  # loading a model for it would be a waste
    if model is None:
        model = _attempt(
            report,
            lambda: load_model(
                cfg.model_class_name,
                cfg.model_name,
                device=cfg.llm_device or cfg.device,
                model_from_pretrained_kwargs=cfg.model_from_pretrained_kwargs,
            ),
        )
    if model is not None:
        _estimate_memory(report, cfg, model)
    if model is not None and store is None:
        store = _attempt(report, lambda: store_class_for(cfg.sae).from_config(model, cfg))
    if store is not None:
        _look_at_data(report, cfg, model, store)
    return report


def training_memory(cfg: Any) -> dict[str, int]:
    """Bytes that training the SAE takes on its device, by part; "a step" is the passing one."""
    itemsize = DTYPE_MAP[str(cfg.dtype)].itemsize
    sae = _without_memory(cfg)
    weights = sum(parameter.numel() for parameter in sae.parameters()) * itemsize
    matrix = cfg.train_batch_size_tokens * cfg.d_sae * itemsize
    rows = cfg.train_batch_size_tokens * _row_width(sae) * itemsize
    if _is_surely_sparse(cfg):
        step = _MATRICES_PER_SPARSE_STEP * matrix
    else:
        factor = _MATRICES_PER_STEP.get(str(cfg.architecture), _MATRICES_OF_OTHERS)
        step = _COPIES_PER_STEP * weights + factor * matrix
    step += 6 * rows
    # Gradients are gone while a checkpoint is written.
    checkpoint = (_COPIES_PER_CHECKPOINT - 1) * weights
    averages = TrainingFeatures.of(getattr(cfg, "features", None)).weight_average
    maps = _BYTES_OF_MAPS * sum(width**2 for width in _widths(sae))
    is_whitened = getattr(cfg, "normalize_activations", "none") == WHITENING
    return {
        "SAE": weights,
        "gradients": weights,
        "optimiser": 2 * weights,
        **({} if averages is None else {"averaged weights": weights}),
        **({"whitening": maps} if is_whitened else {}),
        "a step or a checkpoint": int(max(step, checkpoint)),
    }


def _without_memory(cfg: Any) -> TrainingSAE:
    """The run's SAE, whose weights have shapes and no memory."""
    with weights_without_values():
        return TrainingSAE(cfg.training_sae_config())


def _row_width(sae: TrainingSAE) -> int:
    """Width of a row of training data: of all activations that the SAE reads or models."""
    return sum(_widths(sae))


def _widths(sae: TrainingSAE) -> tuple[int, ...]:
    return getattr(sae, "activation_widths", (sae.cfg.d_in,))


def _estimate_memory(report: PreflightReport, cfg: Any, model: Any) -> None:
    """Fill in memory per device; without a model, what is known without it."""
    itemsize = DTYPE_MAP[str(cfg.dtype)].itemsize
    on: dict[str, dict[str, int]] = {str(cfg.device): training_memory(cfg)}
    row = _row_width(_without_memory(cfg)) * itemsize
    rows_per_prompt = sliced_length(cfg.context_size, cfg.seqpos_slice)
    rows_per_read = cfg.store_batch_size_prompts * rows_per_prompt
    n_rows = max(2 * (cfg.n_batches_in_buffer // 2) * rows_per_read,
                 cfg.train_batch_size_tokens - 1 + rows_per_read)  # fmt: skip
    on.setdefault(str(cfg.act_store_device), {})["buffer"] = n_rows * row
    passing = on[str(cfg.device)]["a step or a checkpoint"]
    saved = 0
    if model is not None:
        device = str(model_device(model))
        parts = on.setdefault(device, {})
        # A model that was there before takes no more memory, but it is there all the same.
        parts["language model"] = _bytes_of(model)
        width = getattr(getattr(model, "cfg", None), "d_model", cfg.d_in)
        tokens = cfg.store_batch_size_prompts * cfg.context_size
        parts["a batch of the language model"] = tokens * width * 4 * _WIDTHS_PER_TOKEN
        # The model and the SAE take turns, so only the larger of the two moments counts.
        saved = min(parts["a batch of the language model"], passing)
    report.memory = on
    report.problems = [text for text in report.problems if not text.startswith("Memory")]
    for device, parts in on.items():
        shared = saved if device == str(cfg.device) and "language model" in parts else 0
        report.peak[device] = sum(parts.values()) - shared
        free = _available(device)
        if free is None:
            continue
        report.available[device] = free
        held = parts.get("language model", 0)  # loaded by now, so not free any more
        if report.peak[device] - held > free:
            report.problems.append(
                f"Memory on {device}: about {_readable(report.peak[device] - held)} is needed, "
                f"{_readable(free)} is free. Lower d_sae, train_batch_size_tokens or "
                "n_batches_in_buffer, or use another device."
            )


def _estimate_disk(report: PreflightReport, cfg: Any) -> None:
    parts = training_memory(cfg)
    itemsize = DTYPE_MAP[str(cfg.dtype)].itemsize
    rows = cfg.store_batch_size_prompts * sliced_length(cfg.context_size, cfg.seqpos_slice)
    buffer = cfg.n_batches_in_buffer * rows * _row_width(_without_memory(cfg)) * itemsize
    # Weights as they are read, weights as they are trained, the moments, and the rows that wait.
    weights = 2 * parts["SAE"] + parts["optimiser"] + parts.get("averaged weights", 0)
    one = weights + buffer + _SMALL_STATE
    n_on_the_way = len(checkpoint_thresholds(cfg.total_training_tokens, cfg.n_checkpoints))
    if cfg.keep_last is not None:
        # A new one is complete before an old one goes.
        n_on_the_way = min(n_on_the_way, cfg.keep_last + 1)
    report.disk = {"the final checkpoint": one}
    if n_on_the_way:
        report.disk[f"{n_on_the_way} checkpoints on the way"] = n_on_the_way * one
    if cfg.keep_best_metric is not None:
        report.disk["the best checkpoint"] = one
    if cfg.output_path is not None:
        report.disk["the trained SAE"] = parts["SAE"]
    for name in ("checkpoint_path", "output_path"):
        folder = getattr(cfg, name)
        if folder is not None:
            _attempt(report, lambda folder=folder: ensure_writable(folder))
    place = Path(cfg.checkpoint_path).absolute()
    while not place.exists():
        place = place.parent
    report.disk_free = shutil.disk_usage(place).free
    needed = sum(report.disk.values())
    if needed > report.disk_free:
        report.problems.append(
            f"Disk at {place}: {_readable(needed)} will be written, {_readable(report.disk_free)} "
            "is free. Lower n_checkpoints, set keep_last, or choose another checkpoint_path."
        )


def _look_at_data(report: PreflightReport, cfg: Any, model: Any, store: Any) -> None:
    if store.cached_activation_dataset is not None:
        n_rows = len(store.cached_activation_dataset) * store.context_size
        report.n_passes = cfg.total_training_tokens / max(n_rows, 1)
        return
    if model is not None:
        _attempt(report, store.check_model)
    stream = store.evaluation_stream()
    tokens = _attempt(report, lambda: stream.get_batch_tokens(_N_SAMPLES))
    if tokens is None:
        return
    rows = tokens.cpu()
    report.samples = [_decoded(model, row) for row in rows]
    limit = vocabulary_size(model)
    if limit is not None and int(rows.max()) >= limit:
        report.problems.append(
            f"The data have the token id {int(rows.max())}, the model knows {limit} ids."
        )
    _compare_bos(report, cfg, model, rows)
    n_prompts = _number_of_prompts(store, stream)
    if n_prompts is not None:
        per_prompt = sliced_length(cfg.context_size, cfg.seqpos_slice)
        n_passes = cfg.total_training_tokens / max(n_prompts * per_prompt, 1)
        report.n_passes = n_passes
        if n_passes > 1:
            report.warnings.append(
                f"The data are passed over {n_passes:.1f} times; more data would be better."
            )


def _compare_bos(report: PreflightReport, cfg: Any, model: Any, rows: torch.Tensor) -> None:
    bos = getattr(getattr(model, "tokenizer", None), "bos_token_id", None)
    if bos is None:
        return
    starts = (rows[:, 0] == bos).float().mean().item()
    if cfg.prepend_bos and starts < 1:
        report.warnings.append(
            f"prepend_bos is true, but not all prompts begin with the id {bos}: the data were "
            "tokenised without it. Tokenise them with it, or set prepend_bos to false."
        )
    if not cfg.prepend_bos and starts == 1:
        report.warnings.append(
            f"prepend_bos is false, but prompts begin with the id {bos} all the same; an SAE that "
            "is used without it then meets other activations."
        )


def _number_of_prompts(store: Any, stream: Any) -> float | None:
    """How many prompts the data give; of texts, guessed from what the first prompts took."""
    try:
        n_rows = len(store.dataset)
    except TypeError:
        return None
    if store.is_dataset_tokenized:
        return float(n_rows)
    reader = getattr(getattr(stream, "_stream", None), "reader", None)
    taken = getattr(reader, "taken", 0)
    return None if not taken else n_rows * _N_SAMPLES / taken


def _decoded(model: Any, row: torch.Tensor) -> str:
    tokenizer = getattr(model, "tokenizer", None)
    if tokenizer is None or not hasattr(tokenizer, "decode"):
        return " ".join(str(token) for token in row.tolist())
    return str(tokenizer.decode(row.tolist()))


def _attempt(report: PreflightReport, action: Any) -> Any:
    """What the action gives; None when it fails, which is then a problem of the run."""
    try:
        return action()
    except Exception as error:
        report.problems.append(f"{type(error).__name__}: {error}")
        return None


def _is_surely_sparse(cfg: Any) -> bool:
    """Whether even the first steps compute active entries only."""
    kwargs: Mapping[str, Any] = cfg.activation_fn_kwargs or {}
    k = kwargs.get("k") or getattr(cfg.sae, "k", None)
    knows_its_density = str(cfg.architecture) in _OF_KNOWN_DENSITY
    if cfg.sparse_kernels == "dense" or not knows_its_density or not k or cfg.noise_scale:
        return False
    if str(cfg.dtype) != "float32" or cfg.autocast or cfg.compile_sae:
        return False
    work = cfg.train_batch_size_tokens * cfg.d_in * cfg.d_sae
    return k / cfg.d_sae < 0.05 and work >= 1 << 28


def _bytes_of(model: Any) -> int:
    tensors = [*getattr(model, "parameters", list)(), *getattr(model, "buffers", list)()]
    return sum(t.numel() * t.element_size() for t in tensors)


def _available(device: str) -> int | None:
    if device.startswith("cuda") and torch.cuda.is_available():
        return torch.cuda.mem_get_info(torch.device(device))[0]
    if device != "cpu":
        return None
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, AttributeError):
        return None


def _readable(n_bytes: float) -> str:
    if n_bytes < 1024:
        return f"{int(n_bytes)} B"
    power = min(int(math.log(n_bytes, 1024)), 4)
    return f"{n_bytes / 1024**power:.1f} {'KMGT'[power - 1]}iB"
