"""`toy_model_sae_runner`: a toy model of superposition, and an SAE that takes it apart."""

from __future__ import annotations

from dataclasses import asdict

import torch

from sae_lens.config.toy_models import ToyModelSAERunnerConfig
from sae_lens.saes.config import TrainingSAEConfig
from sae_lens.saes.training import TrainingSAE
from sae_lens.training.geometric_median import compute_geometric_median
from sae_lens.training.toy_models import ReluOutputModel, ToyConfig
from sae_lens.training.train_toy_sae import train_toy_sae


def toy_model_sae_runner(cfg: ToyModelSAERunnerConfig) -> TrainingSAE:
    """Train a toy model, then an SAE on its hidden layer.

    Returns:
        The trained SAE.
    """
    torch.manual_seed(cfg.seed)
    model = ReluOutputModel(
        ToyConfig(
            n_features=cfg.n_features,
            n_hidden=cfg.n_hidden,
            n_correlated_pairs=cfg.n_correlated_pairs,
            n_anticorrelated_pairs=cfg.n_anticorrelated_pairs,
            feature_probability=cfg.feature_probability,
            device=cfg.device,
        ),
        device=torch.device(cfg.device),
    )
    model.optimize(steps=cfg.model_training_steps)
    with torch.no_grad():
        features = model.generate_batch(cfg.total_training_tokens)
        _, cache = model.run_with_cache(features, names_filter=["hook_hidden"])
        activations = cache["hook_hidden"]
    sae = _new_sae(cfg, activations)
    if cfg.log_to_wandb:
        import wandb

        wandb.init(project=cfg.wandb_project, entity=cfg.wandb_entity, config=asdict(cfg))
    try:
        train_toy_sae(
            sae,
            activations,
            batch_size=cfg.train_batch_size,
            feature_sampling_window=cfg.feature_sampling_window,
            dead_feature_threshold=cfg.dead_feature_threshold,
            use_wandb=cfg.log_to_wandb,
            wandb_log_frequency=cfg.wandb_log_frequency,
            lr=cfg.lr,
            dead_feature_window=cfg.dead_feature_window,
        )
    finally:
        if cfg.log_to_wandb:
            wandb.finish()
    return sae


def _new_sae(cfg: ToyModelSAERunnerConfig, activations: torch.Tensor) -> TrainingSAE:
    values = {
        **cfg.get_base_sae_cfg_dict(),
        "l1_coefficient": cfg.l1_coefficient,
        "lp_norm": 1.0,
        "use_ghost_grads": cfg.use_ghost_grads,
        "normalize_sae_decoder": True,
        "noise_scale": 0.0,
        "decoder_orthogonal_init": False,
        "mse_loss_normalization": None,
    }
    sae = TrainingSAE(TrainingSAEConfig.from_dict(values))
    if cfg.b_dec_init_method == "geometric_median":
        median = compute_geometric_median(activations).median
        sae.initialize_b_dec_with_precalculated(median)
    elif cfg.b_dec_init_method == "mean":
        sae.initialize_b_dec_with_mean(activations)
    return sae
