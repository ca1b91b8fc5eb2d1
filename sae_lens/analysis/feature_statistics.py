"""Tables of per-feature numbers: how features project onto the encoder, the biases and the logits.

Skewed and heavy-tailed projections onto the unembedding mark features that promote few tokens
strongly (Bloom, "Understanding SAE features with the logit lens", 2024).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from sae_lens.analysis.metrics import encoder_bias, encoder_directions
from sae_lens.hook_names import layer_of

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

# log10 of the firing density below which a feature counts as dead.
DEAD_LOG_SPARSITY = -9


@torch.no_grad()
def get_feature_property_df(sae: Any, feature_sparsity: Float[Tensor, " d_sae"]) -> pd.DataFrame:
    """One row per feature, from the weights alone.

    Args:
        sae: any SAE; a gated one contributes `b_gate` as its `b_enc`.
        feature_sparsity: log10 firing densities, as saved in `sparsity.safetensors`.

    Returns:
        Columns `log_feature_sparsity`, `d_e_projection` (row of `W_dec` times the matching column
        of `W_enc` at unit norm), `b_enc`, `b_dec_projection` (`W_dec @ b_dec`), `feature`,
        `dead_neuron` (log sparsity below -9).

    Raises:
        ValueError: when the densities are not one per feature.
    """
    import pandas as pd

    w_dec = sae.W_dec.detach().float()
    d_sae = w_dec.shape[0]
    if tuple(feature_sparsity.shape) != (d_sae,):
        raise ValueError(
            f"feature_sparsity has shape {tuple(feature_sparsity.shape)}, the SAE has {d_sae} "
            "features; give one log10 density per feature."
        )
    w_enc = encoder_directions(sae)
    w_enc = w_dec.T if w_enc is None else w_enc.detach().float()
    unit_encoder = w_enc / w_enc.norm(dim=0, keepdim=True).clamp(min=1e-30)
    bias = encoder_bias(sae)
    bias = torch.zeros(d_sae) if bias is None else bias.detach().float()
    sparsity = feature_sparsity.detach().float().cpu()
    return pd.DataFrame(
        {
            "log_feature_sparsity": sparsity.numpy(),
            "d_e_projection": (w_dec * unit_encoder.T).sum(dim=-1).cpu().numpy(),
            "b_enc": bias.cpu().numpy(),
            "b_dec_projection": (w_dec @ sae.b_dec.detach().float()).cpu().numpy(),
            "feature": range(d_sae),
            "dead_neuron": (sparsity < DEAD_LOG_SPARSITY).numpy(),
        }
    )


@torch.no_grad()
def get_stats_df(projection: Float[Tensor, "n v"]) -> pd.DataFrame:
    """Moments of each row: columns `feature`, `mean`, `std`, `skewness`, `kurtosis`.

    Population moments; kurtosis is not in excess form (3 for a normal distribution). A constant
    row has no skewness or kurtosis (NaN).
    """
    import pandas as pd

    x = projection.detach().float()
    mean = x.mean(dim=-1, keepdim=True)
    centred = x - mean
    std = centred.square().mean(dim=-1, keepdim=True).sqrt()
    standardised = centred / std
    return pd.DataFrame(
        {
            "feature": range(x.shape[0]),
            "mean": mean[:, 0].cpu().numpy(),
            "std": std[:, 0].cpu().numpy(),
            "skewness": standardised.pow(3).mean(dim=-1).cpu().numpy(),
            "kurtosis": standardised.pow(4).mean(dim=-1).cpu().numpy(),
        }
    )


@torch.no_grad()
def get_W_U_W_dec_stats_df(
    W_dec: Float[Tensor, "d_sae d_model"], model: Any, cosine_sim: bool = False
) -> tuple[pd.DataFrame, Float[Tensor, "d_sae d_vocab"]]:
    """The moments of every feature's effect on the logits, and the effects themselves.

    Args:
        W_dec: the decoder.
        model: supplies the unembedding `W_U` [d_model, d_vocab].
        cosine_sim: scale the columns of `W_U` to unit norm first.
    """
    w_u = model.W_U.detach()
    if cosine_sim:
        w_u = w_u / w_u.norm(dim=0, keepdim=True)
    product = W_dec.detach().to(device=w_u.device, dtype=w_u.dtype) @ w_u
    return get_stats_df(product), product


def get_all_stats_dfs(
    gpt2_small_sparse_autoencoders: Mapping[str, Any],
    gpt2_small_sae_sparsities: Mapping[str, Tensor],
    model: Any,
    cosine_sim: bool = False,
) -> pd.DataFrame:
    """Logit-effect moments of several SAEs in one table.

    Args:
        gpt2_small_sparse_autoencoders: hook name -> SAE (of any model; the name is historical).
        gpt2_small_sae_sparsities: hook name -> log10 firing densities.
        model: supplies `W_U`.
        cosine_sim: see `get_W_U_W_dec_stats_df`.

    Returns:
        The columns of `get_stats_df` and `log_feature_sparsity`, `layer`: the number in the hook
        name, plus one for a hook after its block ("post").

    Raises:
        ValueError: when an SAE has no densities.
    """
    import pandas as pd

    missing = sorted(set(gpt2_small_sparse_autoencoders) - set(gpt2_small_sae_sparsities))
    if missing:
        raise ValueError(f"No firing densities were given for {missing}; give them for every SAE.")
    tables = []
    for hook_name, sae in gpt2_small_sparse_autoencoders.items():
        table, _ = get_W_U_W_dec_stats_df(sae.W_dec, model, cosine_sim)
        sparsity = gpt2_small_sae_sparsities[hook_name]
        table["log_feature_sparsity"] = sparsity.detach().float().cpu().numpy()
        table["layer"] = layer_of(hook_name) + ("post" in hook_name)
        tables.append(table)
    return pd.concat(tables)


def plot_feature_properties(properties: pd.DataFrame) -> go.Figure:
    """Encoder bias against log firing density, one point per feature, dead ones apart.

    Args:
        properties: the table of `get_feature_property_df`.
    """
    import plotly.express as px

    return px.scatter(
        properties,
        x="log_feature_sparsity",
        y="b_enc",
        color="dead_neuron",
        hover_data=["feature", "d_e_projection", "b_dec_projection"],
        marginal_x="histogram",
        marginal_y="histogram",
        opacity=0.5,
        labels={
            "log_feature_sparsity": "log10 firing density",
            "b_enc": "encoder bias",
            "dead_neuron": "dead",
        },
        title="Encoder bias and firing density of features",
    )


def plot_stats(stats: pd.DataFrame) -> go.Figure:
    """Skewness against kurtosis, one point per feature; by layer when the table has layers.

    Args:
        stats: the table of `get_stats_df`, `get_W_U_W_dec_stats_df` or `get_all_stats_dfs`.
    """
    import plotly.express as px

    return px.scatter(
        stats,
        x="skewness",
        y="kurtosis",
        color="layer" if "layer" in stats.columns else "std",
        hover_data=["feature", "mean", "std"],
        marginal_x="histogram",
        marginal_y="histogram",
        opacity=0.5,
        title="Logit effects of features: skewness and kurtosis",
    )
