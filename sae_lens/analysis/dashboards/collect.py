"""One pass over tokens that gathers all that a dashboard shows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from sae_lens.activations.model_adapters import model_device
from sae_lens.analysis.dashboards.data import (
    FeatureDashboardData,
    FeatureRecord,
    Histogram,
    Passage,
)
from sae_lens.analysis.dashboards.directions import logit_effects, neighbors
from sae_lens.analysis.dashboards.running import (
    Batch,
    RunningHistogram,
    SampledPassages,
    TopPassages,
)
from sae_lens.analysis.interventions import (
    Sites,
    evaluation_mode,
    read_activations,
    sites_of,
)
from sae_lens.errors import InvalidArgumentError

# A batch has at most this many feature activations, whatever the width of the SAE.
_MAX_ACTIVATIONS_PER_BATCH = 2**26


@dataclass(frozen=True)
class DashboardSettings:
    """How much a dashboard keeps.

    Attributes:
        n_tokens: how many tokens of the data are read.
        context_size: length of the contexts; None takes that of the SAE's training.
        batch_size: contexts per forward pass of the language model, at most.
        top_passages: strongest passages per feature.
        quantile_groups: groups into which the sampled passages are divided by activation.
        passages_per_group: passages in each of them.
        tokens_before: shown before the token that fires.
        tokens_after: shown after it.
        logit_tokens: tokens listed as raised, and as lowered.
        n_neighbors: similar features listed.
        seed: of the sampling.
    """

    n_tokens: int = 200_000
    context_size: int | None = None
    batch_size: int = 16
    top_passages: int = 20
    quantile_groups: int = 5
    passages_per_group: int = 4
    tokens_before: int = 24
    tokens_after: int = 12
    logit_tokens: int = 10
    n_neighbors: int = 6
    seed: int = 0


@torch.no_grad()
def collect_feature_data(
    sae: Any,
    model: Any,
    data: Tensor | str | Iterable[Any],
    features: Sequence[int] | int | None = None,
    *,
    settings: DashboardSettings | None = None,
    ignore_token_ids: Iterable[int] | None = None,
    title: str | None = None,
    show_progress: bool = True,
) -> FeatureDashboardData:
    """Watch features on tokens: passages, activations, logits, neighbours.

    Args:
        sae: An SAE, or the folder of one.
        model: A `HookedTransformer`, or a Hugging Face model as `load_model` wraps it.
        data: Token ids [row, pos]; or a dataset (or its name, or any iterable) whose rows are
            texts, dicts with a column "text", or dicts with a column "tokens" or "input_ids".
        features: Indices; a number for that many of the first; None for all.
        settings: How much is kept of each feature.
        ignore_token_ids: Tokens that are neither counted nor shaded. None leaves out the special
            tokens of the model's tokenizer, on which activations are often out of proportion.
        title: Heading of the page.
        show_progress: Whether a progress bar is drawn.

    Raises:
        InvalidArgumentError: A feature that the SAE does not have; a hook whose width is not the
            SAE's; data without a single token to count.
        ValueError: A hook that the model does not have.
    """
    settings = settings or DashboardSettings()
    sae = _loaded(sae)
    sites = sites_of(sae, model)
    sites = Sites(sites.input, sites.input, sites.stop_at_layer)  # what is written is not read
    chosen = _feature_indices(features, sae.cfg.d_sae)
    ignored = torch.tensor(sorted(_ignored_ids(model, ignore_token_ids)), dtype=torch.int64)
    statistics = _Statistics(sae, len(chosen), settings)
    rows = _token_rows(data, sae, model, settings)
    first_row, n_read = 0, 0
    with tqdm(
        total=settings.n_tokens, desc="features", unit="token", disable=not show_progress
    ) as bar:
        for tokens in _batches(rows, settings, sae.cfg.d_sae):
            acts = _feature_activations(sae, model, tokens, sites)  # [batch, pos, d_sae]
            counted = _counted_positions(tokens, ignored, sae.cfg.seqpos_slice)
            acts = acts * counted[..., None].to(acts.device)
            statistics.n_tokens += int(counted.sum())
            statistics.n_active += int((acts > 0).sum())
            own = acts if features is None else acts[..., chosen.to(acts.device)]
            statistics.update(Batch(tokens, own.float().cpu(), first_row))
            first_row += len(tokens)
            n_read += tokens.numel()
            bar.update(tokens.numel())
    if statistics.n_tokens == 0:
        raise InvalidArgumentError(
            f"There is no token to look at: {n_read} tokens were read, and all of them were among "
            "ignore_token_ids or outside of seqpos_slice. Give data with at least one whole "
            "context of ordinary tokens."
        )
    return statistics.finish(sae, model, chosen, title)


class _Statistics:
    """All running statistics of the chosen features."""

    def __init__(self, sae: Any, n_features: int, settings: DashboardSettings):
        self.settings = settings
        self.n_tokens, self.n_active = 0, 0
        self.firings = torch.zeros(n_features, dtype=torch.int64)
        self.sums = torch.zeros(n_features, dtype=torch.float64)
        self.maxima = torch.zeros(n_features)
        around = (settings.tokens_before, settings.tokens_after)
        n_samples = settings.quantile_groups * settings.passages_per_group
        self.top = TopPassages(n_features, settings.top_passages, *around)
        self.sampled = SampledPassages(n_features, n_samples, *around, settings.seed)
        self.histogram = RunningHistogram(n_features)

    def update(self, batch: Batch) -> None:
        self.firings += (batch.acts > 0).sum((0, 1))
        self.sums += batch.acts.sum((0, 1), dtype=torch.float64)
        self.maxima = torch.maximum(self.maxima, batch.acts.amax((0, 1)))
        self.histogram.update(batch.acts)
        self.top.update(batch)
        self.sampled.update(batch)

    def finish(
        self, sae: Any, model: Any, chosen: Int[Tensor, " feature"], title: str | None
    ) -> FeatureDashboardData:
        raised, lowered = logit_effects(sae, model, chosen, self.settings.logit_tokens)
        similar = neighbors(sae, chosen, self.settings.n_neighbors)
        records: list[FeatureRecord] = []
        for i, index in enumerate(chosen.tolist()):
            firings = int(self.firings[i])
            samples = sorted(_passages(self.sampled, i), key=lambda p: -p.activation)
            records.append(
                FeatureRecord(
                    index=index,
                    density=firings / self.n_tokens,
                    l0_share=firings / max(self.n_active, 1),
                    mean_activation=_short(float(self.sums[i]) / max(firings, 1)),
                    max_activation=_short(float(self.maxima[i])),
                    histogram=self._histogram(i),
                    top=_passages(self.top, i),
                    quantiles=_groups(samples, self.settings.quantile_groups),
                    raised=raised[i],
                    lowered=lowered[i],
                    neighbors=similar[i],
                )
            )
        return FeatureDashboardData(
            model_name=str(
                sae.cfg.model_name or getattr(getattr(model, "cfg", None), "model_name", "")
            ),
            hook_name=str(sae.cfg.hook_name),
            architecture=str(sae.cfg.architecture),
            d_in=sae.cfg.d_in,
            d_sae=sae.cfg.d_sae,
            n_tokens=self.n_tokens,
            l0=self.n_active / self.n_tokens,
            vocabulary=_vocabulary(records, model),
            features=records,
            title=title or f"{sae.cfg.architecture} features of {sae.cfg.hook_name}",
        )

    def _histogram(self, i: int) -> Histogram:
        """The bins up to the last one that is used."""
        counts = self.histogram.counts[i].tolist()
        used = max((n for n, count in enumerate(counts, start=1) if count), default=0)
        width = float(self.histogram.upper[i]) / len(counts)
        return Histogram(_short(width * used), counts[:used])


def _loaded(sae: Any) -> Any:
    if isinstance(sae, str | Path):
        from sae_lens.saes.base import SAE

        return SAE.load_from_disk(sae)
    return sae


def _feature_indices(features: Sequence[int] | int | None, d_sae: int) -> Int[Tensor, " feature"]:
    if features is None:
        return torch.arange(d_sae)
    indices = list(range(features)) if isinstance(features, int) else [int(f) for f in features]
    wrong = [index for index in indices if not 0 <= index < d_sae]
    if wrong or not indices:
        raise InvalidArgumentError(
            f"This SAE has features 0 to {d_sae - 1}, and at least one has to be asked for; "
            f"given were {wrong[:5] or 'none'}."
        )
    return torch.tensor(indices)


def _ignored_ids(model: Any, given: Iterable[int] | None) -> set[int]:
    if given is not None:
        return {int(token) for token in given}
    tokenizer = getattr(model, "tokenizer", None)
    return set(tokenizer.all_special_ids) if tokenizer is not None else set()


def _counted_positions(
    tokens: Int[Tensor, "batch pos"], ignored: Int[Tensor, " n"], seqpos_slice: Sequence[int | None]
) -> Bool[Tensor, "batch pos"]:
    counted = torch.zeros_like(tokens, dtype=torch.bool)
    counted[:, slice(*seqpos_slice)] = True
    return counted & ~torch.isin(tokens, ignored)


def _feature_activations(
    sae: Any, model: Any, tokens: Int[Tensor, "batch pos"], sites: Sites
) -> Float[Tensor, "batch pos d_sae"]:
    acts = read_activations(model, tokens.to(model_device(model)), sites, {}).input
    if acts.shape[-1] != sae.cfg.d_in:
        raise InvalidArgumentError(
            f"The hook {sites.input.hook_name} is {acts.shape[-1]} wide and the SAE expects "
            f"d_in={sae.cfg.d_in}. Give the model that the SAE was trained on."
        )
    with evaluation_mode(sae):
        features = sae.encode(acts.to(sae.device, sae.dtype))
    return features.to_dense() if features.is_sparse else features


def _token_rows(
    data: Tensor | str | Iterable[Any], sae: Any, model: Any, settings: DashboardSettings
) -> Iterator[Int[Tensor, " pos"]]:
    """Contexts of one length."""
    longest = getattr(getattr(model, "cfg", None), "n_ctx", 128)
    size = settings.context_size or sae.cfg.context_size or longest
    if isinstance(data, Tensor):
        yield from data[:, :size].long().cpu()
        return
    if isinstance(data, str):
        from sae_lens.activations.datasets_loading import load_text_dataset

        data = load_text_dataset(data)
    from sae_lens.activations.packing import concat_and_batch_sequences

    bos = getattr(model.tokenizer, "bos_token_id", None) if sae.cfg.prepend_bos else None
    yield from concat_and_batch_sequences(
        tokens_iterator=(_tokenized(row, model) for row in data),
        context_size=size,
        begin_batch_token_id=bos,
        begin_sequence_token_id=None,
        sequence_separator_token_id=bos,
    )


def _tokenized(row: Any, model: Any) -> Int[Tensor, " pos"]:
    if isinstance(row, str):
        row = {"text": row}
    for column in ("tokens", "input_ids"):
        if column in row:
            return torch.as_tensor(row[column])
    if "text" not in row:
        raise InvalidArgumentError(
            f"The data has the columns {sorted(row)}; dashboards read 'text', 'tokens' or "
            "'input_ids'. Rename the one that is meant."
        )
    return model.to_tokens(row["text"], prepend_bos=False, truncate=False)[0].cpu()


def _batches(
    rows: Iterator[Int[Tensor, " pos"]], settings: DashboardSettings, d_sae: int
) -> Iterator[Int[Tensor, "batch pos"]]:
    """Contexts stacked, as many as `n_tokens` asks for."""
    first = next(rows, None)
    if first is None:
        return
    per_row = max(len(first), 1)
    size = max(1, min(settings.batch_size, _MAX_ACTIVATIONS_PER_BATCH // (per_row * d_sae)))
    missing = max(1, -(-settings.n_tokens // per_row))
    batch = [first]
    while batch:
        batch += islice(rows, min(size, missing) - len(batch))
        yield torch.stack(batch)
        missing -= len(batch)
        batch = list(islice(rows, 1)) if missing > 0 else []


def _passages(source: TopPassages | SampledPassages, i: int) -> list[Passage]:
    kept = source.kept
    passages: list[Passage] = []
    for slot in kept.keys[i].isfinite().nonzero()[:, 0].tolist():
        present = kept.present[i, slot]
        passages.append(
            Passage(
                tokens=kept.tokens[i, slot][present].tolist(),
                activations=[_short(a) for a in kept.acts[i, slot][present].tolist()],
                peak=int(present[: kept.before].sum()),
                row=int(kept.rows[i, slot]),
                position=int(kept.positions[i, slot]),
            )
        )
    return passages


def _groups(samples: list[Passage], count: int) -> list[list[Passage]]:
    """Divided into `count` groups whose sizes differ by at most one; fewer when there are fewer."""
    count = min(count, len(samples))
    ends = [round(len(samples) * n / count) for n in range(count + 1)] if count else []
    return [samples[start:end] for start, end in pairwise(ends)]


def _vocabulary(records: list[FeatureRecord], model: Any) -> dict[int, str]:
    used: set[int] = set()
    for record in records:
        for passage in (*record.top, *(p for group in record.quantiles for p in group)):
            used.update(passage.tokens)
        used.update(effect.token for effect in (*record.raised, *record.lowered))
    ids = sorted(used)
    tokenizer = getattr(model, "tokenizer", None)
    if tokenizer is None:
        return {token: f"[{token}]" for token in ids}
    texts = tokenizer.batch_decode([[token] for token in ids], clean_up_tokenization_spaces=False)
    return dict(zip(ids, texts, strict=True))


def _short(value: float) -> float:
    """Four significant digits: activations are shown, not computed with."""
    return float(f"{value:.4g}")
