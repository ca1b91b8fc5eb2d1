"""How good is an SAE? Evaluations of one SAE, and sweeps over released ones.

`run_evals` judges one SAE in its language model: what its reconstruction does to the model's
predictions (KL divergence and cross-entropy, against zeroing the hook), how well and how sparsely
it reconstructs, and how often its features fire. The arithmetic is in `analysis.metrics`, reading
and replacing activations in `analysis.interventions`.

`multiple_evals` (and `python -m sae_lens.evals`) does so for all released SAEs that match a
pattern; `held_out_evaluation` does it again and again on the same tokens while an SAE is trained.
"""

from __future__ import annotations

import argparse
import json
import logging
import re
import sys
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from tqdm.auto import tqdm
from transformer_lens import HookedTransformer

from sae_lens.activations.datasets_loading import split_held_out
from sae_lens.activations.model_loading import load_model
from sae_lens.activations.scaling import EXPECTED_AVERAGE
from sae_lens.activations.store import ActivationsStore
from sae_lens.analysis.eval_config import (
    SWITCHES,
    EvalConfig,
    EvalResult,
    get_eval_everything_config,
    get_git_hash,
    get_library_version,
    with_switches,
)
from sae_lens.analysis.eval_reports import (
    core_report,
    dict_to_nested,
    nested_dict,
    process_results,
    replace_nans_with_negative_one,
    write_result,
)
from sae_lens.analysis.eval_tokens import (
    all_ignored,
    kept_positions,
    norm_limit,
    not_ignored,
    nothing_left,
    scaling_for,
    token_batches,
    trained_positions,
    without_overlong,
)
from sae_lens.analysis.interventions import (
    evaluation_mode,
    prompts_per_pass,
    reconstruct,
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
from sae_lens.analysis.splicing import AT, Splicing, grouped_by_hook, splicing_of
from sae_lens.analysis.targets import ModelLoader, default_device, load_target, text_for
from sae_lens.atomic_files import atomic_write_json
from sae_lens.errors import InvalidArgumentError
from sae_lens.loading.directory import get_pretrained_saes_directory
from sae_lens.saes.base import SAE

__all__ = [
    "EvalConfig",
    "EvalResult",
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
            the SAE's training excluded are added, and so are positions whose activation is longer
            than those that it was trained on (`norm_filter_...` in its metadata).
        verbose: show progress bars.

    Returns:
        `(metrics, feature_metrics)`: groups of numbers (empty groups are left out), and lists of
        length d_sae. For an SAE of several hooks the group `by_hook` holds each hook's numbers.

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
        by_hook = grouped_by_hook(found)
        if by_hook:
            metrics["by_hook"] = by_hook
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
    splicing, kwargs = splicing_of(sae, model), dict(model_kwargs or {})
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
            model_kwargs=kwargs,
        )
        kept = _without_overlong(sae, splicing, tokens, not_ignored(tokens, ignored), kwargs)
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
    hooks = {name.partition(AT)[2] for name in result if AT in name}
    for of_hook in ("", *(f"{AT}{hook}" for hook in sorted(hooks))):
        if compute_kl:
            result[f"kl_div_score{of_hook}"] = recovered_score(
                0.0, result[f"kl_div_with_sae{of_hook}"], result[f"kl_div_with_ablation{of_hook}"]
            )
        if compute_ce_loss:
            result[f"ce_loss_score{of_hook}"] = recovered_score(
                result[f"ce_loss_without_sae{of_hook}"],
                result[f"ce_loss_with_sae{of_hook}"],
                result[f"ce_loss_with_ablation{of_hook}"],
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
    splicing = splicing_of(sae, model)
    step = prompts_per_pass(model, batch_tokens.shape[1]) or len(batch_tokens)
    kwargs = dict(model_kwargs or {})
    with evaluation_mode(sae):
        parts = [
            splicing.changed_predictions(
                tokens,
                _without_overlong(
                    sae,
                    splicing,
                    tokens,
                    kept_positions(tokens, ignored, sae, activation_store),
                    kwargs,
                ),
                trained_positions(tokens, sae, activation_store),
                scaling_for(activation_store, sae),
                compute_kl,
                compute_ce_loss,
                kwargs,
            )
            for tokens in batch_tokens.split(step)
        ]
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def _without_overlong(
    sae: SAE,
    splicing: Splicing,
    tokens: Int[Tensor, "batch pos"],
    kept: Bool[Tensor, "batch pos"],
    model_kwargs: Mapping[str, Any],
) -> Bool[Tensor, "batch pos"]:
    """The kept positions that the filter of the SAE's training would keep too."""
    if norm_limit(sae) is None:
        return kept  # and the model need not run for it
    return without_overlong(sae, kept, splicing.read(tokens, model_kwargs).input)


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
    splicing = splicing_of(sae, model)
    by_hook = splicing.metrics_by_hook()
    reconstruction = ReconstructionAccumulator()
    sparsity = SparsityAccumulator()
    firing = FiringAccumulator()

    with evaluation_mode(sae):
        scaling = scaling_for(activation_store, sae)
        for tokens in token_batches(
            activation_store, n_batches, eval_batch_size_prompts, "Sparsity and variance", verbose
        ):
            kept = kept_positions(tokens, ignored, sae, activation_store)
            activations = splicing.read(tokens, model_kwargs)
            kept = without_overlong(sae, kept, activations.input)
            outputs: list[Tensor] = []
            done = 0
            for part in reconstruct(sae, activations.input, scaling):
                part_kept = kept[done : done + len(part.output)].to(part.feature_acts.device)
                sparsity.update(part.feature_acts[part_kept])
                by_hook.update_features(part.feature_acts[part_kept])
                if compute_featurewise_density_statistics:
                    firing.update(part.feature_acts, part_kept)
                outputs.append(part.output)
                done += len(part.output)
            output = torch.cat(outputs)
            mask = kept.to(output.device)
            target = activations.target.to(output.device)[mask]
            reconstruction.update(target, output[mask])
            by_hook.update(target, output[mask])

    if reconstruction.n_tokens == 0:
        raise ValueError(nothing_left(ignored))
    numbers: dict[str, float] = {}
    if compute_l2_norms:
        numbers |= reconstruction.shrinkage() | by_hook.shrinkage()
    if compute_sparsity_metrics:
        numbers |= sparsity.result() | by_hook.sparsity()
    if compute_variance_metrics:
        numbers |= reconstruction.quality() | by_hook.quality()
    feature_metrics: dict[str, list[float]] = {}
    if compute_featurewise_density_statistics:
        feature_metrics["feature_density"] = firing.density().tolist()
        feature_metrics["consistent_activation_heuristic"] = firing.consistency().tolist()
    return numbers, feature_metrics


def get_featurewise_weight_based_metrics(sae: SAE) -> dict[str, Any]:
    """`encoder_bias`, `encoder_norm`, `encoder_decoder_cosine_sim`: lists of length d_sae."""
    return featurewise_weight_metrics(sae)


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
    models = ModelLoader(device, load_model)
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
    sae, sae_set, name = load_target(target, sae_id, device)
    if model is None:
        model = ModelLoader(device, load_model).for_sae(sae)
    text, path, split = text_for(sae, dataset, split)
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
    switches = [name for name in SWITCHES if getattr(args, name, False)]
    chosen: dict[str, Any] = {}
    if switches:
        chosen["eval_config"] = with_switches(
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
    for name in SWITCHES:
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
