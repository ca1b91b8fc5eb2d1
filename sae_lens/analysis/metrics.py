"""The figures by which an SAE is judged, as streaming accumulators.

Every accumulator is fed batch after batch and keeps sums in float64, so that a figure over a whole
evaluation does not depend on how the tokens were cut into batches (beyond rounding). The two
exceptions are figures whose published definition names the batch: `mse` and
`explained_variance_legacy`; each has a batch-independent companion (`mse_per_token`,
`explained_variance`).

Notation: x a target activation, x̂ its reconstruction, f the feature activations.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

NAN = float("nan")

# Below this norm the ratio ‖x̂‖/‖x‖ is taken with denominator 1: a zero vector has no shrinkage.
SMALLEST_NORM_FOR_RATIO = 1e-4

# Elements of one block of a cosine similarity matrix (float32: 128 MiB).
SIMILARITY_BLOCK_ELEMENTS = 2**25

# Elements of one block of logits (float64: 128 MiB); a few such blocks are alive at a time.
LOGITS_BLOCK_ELEMENTS = 2**24


def as_float64(x: Tensor) -> Tensor:
    """`x` in float64, on the CPU where its own device has no such type."""
    if x.device.type == "mps":
        x = x.cpu()
    return x.double()


class MeanAccumulator:
    """The mean of all values ever given; NaN when there were none."""

    def __init__(self) -> None:
        self.total = 0.0
        self.count = 0

    def update(self, values: Tensor) -> None:
        """Add every element of `values` (any shape)."""
        self.total += as_float64(values).sum().item()
        self.count += values.numel()

    @property
    def mean(self) -> float:
        """The mean so far."""
        return self.total / self.count if self.count else NAN


class VarianceAccumulator:
    """Σ‖x − mean x‖² over all rows ever given, by merging batches.

    Merging means and squared deviations (Chan, Golub and LeVeque, 1979) instead of subtracting two
    large sums keeps the result right when the mean is large beside the deviations, as it is in
    residual streams.
    """

    def __init__(self) -> None:
        self.count = 0
        self.mean: Tensor | None = None
        self.sum_of_squares = 0.0

    def update(self, x: Float[Tensor, "tokens d"]) -> None:
        """Add the rows of `x`."""
        n = x.shape[0]
        if n == 0:
            return
        x = as_float64(x)
        mean = x.mean(dim=0)
        self.sum_of_squares += (x - mean).square().sum().item()
        if self.mean is None:
            self.mean, self.count = mean, n
            return
        delta = mean - self.mean
        total = self.count + n
        self.sum_of_squares += delta.square().sum().item() * self.count * n / total
        self.mean = self.mean + delta * (n / total)
        self.count = total


class ReconstructionAccumulator:
    """Compares reconstructions with their targets: quality and shrinkage."""

    def __init__(self) -> None:
        self.n_tokens = 0
        self.norm_in = MeanAccumulator()
        self.norm_out = MeanAccumulator()
        self.norm_ratio = MeanAccumulator()
        self.cosine = MeanAccumulator()
        self.squared_error = MeanAccumulator()
        self.squared_error_over_batch = MeanAccumulator()
        self.explained_legacy = MeanAccumulator()
        self.squared_norm_out = 0.0
        self.inner_product = 0.0
        self.variance = VarianceAccumulator()

    def update(
        self, target: Float[Tensor, "tokens d"], reconstruction: Float[Tensor, "tokens d"]
    ) -> None:
        """Add one batch; both tensors hold the kept tokens only and live in the same space.

        Raises:
            ValueError: when the two shapes differ.
        """
        if target.shape != reconstruction.shape:
            raise ValueError(
                f"The reconstruction has shape {tuple(reconstruction.shape)}, its target "
                f"{tuple(target.shape)}; compare activations of one hook with each other."
            )
        n = target.shape[0]
        if n == 0:
            return
        x, y = as_float64(target), as_float64(reconstruction)
        norm_in, norm_out = x.norm(dim=-1), y.norm(dim=-1)
        self.norm_in.update(norm_in)
        self.norm_out.update(norm_out)
        safe_norm = torch.where(
            norm_in < SMALLEST_NORM_FOR_RATIO, torch.ones_like(norm_in), norm_in
        )
        self.norm_ratio.update(norm_out / safe_norm)
        inner = (x * y).sum(dim=-1)
        self.cosine.update(inner / (norm_in * norm_out).clamp(min=1e-8))
        self.squared_norm_out += norm_out.square().sum().item()
        self.inner_product += inner.sum().item()

        error = (x - y).square().sum(dim=-1)
        self.squared_error.update(error)
        self.squared_error_over_batch.update(error / n)
        deviation = (x - x.mean(dim=0)).square().sum(dim=-1)
        # A token that equals the mean has nothing to explain; it would turn the mean into −inf.
        varies = deviation > 0
        self.explained_legacy.update(1 - error[varies] / deviation[varies])
        self.variance.update(x)
        self.n_tokens += n

    def shrinkage(self) -> dict[str, float]:
        """`l2_norm_in`, `l2_norm_out`, `l2_ratio`, `relative_reconstruction_bias`.

        The bias is γ = Σ‖x̂‖² / Σ x·x̂ over all tokens (Rajamanoharan et al. 2024, "Improving
        Dictionary Learning with Gated Sparse Autoencoders"): 1 for an unbiased reconstruction,
        below 1 when it is shrunk.
        """
        bias = self.squared_norm_out / self.inner_product if self.inner_product else NAN
        return {
            "l2_norm_in": self.norm_in.mean,
            "l2_norm_out": self.norm_out.mean,
            "l2_ratio": self.norm_ratio.mean,
            "relative_reconstruction_bias": bias,
        }

    def quality(self) -> dict[str, float]:
        """`explained_variance`, `explained_variance_legacy`, `mse`, `mse_per_token`, `cossim`.

        `explained_variance` is 1 − Σ‖x − x̂‖² / Σ‖x − mean x‖² over everything (NaN when nothing
        varies); the legacy form averages the ratio over tokens, against the mean of each batch.
        `mse` divides each squared error by the number of kept tokens in its batch.
        """
        total = self.variance.sum_of_squares
        explained = 1 - self.squared_error.total / total if total > 0 else NAN
        return {
            "explained_variance": explained,
            "explained_variance_legacy": self.explained_legacy.mean,
            "mse": self.squared_error_over_batch.mean,
            "mse_per_token": self.squared_error.mean,
            "cossim": self.cosine.mean,
        }


class SparsityAccumulator:
    """How many features fire on a token, and how strongly."""

    def __init__(self) -> None:
        self.n_tokens = 0
        self.n_firings = 0
        self.total_activation = 0.0

    def update(self, feature_acts: Float[Tensor, "tokens d_sae"]) -> None:
        """Add one batch of kept tokens. Signed features count by their absolute value."""
        self.n_tokens += feature_acts.shape[0]
        self.n_firings += int(torch.count_nonzero(feature_acts).item())
        magnitude = feature_acts.abs()
        # Row sums in float32 and their total in float64: no float64 copy of a wide matrix.
        self.total_activation += as_float64(magnitude.float().sum(dim=-1)).sum().item()

    def result(self) -> dict[str, float]:
        """`l0` and `l1`, each a mean over tokens."""
        if self.n_tokens == 0:
            return {"l0": NAN, "l1": NAN}
        return {
            "l0": self.n_firings / self.n_tokens,
            "l1": self.total_activation / self.n_tokens,
        }


class FiringAccumulator:
    """On how many tokens, and in how many prompts, each feature fires."""

    def __init__(self) -> None:
        self.n_tokens = 0
        self.firings: Tensor | None = None
        self.prompts: Tensor | None = None

    def update(
        self,
        feature_acts: Float[Tensor, "batch pos d_sae"],
        kept: Bool[Tensor, "batch pos"] | None = None,
    ) -> None:
        """Add whole prompts; positions where `kept` is False do not count."""
        fired = feature_acts != 0
        if kept is None:
            self.n_tokens += fired.shape[0] * fired.shape[1]
        else:
            fired = fired & kept.to(fired.device)[..., None]
            self.n_tokens += int(kept.sum().item())
        per_prompt = fired.sum(dim=1)
        firings = per_prompt.sum(dim=0).cpu()
        prompts = (per_prompt > 0).sum(dim=0).cpu()
        self.firings = firings if self.firings is None else self.firings + firings
        self.prompts = prompts if self.prompts is None else self.prompts + prompts

    def density(self) -> Float[Tensor, " d_sae"]:
        """Firings per kept token, float64 on the CPU.

        Raises:
            ValueError: when no token was given.
        """
        if self.firings is None or self.n_tokens == 0:
            raise ValueError(
                "There is no feature density over zero tokens; give at least one token that is "
                "not ignored."
            )
        return self.firings.double() / self.n_tokens

    def consistency(self) -> Float[Tensor, " d_sae"]:
        """Firings per prompt in which the feature fired at all; NaN for one that never did."""
        if self.firings is None or self.prompts is None:
            raise ValueError("There is no firing statistic before the first batch.")
        return self.firings.double() / self.prompts.double()


def firing_fractions(density: Float[Tensor, " d_sae"]) -> dict[str, float]:
    """Fractions of features that fire at all, on more than 1 % and on more than 10 % of tokens.

    The `normalized_` forms weigh each feature by its share of all activations: which part of what
    fires comes from features above the limit (the form the benchmark suites report). NaN when
    nothing fires.
    """
    density = as_float64(density)
    total = density.sum().item()
    result = {"frac_alive": (density > 0).double().mean().item()}
    for percent in (1, 10):
        above = density > percent / 100
        result[f"freq_over_{percent}_percent"] = above.double().mean().item()
        share = density[above].sum().item() / total if total > 0 else NAN
        result[f"normalized_freq_over_{percent}_percent"] = share
    return result


@torch.no_grad()
def max_cosine_similarity(
    directions: Float[Tensor, "n d"], block_elements: int = SIMILARITY_BLOCK_ELEMENTS
) -> Float[Tensor, " n"]:
    """For each row the largest cosine similarity with any *other* row, on the CPU.

    Works block by block, so the n × n matrix never exists (65k rows would need 16 GiB). A zero row
    has similarity 0 with everything; a single row has no other and gives NaN.
    """
    n = directions.shape[0]
    if n < 2:
        return torch.full((n,), NAN)
    work = directions if directions.dtype == torch.float64 else directions.float()
    unit = work / work.norm(dim=-1, keepdim=True).clamp(min=1e-30)
    rows = max(1, block_elements // n)
    result = torch.empty(n, dtype=unit.dtype)
    for start in range(0, n, rows):
        stop = min(start + rows, n)
        similarity = unit[start:stop] @ unit.T
        own = torch.arange(start, stop, device=unit.device)
        similarity[own - start, own] = -torch.inf
        result[start:stop] = similarity.max(dim=-1).values.cpu()
    return result


def encoder_directions(sae: Any) -> Tensor | None:
    """The encoder as [d_in, d_sae]; None for an SAE that has no such matrix."""
    own = getattr(sae, "encoder_columns", None)
    return getattr(sae, "W_enc", None) if own is None else own()


def decoder_directions(sae: Any) -> Tensor:
    """The decoder as [d_sae, d_out]."""
    own = getattr(sae, "decoder_rows", None)
    return sae.W_dec if own is None else own()


def encoder_bias(sae: Any) -> Tensor | None:
    """The bias that decides whether a feature fires: `b_enc`, or `b_gate` of a gated SAE."""
    for name in ("b_enc", "b_gate"):
        bias = getattr(sae, name, None)
        if bias is not None:
            return bias
    return None


@torch.no_grad()
def featurewise_weight_metrics(sae: Any) -> dict[str, list[float]]:
    """`encoder_bias`, `encoder_norm` and `encoder_decoder_cosine_sim`, lists of length d_sae.

    The norm is that of a column of `W_enc`, the cosine that of the column with the matching row of
    `W_dec`. Without an encoder bias the list holds zeros; without `W_enc` (matching pursuit) the
    encoder is the transposed decoder. The cosine is left out where input and output have different
    widths (a transcoder).
    """
    w_dec = decoder_directions(sae).detach().float()
    w_enc = encoder_directions(sae)
    w_enc = w_dec.T if w_enc is None else w_enc.detach().float()
    bias = encoder_bias(sae)
    bias = torch.zeros(w_dec.shape[0]) if bias is None else bias.detach().float()
    result = {
        "encoder_bias": bias.cpu().tolist(),
        "encoder_norm": w_enc.norm(dim=0).cpu().tolist(),
    }
    if w_enc.shape[0] == w_dec.shape[1]:
        cosine = torch.nn.functional.cosine_similarity(w_enc.T, w_dec, dim=-1)
        result["encoder_decoder_cosine_sim"] = cosine.cpu().tolist()
    return result


@torch.no_grad()
def direction_similarity(sae: Any) -> dict[str, Tensor]:
    """`max_decoder_cosine_sim` and (with an encoder) `max_encoder_cosine_sim`, each [d_sae]."""
    result = {"max_decoder_cosine_sim": max_cosine_similarity(decoder_directions(sae).detach())}
    w_enc = encoder_directions(sae)
    if w_enc is not None:
        result["max_encoder_cosine_sim"] = max_cosine_similarity(w_enc.detach().T)
    return result


def position_blocks(
    n_positions: int, vocabulary: int, block_elements: int | None = None
) -> Iterator[slice]:
    """Cut positions so that one block of logits holds at most `block_elements` numbers."""
    limit = LOGITS_BLOCK_ELEMENTS if block_elements is None else block_elements
    step = max(1, limit // max(1, vocabulary))
    for start in range(0, n_positions, step):
        yield slice(start, min(start + step, n_positions))


def _at_least_float32(logits: Tensor) -> Tensor:
    return logits if logits.dtype == torch.float64 else logits.float()


def kl_divergence(
    logits: Float[Tensor, "positions vocabulary"],
    changed_logits: Float[Tensor, "positions vocabulary"],
) -> Float[Tensor, " positions"]:
    """Σ_v p(v) (ln p(v) − ln q(v)), p from `logits`, q from `changed_logits`.

    Log-softmax keeps a token of vanishing probability from giving ln 0; where p is exactly 0 (a
    logit of −inf) the term is 0, its limit.
    """
    # In float64: a divergence of 1e-6 is a sum of terms of both signs that are far larger.
    log_p = as_float64(logits).log_softmax(dim=-1)
    log_q = as_float64(changed_logits).log_softmax(dim=-1)
    p = log_p.exp()
    terms = torch.where(p > 0, p * (log_p - log_q), torch.zeros_like(p))
    return terms.sum(dim=-1).to(logits.device, dtype=_at_least_float32(logits[:0]).dtype)


def next_token_loss(
    logits: Float[Tensor, "positions vocabulary"], next_tokens: Int[Tensor, " positions"]
) -> Float[Tensor, " positions"]:
    """Cross-entropy of each position's prediction with the token that follows, in nats."""
    return torch.nn.functional.cross_entropy(
        _at_least_float32(logits), next_tokens.long(), reduction="none"
    )


def recovered_score(plain: float, with_sae: float, with_ablation: float) -> float:
    """How much of the damage done by zeroing the hook the SAE avoids: 1 all, 0 none.

    (ablation − sae) / (ablation − plain); NaN when zeroing does no damage.
    """
    damage = with_ablation - plain
    return (with_ablation - with_sae) / damage if damage else NAN
