"""`Initializer`: first weights, by rule or by trying out on real activations."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain, islice
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from sae_lens.lm_saes.adapter import SAEAdapter, as_adapter
from sae_lens.lm_saes.config import InitializerConfig
from sae_lens.lm_saes.sae_config import SAEConfig
from sae_lens.saes import TrainingSAE, TrainingSAEConfig
from sae_lens.training.geometric_median import compute_geometric_median

_BATCHES_FOR_NORM = 8
_LOG_THRESHOLD = math.log(0.001)

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

    @torch.no_grad()
    def initialize_parameters(self, sae: TrainingSAE) -> TrainingSAE:
        """Uniform weights, zero biases, thresholds, then the transpose rule. Returns `sae`."""
        cfg = self.cfg
        sae.W_enc.uniform_(-cfg.encoder_uniform_bound, cfg.encoder_uniform_bound)
        sae.W_dec.uniform_(-cfg.decoder_uniform_bound, cfg.decoder_uniform_bound)
        sae.b_enc.zero_()
        sae.b_dec.zero_()
        value = cfg.init_log_jumprelu_threshold_value
        value = _LOG_THRESHOLD if value is None else value
        for name, parameter in sae.named_parameters():
            if name == "log_threshold":
                parameter.fill_(value)
            elif name == "threshold":
                parameter.fill_(math.exp(value))
        self._apply_transpose(sae)
        return sae

    @torch.no_grad()
    def initialization_search(
        self, sae: TrainingSAE, activation_batch: Batch, wandb_logger: Any = None
    ) -> TrainingSAE:
        """Decoder bias, encoder bias and decoder norm from a batch of activations. Returns `sae`.

        The norm is the one of 50 between 0.1 and 5, then of 20 around the best, with which the
        batch is reconstructed best.
        """
        adapter = as_adapter(sae)
        batch = adapter.normalize_activations(activation_batch)
        if self.cfg.bias_init_method == "geometric_median":
            label = adapter.token_batch(batch).label
            sae.b_dec.copy_(compute_geometric_median(label.float()).median)
        self._center_pre_activations(adapter, batch)
        if self.cfg.grid_search_init_norm:
            coarse = torch.linspace(0.1, 5.0, 50).tolist()
            best = self._best_norm(adapter, batch, coarse)
            fine = torch.linspace(best - 0.09, best + 0.1, 20).tolist()
            best = self._best_norm(adapter, batch, fine)
            adapter.set_decoder_norm(best)
            if wandb_logger is not None:
                wandb_logger.log({"best_norm_fine_grained": best})
        self._apply_transpose(sae)
        self._center_pre_activations(adapter, batch)
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
            self._decoder_from_mlp(adapter, model)
        if self.cfg.initialize_W_D_with_active_subspace:
            self._decoder_into_active_subspace(adapter, first)
        return self.initialization_search(sae, first, wandb_logger)

    # -- rules ------------------------------------------------------------------------------------

    def _apply_transpose(self, sae: TrainingSAE) -> None:
        if self.cfg.init_encoder_with_decoder_transpose:
            factor = self.cfg.init_encoder_with_decoder_transpose_factor
            sae.W_enc.copy_(factor * sae.W_dec.T)

    def _center_pre_activations(self, adapter: SAEAdapter, batch: Batch) -> None:
        """Encoder bias minus the mean pre-activation; doing so twice is doing so once."""
        if not self.cfg.init_encoder_bias_with_mean_hidden_pre:
            return
        sae = adapter.sae
        x = adapter.token_batch(batch).x
        hidden = sae.process_sae_in(x) @ sae.W_enc + sae.b_enc
        sae.b_enc.sub_(hidden.mean(dim=0))

    def _best_norm(self, adapter: SAEAdapter, batch: Batch, norms: list[float]) -> float:
        was_training = adapter.sae.training
        adapter.sae.eval()
        losses = []
        for norm in norms:
            adapter.set_decoder_norm(norm)
            self._apply_transpose(adapter.sae)
            self._center_pre_activations(adapter, batch)
            losses.append(adapter.compute_loss(batch).l_rec.item())
        adapter.sae.train(was_training)
        return norms[losses.index(min(losses))]

    @torch.no_grad()
    def _decoder_into_active_subspace(self, adapter: SAEAdapter, batch: Batch) -> None:
        """`W_dec[:, :k] @ U[:, :k]^T` with U the principal directions of the centred labels."""
        label = adapter.token_batch(adapter.normalize_activations(batch)).label.float()
        d_out, k = label.shape[1], self.cfg.d_active_subspace
        assert k is not None
        if k > min(d_out, len(label)):
            raise ValueError(
                f"d_active_subspace is {k}; the batch spans at most {min(d_out, len(label))} "
                "dimensions."
            )
        U = torch.linalg.svd((label - label.mean(dim=0)).T, full_matrices=False)[0]
        W_dec = adapter.sae.W_dec
        W_dec.copy_(W_dec[:, :k] @ U[:, :k].T.to(W_dec.dtype))

    @torch.no_grad()
    def _decoder_from_mlp(self, adapter: SAEAdapter, model: Any) -> None:
        """Decoder rows from the MLP's output weights, over and over when there are too few."""
        if adapter.hook_point_in == adapter.hook_point_out:
            raise ValueError(
                "initialize_tc_with_mlp is for transcoders; this SAE reconstructs its own input."
            )
        if model is None:
            raise ValueError("initialize_tc_with_mlp needs the model.")
        W_out = _mlp_output_weights(model, self.cfg.model_layer or 0)
        rows = torch.arange(adapter.sae.cfg.d_sae) % len(W_out)
        W_dec = adapter.sae.W_dec
        W_dec.copy_(W_out[rows.to(W_out.device)].to(W_dec))


def _mlp_output_weights(model: Any, layer: int) -> Float[Tensor, "d_mlp d_model"]:
    blocks = getattr(model, "blocks", None)
    if blocks is None or not 0 <= layer < len(blocks) or not hasattr(blocks[layer].mlp, "W_out"):
        raise ValueError(
            f"The model has no blocks[{layer}].mlp.W_out; initialize_tc_with_mlp works with "
            "TransformerLens models."
        )
    return blocks[layer].mlp.W_out.detach()


def _mean_norm(adapter: SAEAdapter, batches: Iterator[Batch]) -> float:
    norms = [adapter.token_batch(batch).x.float().norm(dim=-1) for batch in batches]
    return torch.cat(norms).mean().item()
