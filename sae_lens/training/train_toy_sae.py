"""Training an SAE on activations that are all in memory, as those of a toy model are."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from sae_lens.saes.base import SAE
from sae_lens.saes.training import TrainingSAE, TrainStepOutput
from sae_lens.saes.training_step import reported_features
from sae_lens.training.optim import clip_and_step, gradient_norm, make_optimizer
from sae_lens.training.statistics import FiringStatistics, count_active


def train_toy_sae(
    sparse_autoencoder: SAE,
    activation_store: Float[Tensor, "n d_in"],
    batch_size: int = 1024,
    feature_sampling_window: int = 100,
    dead_feature_threshold: float = 1e-8,
    use_wandb: bool = False,
    wandb_log_frequency: int = 50,
    *,
    lr: float = 3e-4,
    dead_feature_window: int = 100,
) -> TrainingSAE:
    """Train an SAE once over some activations, in random order.

    Args:
        sparse_autoencoder: a training SAE, which is changed; its config has the sparsity weight.
        activation_store: what it learns, [n, d_in].
        batch_size: activations per step; the last batch may be smaller.
        feature_sampling_window: steps over which firing densities are measured.
        dead_feature_threshold: density below which a feature is counted in the logs.
        use_wandb: log to the W&B run that is open.
        wandb_log_frequency: steps between two logged ones.
        lr: learning rate.
        dead_feature_window: steps of silence after which a feature counts as dead.

    Returns:
        The same SAE.

    Raises:
        ValueError: when it is no training SAE.
    """
    sae = sparse_autoencoder
    if not isinstance(sae, TrainingSAE):
        raise ValueError(
            f"train_toy_sae needs a TrainingSAE, not a {type(sae).__name__}: make one with "
            "TrainingSAE(TrainingSAEConfig.from_dict(...))."
        )
    optimizer = make_optimizer(sae.parameters(), lr, 0.9, 0.999)
    statistics = FiringStatistics(sae.cfg.d_sae, sae.device)
    order = torch.randperm(len(activation_store), device=activation_store.device)
    normalizes_decoder = bool(getattr(sae.cfg, "normalize_sae_decoder", False))
    sae.train()
    for step, rows in enumerate(tqdm(order.split(batch_size), desc="Training the SAE")):
        if normalizes_decoder:
            sae.set_decoder_norm_to_unit_norm()
        if step > 0 and step % feature_sampling_window == 0:
            if use_wandb:
                _log_densities(statistics, dead_feature_threshold, step)
            statistics.reset_window()
        output = sae.training_forward_pass(
            sae_in=activation_store[rows].to(sae.device, sae.dtype),
            current_l1_coefficient=sae.cfg.l1_coefficient,
            dead_neuron_mask=statistics.silent_for_more_than(dead_feature_window),
        )
        statistics.update(reported_features(output))
        output.loss.backward()
        if normalizes_decoder:
            sae.remove_gradient_parallel_to_decoder_directions()
        clip_and_step(optimizer, sae.parameters(), gradient_norm(sae.parameters()))
        optimizer.zero_grad()
        if use_wandb and (step + 1) % wandb_log_frequency == 0:
            _log_losses(output, len(rows), step)
    if normalizes_decoder:
        sae.set_decoder_norm_to_unit_norm()
    return sae


def _log_losses(output: TrainStepOutput, n_rows: int, step: int) -> None:
    import wandb

    losses = {f"losses/{name}": value.item() for name, value in output.losses.items()}
    l0 = int(count_active(reported_features(output))) / n_rows
    wandb.log({**losses, "losses/overall_loss": output.loss.item(), "metrics/l0": l0}, step=step)


def _log_densities(statistics: FiringStatistics, threshold: float, step: int) -> None:
    import wandb

    below = int((statistics.densities < threshold).sum())
    dead = int((statistics.densities == 0).sum())
    wandb.log(
        {
            "sparsity/below_dead_feature_threshold": below,
            "sparsity/dead_features": dead,
            "sparsity/mean_density": float(statistics.densities.mean()),
        },
        step=step,
    )
