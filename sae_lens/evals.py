"""How good is an SAE? Evaluations of one SAE, sweeps over released ones, and held-out evaluation.

`run_evals` judges one SAE in its language model: what its reconstruction does to the model's
predictions (KL divergence and cross-entropy, against zeroing the hook), how well and how sparsely
it reconstructs, and how often its features fire. The arithmetic is in `analysis.metrics`, reading
and replacing activations in `analysis.interventions`.

`multiple_evals` (and `python -m sae_lens.evals`) does so for all released SAEs that match a
pattern; `HeldOutEvaluator` does it again and again on the same tokens while an SAE is trained.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import re
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor
from tqdm.auto import tqdm
from transformer_lens import HookedTransformer

from sae_lens.activations.datasets_loading import load_text_dataset, split_held_out
from sae_lens.activations.model_adapters import model_device
from sae_lens.activations.model_loading import load_model
from sae_lens.activations.scaling import EXPECTED_AVERAGE
from sae_lens.activations.store import ActivationsStore
from sae_lens.activations.token_source import TokenSource
from sae_lens.analysis.eval_reports import (
    core_report,
    dict_to_nested,
    nested_dict,
    process_results,
    replace_nans_with_negative_one,
    write_result,
)
from sae_lens.analysis.eval_tokens import (
    FixedTokens,
    all_ignored,
    check_held_out,
    first_prompts,
    kept_positions,
    not_ignored,
    nothing_left,
    scaling_for,
    token_batches,
    trained_positions,
)
from sae_lens.analysis.interventions import (
    changed_predictions,
    evaluation_mode,
    fact,
    prompts_per_pass,
    read_activations,
    reconstruct,
    sites_of,
)
from sae_lens.analysis.metrics import (
    FiringAccumulator,
    ReconstructionAccumulator,
    SparsityAccumulator,
    direction_similarity,
    featurewise_weight_metrics,
    firing_fractions,
    recovered_score,
)
from sae_lens.atomic_files import atomic_write_json
from sae_lens.constants import EMBEDDED_DATASET_NAME
from sae_lens.errors import InvalidArgumentError
from sae_lens.loading.directory import get_pretrained_saes_directory
from sae_lens.saes.base import SAE

__all__ = [
    "EvalConfig",
    "EvalResult",
    "HeldOutEvaluator",
    "HookedTransformer",
    "SAE",
    "all_loadable_saes",
    "dict_to_nested",
    "core_report",
    "evaluate_sae",
    "evaluate_target",
    "get_downstream_reconstruction_metrics",
    "get_eval_everything_config",
    "get_featurewise_weight_based_metrics",
    "get_git_hash",
    "get_library_version",
    "get_recons_loss",
    "get_saes_from_regex",
    "get_sparsity_and_variance_metrics",
    "multiple_evals",
    "nested_dict",
    "process_results",
    "replace_nans_with_negative_one",
    "run_evals",
    "run_evaluations",
    "split_held_out",
]

logger = logging.getLogger(__name__)

# group -> keys of `get_sparsity_and_variance_metrics` that belong to it
_GROUPS = {
    "model_behavior_preservation": ("kl_div_score", "kl_div_with_ablation", "kl_div_with_sae"),
    "model_performance_preservation": (
        "ce_loss_score",
        "ce_loss_with_ablation",
        "ce_loss_with_sae",
        "ce_loss_without_sae",
    ),
    "reconstruction_quality": (
        "explained_variance",
        "explained_variance_legacy",
        "mse",
        "mse_per_token",
        "cossim",
    ),
    "shrinkage": ("l2_norm_in", "l2_norm_out", "l2_ratio", "relative_reconstruction_bias"),
    "sparsity": ("l0", "l1"),
}


def get_library_version() -> str:
    """The installed version of the library, or "unknown"."""
    try:
        return version("sae-lens")
    except PackageNotFoundError:
        return "unknown"


def get_git_hash() -> str:
    """The short hash of the repository in the working directory, or "unknown"."""
    return _git_hash(str(Path.cwd()))


@lru_cache(maxsize=8)
def _git_hash(folder: str) -> str:
    try:
        done = subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"],
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=5,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return done.stdout.strip() or "unknown"


@dataclass
class EvalConfig:
    """Which metrics, on how many batches.

    Attributes:
        batch_size_prompts: prompts per batch; the store's own when None.
        n_eval_reconstruction_batches: batches for KL divergence and cross-entropy.
        compute_kl: KL divergence of the model's predictions with the SAE in place.
        compute_ce_loss: cross-entropy with the SAE in place.
        n_eval_sparsity_variance_batches: batches for everything else.
        compute_l2_norms: shrinkage.
        compute_sparsity_metrics: L0 and L1.
        compute_variance_metrics: explained variance, errors, cosine similarity.
        compute_featurewise_density_statistics: how often each feature fires.
        compute_featurewise_weight_based_metrics: norms, biases, encoder against decoder.
        library_version: recorded with the results.
        git_hash: recorded with the results.
        include_misc_metrics: a further group `misc_metrics`: fraction alive, fractions of features
            above 1 % and 10 %, average maximum cosine similarities (quadratic in d_sae).
    """

    batch_size_prompts: int | None = None
    n_eval_reconstruction_batches: int = 10
    compute_kl: bool = False
    compute_ce_loss: bool = False
    n_eval_sparsity_variance_batches: int = 1
    compute_l2_norms: bool = False
    compute_sparsity_metrics: bool = False
    compute_variance_metrics: bool = False
    compute_featurewise_density_statistics: bool = False
    compute_featurewise_weight_based_metrics: bool = False
    library_version: str = field(default_factory=get_library_version)
    git_hash: str = field(default_factory=get_git_hash)
    include_misc_metrics: bool = False

    @property
    def needs_reconstruction(self) -> bool:
        """Whether anything needs the model's predictions."""
        return self.compute_kl or self.compute_ce_loss

    @property
    def needs_density(self) -> bool:
        """Whether anything needs to know how often each feature fires."""
        return self.compute_featurewise_density_statistics or self.include_misc_metrics

    @property
    def needs_activations(self) -> bool:
        """Whether anything needs activations and features."""
        return (
            self.compute_l2_norms
            or self.compute_sparsity_metrics
            or self.compute_variance_metrics
            or self.needs_density
        )


class EvalResult(NamedTuple):
    """What an evaluation found: groups of numbers, and lists with one entry per feature."""

    metrics: dict[str, Any]
    feature_metrics: dict[str, Any]


def get_eval_everything_config(
    batch_size_prompts: int | None = None,
    n_eval_reconstruction_batches: int = 10,
    n_eval_sparsity_variance_batches: int = 1,
) -> EvalConfig:
    """A config with every `compute_*` switched on."""
    return _with_switches(
        EvalConfig(
            batch_size_prompts=batch_size_prompts,
            n_eval_reconstruction_batches=n_eval_reconstruction_batches,
            n_eval_sparsity_variance_batches=n_eval_sparsity_variance_batches,
        ),
        _SWITCHES,
    )


_SWITCHES = tuple(f.name for f in fields(EvalConfig) if f.name.startswith("compute_"))


def _with_switches(config: EvalConfig, names: Iterable[str]) -> EvalConfig:
    return replace(config, **dict.fromkeys(names, True))


# -- one SAE --------------------------------------------------------------------------------------


@torch.no_grad()
def run_evals(
    sae: SAE,
    activation_store: ActivationsStore,
    model: Any,
    eval_config: EvalConfig | None = None,
    model_kwargs: Mapping[str, Any] | None = None,
    ignore_tokens: Collection[int | None] | None = None,
    verbose: bool = False,
) -> EvalResult:
    """Judge an SAE in its model.

    Args:
        sae: any SAE; evaluated without noise and without its error term.
        activation_store: supplies tokens, and the scaling of activations where the SAE was trained
            with one. Both parts of the evaluation begin where it stands and at the dataset's start.
        model: a `HookedTransformer`, `HookedProxyLM` or another model with their methods.
        eval_config: what to compute; `EvalConfig()` computes nothing.
        model_kwargs: for every forward pass.
        ignore_tokens: ids whose positions keep the model's own activations beside the
            reconstruction and count nowhere; None among them is skipped. Tokens that the store or
            the SAE's training excluded are added.
        verbose: show progress bars.

    Returns:
        `(metrics, feature_metrics)`: groups of numbers (empty groups are left out), and lists of
        length d_sae.

    Raises:
        InvalidArgumentError: (a `ValueError`) when a requested part has no batches.
        ValueError: when no token is left to evaluate.
    """
    config = EvalConfig() if eval_config is None else eval_config
    kwargs = dict(model_kwargs or {})
    ignored = set(ignore_tokens or ())
    batch_size = config.batch_size_prompts or activation_store.store_batch_size_prompts
    found: dict[str, float] = {}
    feature_metrics: dict[str, Any] = {}

    with evaluation_mode(sae):
        if config.needs_reconstruction:
            _require_batches("n_eval_reconstruction_batches", config.n_eval_reconstruction_batches)
            found |= get_downstream_reconstruction_metrics(
                sae,
                model,
                activation_store,
                compute_kl=config.compute_kl,
                compute_ce_loss=config.compute_ce_loss,
                n_batches=config.n_eval_reconstruction_batches,
                eval_batch_size_prompts=batch_size,
                ignore_tokens=ignored,
                verbose=verbose,
                model_kwargs=kwargs,
            )
            activation_store.reset_input_dataset()
        if config.needs_activations:
            _require_batches(
                "n_eval_sparsity_variance_batches", config.n_eval_sparsity_variance_batches
            )
            numbers, feature_metrics = get_sparsity_and_variance_metrics(
                sae,
                model,
                activation_store,
                n_batches=config.n_eval_sparsity_variance_batches,
                compute_l2_norms=config.compute_l2_norms,
                compute_sparsity_metrics=config.compute_sparsity_metrics,
                compute_variance_metrics=config.compute_variance_metrics,
                compute_featurewise_density_statistics=config.needs_density,
                eval_batch_size_prompts=batch_size,
                model_kwargs=kwargs,
                ignore_tokens=ignored,
                verbose=verbose,
            )
            found |= numbers
        if config.compute_featurewise_weight_based_metrics:
            feature_metrics = feature_metrics | get_featurewise_weight_based_metrics(sae)
        metrics = _grouped(found)
        if config.include_misc_metrics:
            metrics["misc_metrics"], similarities = _misc_metrics(sae, feature_metrics)
            feature_metrics = feature_metrics | similarities
            if not config.compute_featurewise_density_statistics:
                for name in ("feature_density", "consistent_activation_heuristic"):
                    del feature_metrics[name]

    tokens_per_batch = activation_store.context_size * batch_size
    metrics["token_stats"] = {
        "total_tokens_eval_reconstruction": tokens_per_batch * config.n_eval_reconstruction_batches,
        "total_tokens_eval_sparsity_variance": tokens_per_batch
        * config.n_eval_sparsity_variance_batches,
    }
    return EvalResult(metrics, feature_metrics)


def _grouped(found: Mapping[str, float]) -> dict[str, Any]:
    groups = {
        group: {name: found[name] for name in names if name in found}
        for group, names in _GROUPS.items()
    }
    return {group: values for group, values in groups.items() if values}


def _misc_metrics(
    sae: Any, feature_metrics: Mapping[str, Any]
) -> tuple[dict[str, float], dict[str, list[float]]]:
    density = torch.tensor(feature_metrics["feature_density"], dtype=torch.float64)
    similarity = direction_similarity(sae)
    misc = firing_fractions(density)
    for name, values in similarity.items():
        misc[f"average_{name}"] = values.double().mean().item()
    return misc, {name: values.tolist() for name, values in similarity.items()}


def _require_batches(name: str, n_batches: int) -> None:
    if n_batches <= 0:
        raise InvalidArgumentError(
            f"{name} is {n_batches}, but a metric that needs it was asked for; give at least 1, or "
            "switch the metric off."
        )


@torch.no_grad()
def get_downstream_reconstruction_metrics(
    sae: SAE,
    model: Any,
    activation_store: ActivationsStore,
    compute_kl: bool,
    compute_ce_loss: bool,
    n_batches: int,
    eval_batch_size_prompts: int,
    ignore_tokens: Collection[int | None] | None = None,
    verbose: bool = False,
    model_kwargs: Mapping[str, Any] | None = None,
) -> dict[str, float]:
    """What the SAE's reconstruction does to the model's predictions, beside zeroing its hook.

    Means over the kept tokens of all batches. A score is the share of the damage of zeroing that
    the SAE avoids: `kl_div_score` = (KL ablation − KL sae) / KL ablation, `ce_loss_score` =
    (CE ablation − CE sae) / (CE ablation − CE plain). A score is NaN where zeroing does no damage.

    Raises:
        ValueError: when every token is ignored.
    """
    ignored = all_ignored(sae, activation_store, model, ignore_tokens)
    per_token_losses: dict[str, list[Tensor]] = defaultdict(list)
    for tokens in token_batches(
        activation_store, n_batches, eval_batch_size_prompts, "Reconstruction", verbose
    ):
        losses = get_recons_loss(
            sae,
            model,
            tokens,
            activation_store,
            compute_kl,
            compute_ce_loss,
            ignore_tokens=ignored,
            model_kwargs=dict(model_kwargs or {}),
        )
        kept = not_ignored(tokens, ignored)
        for name, per_token in losses.items():
            # A loss has one position less: the last token's successor is unknown.
            mask = kept[:, : per_token.shape[1]].to(per_token.device)
            per_token_losses[name].append(per_token[mask].cpu())

    result: dict[str, float] = {}
    for name, losses_of_batches in per_token_losses.items():
        losses_of_all = torch.cat(losses_of_batches)
        if losses_of_all.numel() == 0:
            raise ValueError(nothing_left(ignored))
        # One mean over all tokens, in the dtype of the losses: scores are differences of nearly
        # equal means, so published ones can be compared only with means that are rounded alike.
        result[name] = losses_of_all.mean().item()
    if compute_kl:
        result["kl_div_score"] = recovered_score(
            0.0, result["kl_div_with_sae"], result["kl_div_with_ablation"]
        )
    if compute_ce_loss:
        result["ce_loss_score"] = recovered_score(
            result["ce_loss_without_sae"],
            result["ce_loss_with_sae"],
            result["ce_loss_with_ablation"],
        )
    return result


@torch.no_grad()
def get_recons_loss(
    sae: SAE,
    model: Any,
    batch_tokens: Int[Tensor, "batch pos"],
    activation_store: ActivationsStore,
    compute_kl: bool,
    compute_ce_loss: bool,
    ignore_tokens: Collection[int | None] | None = None,
    model_kwargs: Mapping[str, Any] | None = None,
) -> dict[str, Tensor]:
    """Per-token KL divergence and cross-entropy, with the SAE in place and with its hook zeroed.

    Three forward passes: plain, with the hook replaced by the reconstruction, with the hook zeroed.
    Positions outside of the SAE's `seqpos_slice` keep the model's own activation in both, those of
    ignored tokens keep it beside the reconstruction. The zeroed pass spares no token: it is the
    baseline of published scores, and all of them zero the first position too. The logits are
    compared block by block, so that those of a large vocabulary never exist for all positions.

    Returns:
        `kl_div_with_sae`, `kl_div_with_ablation` [batch, pos] and `ce_loss_without_sae`,
        `ce_loss_with_sae`, `ce_loss_with_ablation` [batch, pos − 1], each only if asked for.
    """
    ignored = all_ignored(sae, activation_store, model, ignore_tokens)
    step = prompts_per_pass(model, batch_tokens.shape[1]) or len(batch_tokens)
    with evaluation_mode(sae):
        parts = [
            changed_predictions(
                sae,
                model,
                tokens,
                kept_positions(tokens, ignored, sae, activation_store),
                trained_positions(tokens, sae, activation_store),
                scaling_for(activation_store, sae),
                compute_kl,
                compute_ce_loss,
                dict(model_kwargs or {}),
            )
            for tokens in batch_tokens.split(step)
        ]
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


@torch.no_grad()
def get_sparsity_and_variance_metrics(
    sae: SAE,
    model: Any,
    activation_store: ActivationsStore,
    n_batches: int,
    compute_l2_norms: bool,
    compute_sparsity_metrics: bool,
    compute_variance_metrics: bool,
    compute_featurewise_density_statistics: bool,
    eval_batch_size_prompts: int,
    model_kwargs: Mapping[str, Any],
    ignore_tokens: Collection[int | None] | None = None,
    verbose: bool = False,
) -> tuple[dict[str, float], dict[str, list[float]]]:
    """How well and how sparsely the SAE reconstructs, and how often its features fire.

    Over the kept tokens of all batches, in the model's own (unscaled) space. For a transcoder the
    reconstruction is compared with the activation at its output hook.

    Returns:
        Numbers (see `analysis.metrics`), and with density statistics `feature_density` and
        `consistent_activation_heuristic` (firings per prompt in which the feature fired).

    Raises:
        ValueError: when every token is ignored.
    """
    ignored = all_ignored(sae, activation_store, model, ignore_tokens)
    sites = sites_of(sae, model)
    reconstruction = ReconstructionAccumulator()
    sparsity = SparsityAccumulator()
    firing = FiringAccumulator()

    with evaluation_mode(sae):
        scaling = scaling_for(activation_store, sae)
        for tokens in token_batches(
            activation_store, n_batches, eval_batch_size_prompts, "Sparsity and variance", verbose
        ):
            kept = kept_positions(tokens, ignored, sae, activation_store)
            activations = read_activations(model, tokens, sites, model_kwargs)
            outputs: list[Tensor] = []
            done = 0
            for part in reconstruct(sae, activations.input, scaling):
                part_kept = kept[done : done + len(part.output)].to(part.feature_acts.device)
                sparsity.update(part.feature_acts[part_kept])
                if compute_featurewise_density_statistics:
                    firing.update(part.feature_acts, part_kept)
                outputs.append(part.output)
                done += len(part.output)
            output = torch.cat(outputs)
            mask = kept.to(output.device)
            reconstruction.update(activations.target.to(output.device)[mask], output[mask])

    if reconstruction.n_tokens == 0:
        raise ValueError(nothing_left(ignored))
    numbers: dict[str, float] = {}
    if compute_l2_norms:
        numbers |= reconstruction.shrinkage()
    if compute_sparsity_metrics:
        numbers |= sparsity.result()
    if compute_variance_metrics:
        numbers |= reconstruction.quality()
    feature_metrics: dict[str, list[float]] = {}
    if compute_featurewise_density_statistics:
        feature_metrics["feature_density"] = firing.density().tolist()
        feature_metrics["consistent_activation_heuristic"] = firing.consistency().tolist()
    return numbers, feature_metrics


def get_featurewise_weight_based_metrics(sae: SAE) -> dict[str, Any]:
    """`encoder_bias`, `encoder_norm`, `encoder_decoder_cosine_sim`: lists of length d_sae."""
    return featurewise_weight_metrics(sae)


# -- held-out evaluation --------------------------------------------------------------------------


class HeldOutEvaluator:
    """Judges SAEs on one fixed set of tokens: the same numbers for the same SAE, whenever it runs.

    Pass it to a trainer as `evaluator`. Hold rows out of the training data with `split_held_out`.

    Args:
        tokens: prompts, [prompts, context].
        model: the language model.
        eval_config: what to compute (batch counts are derived from the tokens); by default
            cross-entropy, shrinkage, sparsity and variance.
        batch_size_prompts: prompts per forward pass.
        ignore_tokens: see `run_evals`.
        model_kwargs: for every forward pass.
        seqpos_slice: the positions to judge; by default those of the SAE.

    Raises:
        ValueError: when there are no tokens, or ids outside of the model's vocabulary.
    """

    def __init__(
        self,
        tokens: Int[Tensor, "prompts pos"],
        model: Any,
        eval_config: EvalConfig | None = None,
        batch_size_prompts: int = 8,
        ignore_tokens: Collection[int | None] = (),
        model_kwargs: Mapping[str, Any] | None = None,
        seqpos_slice: tuple[int | None, ...] | None = None,
    ):
        check_held_out(tokens, model)
        self.tokens = tokens.clone()
        self.model = model
        self.eval_config = eval_config or EvalConfig(
            compute_ce_loss=True,
            compute_l2_norms=True,
            compute_sparsity_metrics=True,
            compute_variance_metrics=True,
        )
        self.batch_size_prompts = min(batch_size_prompts, len(tokens))
        self.ignore_tokens = frozenset(ignore_tokens)
        self.model_kwargs = dict(model_kwargs or {})
        self.seqpos_slice = seqpos_slice

    @classmethod
    def from_dataset(
        cls,
        model: Any,
        dataset: Any,
        context_size: int,
        n_prompts: int,
        prepend_bos: bool = True,
        disable_concat_sequences: bool = False,
        dataset_trust_remote_code: bool | None = None,
        **kwargs: Any,
    ) -> HeldOutEvaluator:
        """Tokenise the first `n_prompts` prompts of a dataset, once.

        Args:
            model: supplies the tokenizer for raw text.
            dataset: a dataset or a path to one; tokenised or text.
            context_size: tokens per prompt.
            n_prompts: how many; fewer, with a warning, when the data hold fewer.
            prepend_bos: see `ActivationsStore`.
            disable_concat_sequences: see `ActivationsStore`.
            dataset_trust_remote_code: see `ActivationsStore`.
            kwargs: further arguments of `HeldOutEvaluator`.

        Raises:
            ValueError: when the data hold no prompt of that length.
        """
        source = TokenSource(
            model,
            dataset,
            streaming=True,
            context_size=context_size,
            store_batch_size_prompts=1,
            total_training_tokens=0,
            prepend_bos=prepend_bos,
            device="cpu",
            dataset_trust_remote_code=dataset_trust_remote_code,
            disable_concat_sequences=disable_concat_sequences,
        )
        return cls(first_prompts(source, n_prompts), model, **kwargs)

    def evaluate(self, sae: SAE, norm_scaling_factor: float | None = None) -> EvalResult:
        """Judge an SAE.

        Args:
            sae: any SAE of the model.
            norm_scaling_factor: what activations are multiplied by for an SAE in training that
                wants scaled ones; None once it is folded in.
        """
        tokens = self.tokens.to(model_device(self.model))
        store = FixedTokens(tokens, self.batch_size_prompts, self.seqpos_slice)
        store.estimated_norm_scaling_factor = norm_scaling_factor
        n_batches = math.ceil(len(tokens) / self.batch_size_prompts)
        config = replace(
            self.eval_config,
            batch_size_prompts=self.batch_size_prompts,
            n_eval_reconstruction_batches=n_batches,
            n_eval_sparsity_variance_batches=n_batches,
        )
        result = run_evals(
            sae,
            store,  # type: ignore[arg-type]
            self.model,
            config,
            model_kwargs=self.model_kwargs,
            ignore_tokens=self.ignore_tokens,
        )
        # The last batch may be short: count what there is.
        for name in result.metrics["token_stats"]:
            result.metrics["token_stats"][name] = tokens.numel()
        return result

    def __call__(self, sae: SAE, data_provider: Any = None, scaler: Any = None) -> dict[str, Any]:
        """The groups of metrics, as a trainer's evaluator. The data provider is not touched."""
        return self.evaluate(sae, getattr(scaler, "scaling_factor", None)).metrics


# -- sweeps over released SAEs --------------------------------------------------------------------


def all_loadable_saes() -> list[tuple[str, str, float, float]]:
    """(release, SAE id, expected explained variance, expected L0) of every released SAE."""
    return [
        (
            release,
            sae_id,
            float(lookup.expected_var_explained.get(sae_id, 1.0)),
            float(lookup.expected_l0.get(sae_id, 0.0)),
        )
        for release, lookup in get_pretrained_saes_directory().items()
        for sae_id in lookup.saes_map
    ]


def get_saes_from_regex(
    sae_regex_pattern: str, sae_block_pattern: str
) -> list[tuple[str, str, float, float]]:
    """The released SAEs whose release and id match the two patterns as a whole."""
    release, block = re.compile(sae_regex_pattern), re.compile(sae_block_pattern)
    return [
        entry
        for entry in all_loadable_saes()
        if release.fullmatch(entry[0]) and block.fullmatch(entry[1])
    ]


def multiple_evals(
    sae_regex_pattern: str,
    sae_block_pattern: str,
    n_eval_reconstruction_batches: int,
    n_eval_sparsity_variance_batches: int,
    eval_batch_size_prompts: int = 8,
    datasets: Sequence[str] | None = None,
    ctx_lens: Sequence[int] | None = None,
    output_dir: str = "eval_results",
    verbose: bool = False,
    eval_config: EvalConfig | None = None,
) -> list[dict[str, Any]]:
    """Evaluate every released SAE that matches, on every dataset and context length.

    Each result is also written to `output_dir` as soon as it is there.

    Args:
        sae_regex_pattern: matches whole release names.
        sae_block_pattern: matches whole SAE ids.
        n_eval_reconstruction_batches: see `EvalConfig`.
        n_eval_sparsity_variance_batches: see `EvalConfig`.
        eval_batch_size_prompts: prompts per batch.
        datasets: paths of datasets; by default Skylion007/openwebtext and lighteval/MATH.
        ctx_lens: context lengths; by default 128 alone.
        output_dir: where the results go.
        verbose: show progress within each SAE.
        eval_config: what to compute, everything by default.

    Returns:
        One dict per SAE, dataset and context length, see `evaluate_sae`.

    Raises:
        ValueError: when no SAE matches.
    """
    matching = get_saes_from_regex(sae_regex_pattern, sae_block_pattern)
    if not matching:
        raise ValueError(
            f"No SAEs matched the release pattern {sae_regex_pattern!r} and the id pattern "
            f"{sae_block_pattern!r}. Both must match the whole name; `sae-lens list` shows them."
        )
    config = eval_config or replace(
        get_eval_everything_config(
            batch_size_prompts=eval_batch_size_prompts,
            n_eval_reconstruction_batches=n_eval_reconstruction_batches,
            n_eval_sparsity_variance_batches=n_eval_sparsity_variance_batches,
        ),
        include_misc_metrics=True,
    )
    datasets = ("Skylion007/openwebtext", "lighteval/MATH") if datasets is None else datasets
    ctx_lens = (128,) if ctx_lens is None else ctx_lens
    device = default_device()
    models = _LastModel(device)
    results: list[dict[str, Any]] = []
    for release, sae_id, _, _ in tqdm(matching, desc="SAEs", disable=not verbose):
        sae = SAE.from_pretrained(release=release, sae_id=sae_id, device=device)[0]
        model = models.for_sae(sae)
        for context_size in ctx_lens:
            for dataset in datasets:
                result = evaluate_sae(
                    sae,
                    model,
                    dataset=dataset,
                    context_size=context_size,
                    eval_config=config,
                    sae_set=release,
                    sae_id=sae_id,
                    verbose=verbose,
                )
                write_result(result, Path(output_dir))
                results.append(result)
    return results


def default_device() -> str:
    """The best device there is: "cuda", "mps" or "cpu"."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


class _LastModel:
    """Loads the model of an SAE, keeping it while its name and settings stay the same."""

    def __init__(self, device: str, load: Callable[..., Any] | None = None):
        self.device = device
        self._load = load
        self._key: Any = None
        self._model: Any = None

    def for_sae(self, sae: Any) -> Any:
        cfg = sae.cfg
        class_name = fact(cfg, "model_class_name") or "HookedTransformer"
        kwargs = dict(cfg.model_from_pretrained_kwargs or {})
        key = (class_name, cfg.model_name, tuple(sorted(kwargs.items())))
        if key != self._key:
            self._model = None  # make room before the next one is loaded
            self._model = (self._load or load_model)(
                class_name, cfg.model_name, device=self.device, model_from_pretrained_kwargs=kwargs
            )
            self._key = key
        return self._model


def evaluate_sae(
    sae: SAE,
    model: Any,
    dataset: Any = None,
    context_size: int | None = None,
    eval_config: EvalConfig | None = None,
    sae_set: str = "",
    sae_id: str = "",
    verbose: bool = False,
) -> dict[str, Any]:
    """Evaluate one SAE on one dataset, special tokens left out.

    Args:
        sae: the SAE.
        model: its language model.
        dataset: a dataset or its path; the SAE's own by default.
        context_size: tokens per prompt; the SAE's own by default.
        eval_config: what to compute, everything by default.
        sae_set: where the SAE is from (a release, a folder).
        sae_id: its name there.
        verbose: show progress bars.

    Returns:
        `unique_id`, `sae_set`, `sae_id`, `eval_cfg` (context size, dataset and the fields of the
        `EvalConfig`), `metrics`, `feature_metrics`, `sae_cfg`.
    """
    config = eval_config or get_eval_everything_config()
    store = ActivationsStore.from_sae(model, sae, context_size=context_size, dataset=dataset)
    store.shuffle_input_dataset(seed=42)
    if store.normalize_activations == EXPECTED_AVERAGE:
        store.set_norm_scaling_factor_if_needed()
    tokenizer = getattr(model, "tokenizer", None)
    names = ("pad_token_id", "eos_token_id", "bos_token_id")
    metrics, feature_metrics = run_evals(
        sae=sae,
        activation_store=store,
        model=model,
        eval_config=config,
        ignore_tokens={getattr(tokenizer, name, None) for name in names},
        verbose=verbose,
    )
    path = dataset if dataset is not None else sae.cfg.dataset_path
    return {
        "unique_id": f"{sae_set}-{sae_id}" if sae_id else str(sae_set),
        "sae_set": sae_set,
        "sae_id": sae_id,
        "eval_cfg": {
            "context_size": store.context_size,
            "dataset": path if isinstance(path, str) else type(path).__name__,
            **asdict(config),
        },
        "metrics": metrics,
        "feature_metrics": feature_metrics,
        "sae_cfg": sae.cfg.to_dict(),
    }


def evaluate_target(
    target: str,
    sae_id: str | None = None,
    dataset: str | None = None,
    split: str | None = None,
    context_size: int | None = None,
    eval_config: EvalConfig | None = None,
    model: Any = None,
    output_dir: str | Path | None = None,
    device: str | None = None,
    verbose: bool = False,
) -> dict[str, Any]:
    """Evaluate the SAE in a folder, or a released one, and write the results.

    Args:
        target: a folder with an SAE, a release, or release and id in one ("release/id").
        sae_id: the SAE's id in the release.
        dataset: path of the text to evaluate on; that of the SAE's training by default.
        split: part of the dataset; by default "heldout" of the text that comes with the package,
            "train" of any other.
        context_size: tokens per prompt; the SAE's own by default.
        eval_config: what to compute, everything by default.
        model: the language model; loaded as the SAE's config says by default.
        output_dir: where JSON and CSV files go; None writes nothing.
        device: where to compute; the best there is by default.
        verbose: show progress bars.

    Returns:
        See `evaluate_sae`.

    Raises:
        ValueError: when the SAE cannot be found, or knows neither model nor dataset and none is
            given.
    """
    device = device or default_device()
    sae, sae_set, name = _load_target(target, sae_id, device)
    if model is None:
        if not sae.cfg.model_name:
            raise ValueError(
                f"The SAE {target!r} does not say which model it belongs to; pass the model."
            )
        model = _LastModel(device).for_sae(sae)
    path = dataset or sae.cfg.dataset_path
    if not path:
        raise ValueError(f"The SAE {target!r} names no dataset; pass one to evaluate on.")
    if split is None:
        split = "heldout" if path == EMBEDDED_DATASET_NAME else "train"
    text = load_text_dataset(path, split=split, streaming=True)
    config = eval_config or replace(get_eval_everything_config(), include_misc_metrics=True)
    result = evaluate_sae(sae, model, text, context_size, config, sae_set, name, verbose)
    result["eval_cfg"]["dataset"] = path
    result["eval_cfg"]["split"] = split
    if output_dir is not None:
        folder = Path(output_dir)
        process_results([result], folder)
        file = f"{result['unique_id']}_core_eval_results.json".replace("/", "_")
        atomic_write_json(folder / file, core_report(result), indent=2)
    return result


def _load_target(target: str, sae_id: str | None, device: str) -> tuple[SAE, str, str]:
    """The SAE, what it is from, and its name there."""
    folder = Path(target)
    if sae_id is None and folder.is_dir():
        return SAE.load_from_disk(str(folder), device=device), folder.name, ""
    if sae_id is None:
        parts = target.split("/")
        # Releases of the registry have no slash in their names, repositories have one.
        n_release = 1 if parts[0] in get_pretrained_saes_directory() else 2
        release, sae_id = "/".join(parts[:n_release]), "/".join(parts[n_release:])
        if not sae_id:
            raise ValueError(
                f"{target!r} is neither a folder nor a release with an id. Give the folder of an "
                "SAE, or RELEASE/ID as `sae-lens list` shows them."
            )
        target = release
    return SAE.from_pretrained(target, sae_id, device=device)[0], target, sae_id


# -- command line ---------------------------------------------------------------------------------


def run_evaluations(args: argparse.Namespace) -> list[dict[str, Any]]:
    """What `python -m sae_lens.evals` does: a sweep over the SAEs that match two patterns.

    Without any `compute_*` flag everything is computed, otherwise only what they name.
    """
    matching = get_saes_from_regex(args.sae_regex_pattern, args.sae_block_pattern)
    logger.info(
        "%d SAEs of %d releases match.", len(matching), len({release for release, *_ in matching})
    )
    batch_size = getattr(args, "batch_size_prompts", None) or getattr(
        args, "eval_batch_size_prompts", 16
    )
    switches = [name for name in _SWITCHES if getattr(args, name, False)]
    chosen: dict[str, Any] = {}
    if switches:
        chosen["eval_config"] = _with_switches(
            EvalConfig(
                batch_size_prompts=batch_size,
                n_eval_reconstruction_batches=args.n_eval_reconstruction_batches,
                n_eval_sparsity_variance_batches=args.n_eval_sparsity_variance_batches,
            ),
            switches,
        )
    return multiple_evals(
        sae_regex_pattern=args.sae_regex_pattern,
        sae_block_pattern=args.sae_block_pattern,
        n_eval_reconstruction_batches=args.n_eval_reconstruction_batches,
        n_eval_sparsity_variance_batches=args.n_eval_sparsity_variance_batches,
        eval_batch_size_prompts=batch_size,
        datasets=args.datasets,
        ctx_lens=args.ctx_lens,
        output_dir=args.output_dir,
        verbose=args.verbose,
        **chosen,
    )


def arg_parser() -> argparse.ArgumentParser:
    """The command line of `python -m sae_lens.evals`."""
    parser = argparse.ArgumentParser(
        prog="python -m sae_lens.evals", description="Evaluate released SAEs that match patterns."
    )
    parser.add_argument("sae_regex_pattern", help="matches whole release names")
    parser.add_argument("sae_block_pattern", help="matches whole SAE ids")
    parser.add_argument("--batch_size_prompts", type=int, default=16)
    parser.add_argument("--n_eval_reconstruction_batches", type=int, default=10)
    parser.add_argument("--n_eval_sparsity_variance_batches", type=int, default=1)
    for name in _SWITCHES:
        parser.add_argument(f"--{name}", action="store_true")
    parser.add_argument("--datasets", nargs="+", default=["Skylion007/openwebtext"])
    parser.add_argument("--ctx_lens", type=int, nargs="+", default=[128])
    parser.add_argument("--output_dir", default="eval_results")
    parser.add_argument("--verbose", action="store_true")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run a sweep and write its results; the files' names go to standard output as JSON."""
    args = arg_parser().parse_args(argv)
    results = run_evaluations(args)
    files = process_results(results, args.output_dir)
    sys.stdout.write(json.dumps(files, default=str, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
