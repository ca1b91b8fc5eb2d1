"""What follows from the fields of a runner config, and which combinations are refused.

The order of the steps is part of the public contract: the first contradiction is the one reported.
"""

from __future__ import annotations

import logging
import secrets
import string
from typing import Any

from sae_lens.config.feature_validation import refuse_bad_steps, refuse_contradictory_features
from sae_lens.config.idle_settings import warn_of_idle_settings
from sae_lens.config.numbers import refuse_bad_optimization, refuse_below, refuse_negative
from sae_lens.config.seqpos import _validate_seqpos
from sae_lens.hook_names import layer_of
from sae_lens.kernels.dispatch import check_sparse_kernels
from sae_lens.number_kinds import is_number
from sae_lens.registry import get_sae_training_class
from sae_lens.saes.jumprelu import check_thresholds
from sae_lens.saes.normalization import NORMALIZATION_KINDS
from sae_lens.training.checkpoint_policy import BEST_MODES
from sae_lens.training.nonfinite import ON_NAN
from sae_lens.training.resume_files import is_plain_name

logger = logging.getLogger(__name__)

B_DEC_INIT_METHODS = ("geometric_median", "mean", "zeros")
_MAY_BE_LISTS = ("seqpos_slice", "exclude_special_tokens")
FINETUNING_METHODS = (None, "scale", "decoder", "unrotated_decoder")

_ID_LETTERS = string.ascii_lowercase + string.digits
# Ids made by this process, so that a config rebuilt from another one's values keeps its folder.
_ids_in_use: set[str] = set()


def derive_and_validate(cfg: Any, named: frozenset[str]) -> None:
    """Fill in the derived fields of a runner config and refuse contradictions.

    Args:
        cfg: the config.
        named: the fields that its maker gave.

    Raises:
        ValueError: naming the values that do not go together and what to do.
    """
    _refuse_lists(cfg)
    _plain_values(cfg)
    if "hook_layer" not in named:
        cfg.hook_layer = layer_of(cfg.hook_name)
    _refuse_resume(cfg)
    _refuse_two_kinds_of_held_out_data(cfg)
    if cfg.use_cached_activations and cfg.cached_activations_path is None:
        cfg.cached_activations_path = _default_cached_activations_path(
            cfg.dataset_path, cfg.model_name, cfg.hook_name, cfg.hook_head_index
        )
    _derive_activation_fn(cfg)
    _derive_width(cfg)
    # Kept because it has always been there; it is not the number of tokens in the buffer.
    cfg.tokens_per_buffer = cfg.train_batch_size_tokens * cfg.context_size * cfg.n_batches_in_buffer
    if cfg.run_name is None:
        cfg.run_name = (
            f"{cfg.d_sae}-L1-{cfg.l1_coefficient}-LR-{cfg.lr}-Tokens-{cfg.training_tokens:3.3e}"
        )
    if cfg.model_from_pretrained_kwargs is None:
        is_hooked = cfg.model_class_name == "HookedTransformer"
        cfg.model_from_pretrained_kwargs = {"center_writing_weights": False} if is_hooked else {}
    _refuse_contradictions(cfg)
    if cfg.act_store_device == "with_model":
        cfg.act_store_device = cfg.device
    if cfg.lr_end is None:
        cfg.lr_end = cfg.lr / 10
    if "\0" in str(cfg.checkpoint_path):
        raise ValueError(f"checkpoint_path is {cfg.checkpoint_path!r}; no folder has such a name.")
    _refuse_bad_run_id(cfg.wandb_id)
    if cfg.resume_from_checkpoint is None or cfg.wandb_id is not None:
        # A run that goes on has a folder already; which one, its runner finds out.
        cfg.checkpoint_path = folder_of_the_run(cfg.checkpoint_path, cfg.wandb_id)
    _refuse_numbers_out_of_range(cfg)
    check_sparse_kernels(cfg.sparse_kernels)
    _refuse_bad_policies(cfg)
    refuse_bad_steps(cfg)
    refuse_contradictory_features(cfg)
    if cfg.verbose:
        _log_summary(cfg)
    if cfg.use_ghost_grads:
        logger.info("Using ghost gradients.")
    if cfg.context_size < 0:
        raise ValueError(f"context_size is {cfg.context_size}; it must be positive.")
    _validate_seqpos(cfg.seqpos_slice, cfg.context_size)
    _refuse_bad_token_ids(cfg.exclude_special_tokens)
    warn_of_idle_settings(cfg)


def _refuse_lists(cfg: Any) -> None:
    lists = [
        name
        for name, value in vars(cfg).items()
        if isinstance(value, list) and name not in _MAY_BE_LISTS
    ]
    if lists:
        raise ValueError(
            f"{', '.join(lists)}: lists of hyper-parameters in one config are not supported any "
            "more. Make one config for each value and run them one by one."
        )


def _plain_values(cfg: Any) -> None:
    """Dtypes and devices as names, a flag of early releases as the kind it stood for."""
    for name in ("dtype", "device", "act_store_device"):
        setattr(cfg, name, str(getattr(cfg, name)))
    if isinstance(cfg.normalize_activations, bool):
        cfg.normalize_activations = (
            "expected_average_only_in" if cfg.normalize_activations else "none"
        )
    cfg.seqpos_slice = (None,) if cfg.seqpos_slice is None else tuple(cfg.seqpos_slice)


def _refuse_resume(cfg: Any) -> None:
    if cfg.resume:
        raise ValueError(
            "resume=True is not supported. To go on with an interrupted run, give its checkpoint "
            "as resume_from_checkpoint; to start from trained weights, give their folder as "
            "from_pretrained_path."
        )
    if cfg.resume_from_checkpoint is not None and not str(cfg.resume_from_checkpoint).strip():
        raise ValueError(
            "resume_from_checkpoint is empty; give a checkpoint's folder or 'latest', or leave it "
            "out."
        )


def _default_cached_activations_path(
    dataset_path: str, model_name: str, hook_name: str, hook_head_index: int | None
) -> str:
    """`activations/{dataset}/{model}/{hook}`, with the head if there is one."""
    path = (
        f"activations/{dataset_path.replace('/', '_')}/{model_name.replace('/', '_')}/{hook_name}"
    )
    return path if hook_head_index is None else f"{path}_{hook_head_index}"


def _derive_activation_fn(cfg: Any) -> None:
    is_topk = cfg.architecture == "topk"
    if cfg.activation_fn is None:
        cfg.activation_fn = "topk" if is_topk else "relu"
    if is_topk and cfg.activation_fn != "topk":
        raise ValueError(
            f"activation_fn must be topk for the topk architecture, not {cfg.activation_fn!r}; "
            "leave it out, or choose another architecture."
        )
    if cfg.activation_fn_kwargs is None:
        cfg.activation_fn_kwargs = {"k": 100} if cfg.activation_fn == "topk" else {}
    if cfg.architecture == "topk" and cfg.activation_fn_kwargs.get("k") is None:
        raise ValueError(
            "activation_fn_kwargs.k must be provided for the topk architecture, as in "
            f"activation_fn_kwargs={{'k': 32}}; it is {cfg.activation_fn_kwargs}."
        )


def _derive_width(cfg: Any) -> None:
    if cfg.d_sae is not None and cfg.expansion_factor is not None:
        if cfg.d_sae != cfg.d_in * cfg.expansion_factor:
            raise ValueError(
                f"d_sae={cfg.d_sae} and expansion_factor={cfg.expansion_factor} contradict each "
                f"other for d_in={cfg.d_in}; give one of them."
            )
        return
    if cfg.d_sae is None:
        if cfg.expansion_factor is None:
            cfg.expansion_factor = 4
        cfg.d_sae = cfg.d_in * cfg.expansion_factor


def _refuse_contradictions(cfg: Any) -> None:
    if cfg.b_dec_init_method not in B_DEC_INIT_METHODS:
        raise ValueError(
            f"b_dec_init_method is {cfg.b_dec_init_method!r}; allowed are "
            f"{', '.join(B_DEC_INIT_METHODS)}."
        )
    if cfg.normalize_sae_decoder and cfg.decoder_heuristic_init:
        raise ValueError(
            "normalize_sae_decoder and decoder_heuristic_init contradict each other: unit rows "
            "would undo the initial norm. Set one of them to False."
        )
    if cfg.normalize_sae_decoder and cfg.scale_sparsity_penalty_by_decoder_norm:
        raise ValueError(
            "normalize_sae_decoder and scale_sparsity_penalty_by_decoder_norm contradict each "
            "other: the norms would all be 1. Set one of them to False."
        )
    if cfg.finetuning_method == "decoder" and cfg.apply_b_dec_to_input:
        raise ValueError(
            "finetuning_method='decoder' needs apply_b_dec_to_input=False: the decoder bias would "
            "change the encoder's input while the encoder is frozen."
        )
    if cfg.normalize_activations not in NORMALIZATION_KINDS:
        raise ValueError(
            f"normalize_activations is {cfg.normalize_activations!r}; allowed are "
            f"{', '.join(NORMALIZATION_KINDS)}."
        )
    if cfg.finetuning_method not in FINETUNING_METHODS:
        raise ValueError(
            f"finetuning_method is {cfg.finetuning_method!r}; allowed are None, "
            f"{', '.join(m for m in FINETUNING_METHODS if m)}."
        )


def folder_of_the_run(checkpoint_path: str, wandb_id: str | None) -> str:
    """`checkpoint_path` with the run's id appended, unless it ends with it already."""
    last = checkpoint_path.rstrip("/").rsplit("/", 1)[-1]
    if last == wandb_id or (wandb_id is None and last in _ids_in_use):
        return checkpoint_path
    run_id = wandb_id or "".join(secrets.choice(_ID_LETTERS) for _ in range(8))
    _ids_in_use.add(run_id)
    return f"{checkpoint_path}/{run_id}"


def _refuse_numbers_out_of_range(cfg: Any) -> None:
    least = {
        "d_in": 1, "d_sae": 1, "train_batch_size_tokens": 1, "store_batch_size_prompts": 1,
        "training_tokens": 0, "finetuning_tokens": 0, "n_checkpoints": 0,
        "feature_sampling_window": 1, "dead_feature_window": 0, "wandb_log_frequency": 1,
        "eval_every_n_wandb_logs": 1, "n_batches_for_norm_estimate": 1,
        "prefetch_batches": 0, "n_eval_batches": 1 if _evaluates(cfg) else 0,
        # Half of the buffer is kept for mixing and half is served.
        "n_batches_in_buffer": 2,
    }  # fmt: skip
    refuse_below(cfg, least)
    refuse_bad_optimization(cfg)
    refuse_negative(cfg, ("l1_coefficient", "noise_scale"))
    if cfg.eval_batch_size_prompts is not None:
        refuse_below(cfg, {"eval_batch_size_prompts": 1})
    k = cfg.activation_fn_kwargs.get("k")
    if cfg.activation_fn == "topk" and k is not None:
        if not is_number(k) or not 0 < k <= cfg.d_sae:
            raise ValueError(
                f"activation_fn_kwargs says k={k!r}; it must be a number between 1 and the number "
                f"of features, d_sae={cfg.d_sae}."
            )
        if cfg.sae is None and k != int(k):
            raise ValueError(
                f"activation_fn_kwargs says k={k}; the topk architecture keeps a whole number of "
                "features of each token. A share of them on average is for batchtopk."
            )
    if cfg.architecture == "jumprelu" and cfg.sae is None:
        check_thresholds(cfg.jumprelu_init_threshold, cfg.jumprelu_bandwidth, may_be_zero=False)
    if not 0 < cfg.activations_mixing_fraction < 1:
        raise ValueError(
            f"activations_mixing_fraction is {cfg.activations_mixing_fraction}; it must lie "
            "between 0 and 1."
        )
    get_sae_training_class(str(cfg.architecture))


def _evaluates(cfg: Any) -> bool:
    every = cfg.wandb_log_frequency * cfg.eval_every_n_wandb_logs
    asks_for_it = cfg.log_to_wandb or cfg.log_to_jsonl is not None or cfg.keep_best_metric
    return bool(asks_for_it) and cfg.total_training_steps >= every


def _refuse_bad_run_id(run_id: Any) -> None:
    """The id becomes the name of a folder, and must not lead out of its parent."""
    if run_id is not None and not is_plain_name(run_id):
        raise ValueError(
            f"wandb_id is {run_id!r}; it names a folder, so it must not be empty, a dot, or hold "
            "slashes, backslashes or colons."
        )


def _refuse_bad_policies(cfg: Any) -> None:
    choices = {"on_nan": ON_NAN, "keep_best_mode": BEST_MODES}
    for name, allowed in choices.items():
        if getattr(cfg, name) not in allowed:
            raise ValueError(f"{name} is {getattr(cfg, name)!r}; allowed are {', '.join(allowed)}.")
    if cfg.keep_last is not None and cfg.keep_last < 1:
        raise ValueError(f"keep_last is {cfg.keep_last}; it must be at least 1, or None for all.")
    factor = cfg.loss_spike_factor
    if factor is not None and not factor > 1:
        raise ValueError(
            f"loss_spike_factor is {factor}; it must be above 1, or None to look for no spikes."
        )
    minutes = cfg.checkpoint_every_minutes
    if minutes is not None and not minutes > 0:
        raise ValueError(
            f"checkpoint_every_minutes is {minutes}; it must be above 0, or None for never."
        )


def _log_summary(cfg: Any) -> None:
    contexts = cfg.store_batch_size_prompts * cfg.n_batches_in_buffer
    steps = cfg.total_training_steps
    logger.info("Run name: %s", cfg.run_name)
    logger.info("n_tokens_per_buffer (millions): %s", contexts * cfg.context_size / 1e6)
    logger.info("Lower bound: n_contexts_per_buffer (millions): %s", contexts / 1e6)
    logger.info("Total training steps: %s", steps)
    if cfg.log_to_wandb:
        logger.info("Total wandb updates: %s", steps // cfg.wandb_log_frequency)
    logger.info(
        "n_tokens_per_feature_sampling_window (millions): %s",
        cfg.feature_sampling_window * cfg.train_batch_size_tokens / 1e6,
    )
    logger.info(
        "n_tokens_per_dead_feature_window (millions): %s",
        cfg.dead_feature_window * cfg.train_batch_size_tokens / 1e6,
    )
    logger.info(
        "We will reset the sparsity calculation %s times.", steps // cfg.feature_sampling_window
    )


def _refuse_bad_token_ids(exclude_special_tokens: Any) -> None:
    if isinstance(exclude_special_tokens, bool):
        return
    if not isinstance(exclude_special_tokens, (list, tuple)) or not all(
        isinstance(token, int) and not isinstance(token, bool) for token in exclude_special_tokens
    ):
        raise ValueError(
            f"exclude_special_tokens is {exclude_special_tokens!r}; it must be True, False or a "
            "list of token ids (integers)."
        )


def _refuse_two_kinds_of_held_out_data(cfg: Any) -> None:
    n_rows = cfg.eval_held_out_rows
    if not isinstance(n_rows, int) or n_rows < 0:
        raise ValueError(
            f"eval_held_out_rows is {n_rows!r}; it must be a number of rows, 0 for none."
        )
    if n_rows and cfg.eval_dataset_path is not None:
        raise ValueError(
            f"eval_held_out_rows={n_rows} and eval_dataset_path={cfg.eval_dataset_path!r} both say "
            "what evaluations read; give one of them."
        )
    if n_rows and cfg.use_cached_activations:
        raise ValueError(
            f"eval_held_out_rows={n_rows} cannot be kept from a cache that already holds their "
            "activations; give other data as eval_dataset_path."
        )
