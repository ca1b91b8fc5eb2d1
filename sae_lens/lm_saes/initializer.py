"""`Initializer`: first weights, by rule or by trying out on real activations."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import chain, islice
from typing import Any

import torch
from torch import Tensor

from sae_lens.lm_saes.adapter import SAEAdapter, as_adapter
from sae_lens.lm_saes.config import InitializerConfig
from sae_lens.lm_saes.idle_settings import warn_of_idle_rules
from sae_lens.lm_saes.sae_config import SAEConfig
from sae_lens.saes import TrainingSAE, TrainingSAEConfig
from sae_lens.training.geometric_median import compute_geometric_median
from sae_lens.training.initialization import (
    InitialWeights,
    decoder_from_mlp,
    decoder_into_active_subspace,
    draw_weights,
    fit_weights,
)
from sae_lens.training.optim import parameters_by_group

_BATCHES_FOR_NORM = 8
_THRESHOLD = 0.001

Batch = Mapping[str, Tensor]


class Initializer:
    """Sets the first weights of an SAE as its config says.

    Args:
        cfg: the config.
    """

    def __init__(self, cfg: InitializerConfig) -> None:
        if cfg.initialize_lorsa_with_mhsa:
            raise NotImplementedError(
                "initialize_lorsa_with_mhsa is for low-rank sparse attention, which this library "
                "does not have."
            )
        self.cfg = cfg

    @property
    def rules(self) -> InitialWeights:
        """The config's rules under their names here; those that need a batch or a model apart."""
        cfg = self.cfg
        value = cfg.init_log_jumprelu_threshold_value
        transposes = cfg.init_encoder_with_decoder_transpose
        return InitialWeights(
            decoder_bound=cfg.decoder_uniform_bound,
            encoder_bound=None if transposes else cfg.encoder_uniform_bound,
            threshold=_THRESHOLD if value is None else math.exp(value),
            encoder_as_decoder_transpose=(
                cfg.init_encoder_with_decoder_transpose_factor if transposes else None
            ),
            search_decoder_norm=cfg.grid_search_init_norm,
            center_pre_activations=cfg.init_encoder_bias_with_mean_hidden_pre,
        )

    @torch.no_grad()
    def initialize_parameters(self, sae: TrainingSAE) -> TrainingSAE:
        """Uniform weights, zero biases, thresholds, then the transpose rule. Returns `sae`."""
        warn_of_idle_rules(self.cfg, as_adapter(sae))
        sae.b_enc.zero_()
        sae.b_dec.zero_()
        has_thresholds = bool(parameters_by_group(sae)["jumprelu"])
        draw_weights(sae, self.rules if has_thresholds else replace(self.rules, threshold=None))
        return sae

    @torch.no_grad()
    def initialization_search(
        self, sae: TrainingSAE, activation_batch: Batch, wandb_logger: Any = None
    ) -> TrainingSAE:
        """Decoder bias, encoder bias and decoder norm from a batch of activations. Returns `sae`.

        See `training/initialization.py` for what they are.
        """
        adapter = as_adapter(sae)
        tokens = adapter.token_batch(adapter.normalize_activations(activation_batch))
        if self.cfg.bias_init_method == "geometric_median":
            sae.b_dec.copy_(compute_geometric_median(tokens.label.float()).median)
        best = fit_weights(sae, self.rules, tokens.rows)
        if best is not None and wandb_logger is not None:
            wandb_logger.log({"best_norm_fine_grained": best})
        return sae

    def initialize_sae_from_config(
        self,
        cfg: SAEConfig | TrainingSAEConfig,
        activation_stream: Iterable[Batch] | None = None,
        activation_norm: Mapping[str, float] | None = None,
        device_mesh: Any = None,
        wandb_logger: Any = None,
        model: Any = None,
    ) -> TrainingSAE:
        """A new SAE with first weights.

        Args:
            cfg: what SAE: an `SAEConfig` of this package, or a training config of this library.
            activation_stream: batches; the first is searched on, the first eight give the norm.
            activation_norm: mean norm of the activations by hook point, instead of measuring it.
            device_mesh: must be None.
            wandb_logger: where the search is logged.
            model: the language model, for `initialize_tc_with_mlp`.

        Raises:
            ValueError: without a batch, or without what an option needs.
            NotImplementedError: with a device mesh.
        """
        if device_mesh is not None:
            raise NotImplementedError(
                "Device meshes are not supported yet; leave device_mesh at None to train on one "
                "device."
            )
        if activation_stream is None:
            raise ValueError("initialize_sae_from_config needs an activation_stream.")
        sae_cfg = cfg.to_training_config() if isinstance(cfg, SAEConfig) else cfg
        sae = self.initialize_parameters(TrainingSAE(sae_cfg))
        adapter = SAEAdapter(sae)
        stream = iter(activation_stream)
        first = next(stream, None)
        if first is None:
            raise ValueError("The activation_stream is empty; one batch at least is needed.")
        if adapter.needs_dataset_norm:
            if activation_norm is None:
                batches = islice(chain([first], stream), _BATCHES_FOR_NORM)
                activation_norm = {adapter.hook_point_in: _mean_norm(adapter, batches)}
            adapter.set_dataset_average_activation_norm(activation_norm)
        if self.cfg.initialize_tc_with_mlp:
            decoder_from_mlp(sae, model, self.cfg.model_layer or 0)
        if self.cfg.initialize_W_D_with_active_subspace:
            tokens = adapter.token_batch(adapter.normalize_activations(first))
            decoder_into_active_subspace(sae, tokens.rows, self.cfg.d_active_subspace or 0)
        return self.initialization_search(sae, first, wandb_logger)


def _mean_norm(adapter: SAEAdapter, batches: Iterator[Batch]) -> float:
    norms = [adapter.token_batch(batch).x.float().norm(dim=-1) for batch in batches]
    return torch.cat(norms).mean().item()
