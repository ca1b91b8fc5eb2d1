"""An SAE in the forward pass of its model, whether it reads one hook or several.

What evaluations ask: what the SAE reads and what it should give, and what becomes of the model's
predictions when its reconstruction takes the place of activations.

- An SAE or transcoder of one hook is in `interventions.py`.
- A cross-layer transcoder replaces the outputs of all its MLPs in one pass: each layer's features
  are computed from what that layer reads in the changed pass.
- A crosscoder reconstructs each hook from all of them, so the hooks are replaced one at a time, by
  the reconstruction from the unchanged pass, and the figures are means over the hooks. To replace
  all at once would have no meaning: a later hook would be computed from an earlier one's
  reconstruction, and replaced by one from activations that are not there any more.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sae_lens.activations.joint import read_sites
from sae_lens.activations.model_adapters import model_device, require_hook
from sae_lens.activations.model_group import models_of
from sae_lens.analysis.interventions import (
    ForwardHooks,
    Logits,
    ReadActivations,
    Scaling,
    Site,
    changed_predictions,
    compare_predictions,
    pick,
    put,
    read_activations,
    reconstruction_of,
    sites_of,
)
from sae_lens.analysis.metrics import ReconstructionAccumulator, SparsityAccumulator

# Between a metric's name and the hook whose it is.
AT = "@"


class Splicing(Protocol):
    """How an SAE is read and put into place."""

    def read(self, tokens: Int[Tensor, "batch pos"], kwargs: Mapping[str, Any]) -> ReadActivations:
        """What the SAE reads in a forward pass, and what it should give."""
        ...

    def changed_predictions(
        self,
        tokens: Int[Tensor, "batch pos"],
        kept: Bool[Tensor, "batch pos"],
        zeroed: Bool[Tensor, "batch pos"],
        scaling: Scaling,
        compute_kl: bool,
        compute_ce_loss: bool,
        kwargs: Mapping[str, Any],
    ) -> dict[str, Tensor]:
        """As `interventions.changed_predictions`; further names end in `@` and a hook."""
        ...

    def metrics_by_hook(self) -> MetricsByHook:
        """An accumulator of what is known of each hook."""
        ...


def splicing_of(sae: Any, model: Any) -> Splicing:
    """The splicing of an SAE into a model, or a `ModelGroup` for a crosscoder of several.

    Raises:
        ValueError: when the model has no such hook, or models are missing.
    """
    sae = sae[0] if isinstance(sae, tuple) else sae
    if not getattr(sae.cfg, "sites", None):
        return _OneHook(sae, model)
    return (_CrossLayer if hasattr(sae, "encode_hook") else _HookByHook)(sae, model)


class MetricsByHook:
    """Reconstruction of each hook apart, and sparsity where features belong to one.

    Args:
        labels: of the hooks whose activations are reconstructed; none for one alone.
        features: those of each hook, where they are not all hooks' features.
    """

    def __init__(self, labels: Sequence[str] = (), features: Sequence[slice] = ()) -> None:
        self._reconstruction = {label: ReconstructionAccumulator() for label in labels}
        self._sparsity = {label: SparsityAccumulator() for label in labels if features}
        self._features = features

    def update(
        self, target: Float[Tensor, "tokens all"], output: Float[Tensor, "tokens all"]
    ) -> None:
        """Add rows of all hooks."""
        if not self._reconstruction:
            return
        width = target.shape[-1] // len(self._reconstruction)
        pairs = zip(target.split(width, dim=-1), output.split(width, dim=-1), strict=True)
        for of_hook, (x, y) in zip(self._reconstruction.values(), pairs, strict=True):
            of_hook.update(x, y)

    def update_features(self, feature_acts: Float[Tensor, "tokens d_sae"]) -> None:
        """Add the features of tokens."""
        for of_hook, own in zip(self._sparsity.values(), self._features, strict=False):
            of_hook.update(feature_acts[..., own])

    def shrinkage(self) -> dict[str, float]:
        """`ReconstructionAccumulator.shrinkage` of each hook."""
        return _at_hooks({k: v.shrinkage() for k, v in self._reconstruction.items()})

    def quality(self) -> dict[str, float]:
        """`ReconstructionAccumulator.quality` of each hook."""
        return _at_hooks({k: v.quality() for k, v in self._reconstruction.items()})

    def sparsity(self) -> dict[str, float]:
        """`SparsityAccumulator.result` of each hook."""
        return _at_hooks({k: v.result() for k, v in self._sparsity.items()})


def _at_hooks(by_hook: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    return {
        f"{name}{AT}{label}": value
        for label, values in by_hook.items()
        for name, value in values.items()
    }


def grouped_by_hook(found: Mapping[str, float]) -> dict[str, dict[str, float]]:
    """Of numbers some of which belong to a hook: those, by hook."""
    groups: dict[str, dict[str, float]] = {}
    for full_name, value in found.items():
        name, at, label = full_name.partition(AT)
        if at:
            groups.setdefault(label, {})[name] = value
    return groups


class _OneHook:
    """An SAE or a transcoder."""

    def __init__(self, sae: Any, model: Any) -> None:
        self.sae, self.model = sae, model
        self.sites = sites_of(sae, model)

    def read(self, tokens: Tensor, kwargs: Mapping[str, Any]) -> ReadActivations:
        return read_activations(self.model, tokens, self.sites, kwargs)

    def changed_predictions(
        self,
        tokens: Tensor,
        kept: Tensor,
        zeroed: Tensor,
        scaling: Scaling,
        compute_kl: bool,
        compute_ce_loss: bool,
        kwargs: Mapping[str, Any],
    ) -> dict[str, Tensor]:
        return changed_predictions(
            self.sae, self.model, tokens, kept, zeroed, scaling, compute_kl, compute_ce_loss, kwargs
        )

    def metrics_by_hook(self) -> MetricsByHook:
        return MetricsByHook()


class _SeveralHooks:
    """What crosscoders and cross-layer transcoders have in common."""

    def __init__(self, sae: Any, model: Any) -> None:
        self.sae, self.model = sae, model
        self.models = models_of(model)
        self.sites = tuple(sae.cfg.sites)
        self.targets = tuple(getattr(sae.cfg, "target_sites", ())) or self.sites
        n_models = 1 + max(number for number, _ in self.sites)
        if len(self.models) != n_models:
            raise ValueError(
                f"This SAE reads {n_models} models, and {len(self.models)} are given; pass them "
                "as a ModelGroup, in the order of its model_names."
            )
        for number, name in (*self.sites, *self.targets):
            require_hook(self.models[number], name)

    @property
    def labels(self) -> list[str]:
        """Names of the hooks that are reconstructed, with their model's where there are several."""
        names = getattr(self.sae.cfg, "model_names", None) or []
        several = len(self.models) > 1
        return [
            f"{names[number] if names else number}:{hook}" if several else hook
            for number, hook in self.targets
        ]

    def read(self, tokens: Tensor, kwargs: Mapping[str, Any]) -> ReadActivations:
        """Rows of all hooks."""
        both = self.sites if self.targets == self.sites else (*self.sites, *self.targets)
        found = read_sites(self.model, tokens, both, dict(kwargs))
        read = torch.cat(found[: len(self.sites)], dim=-1)
        return ReadActivations(read, torch.cat(found[-len(self.targets) :], dim=-1))


class _Put:
    """A hook that puts something in the place of activations, at the kept positions."""

    def __init__(self, new: Tensor | None, kept: Tensor) -> None:
        self.new, self.kept = new, kept

    def __call__(self, activations: Tensor, hook: Any) -> Tensor:
        site = Site(hook.name, None)
        new = torch.zeros_like(pick(activations, site)) if self.new is None else self.new
        return put(activations, new, site, self.kept)


class _HookByHook(_SeveralHooks):
    """A crosscoder."""

    def changed_predictions(
        self,
        tokens: Tensor,
        kept: Tensor,
        zeroed: Tensor,
        scaling: Scaling,
        compute_kl: bool,
        compute_ce_loss: bool,
        kwargs: Mapping[str, Any],
    ) -> dict[str, Tensor]:
        """Means over the hooks, and each hook's own."""
        rows = self.read(tokens, kwargs).input
        width = rows.shape[-1] // len(self.sites)
        recons = reconstruction_of(self.sae, rows, scaling).split(width, dim=-1)
        here = [tokens.to(model_device(model)) for model in self.models]
        plain = [Logits(m, t, [], kwargs) for m, t in zip(self.models, here, strict=True)]
        by_hook: list[dict[str, Tensor]] = []
        for (number, name), new in zip(self.sites, recons, strict=True):
            model, ids = self.models[number], here[number]
            passes = {
                "without_sae": plain[number],
                "with_sae": Logits(model, ids, [(name, _Put(new, kept))], kwargs),
                "with_ablation": Logits(model, ids, [(name, _Put(None, zeroed))], kwargs),
            }
            by_hook.append(compare_predictions(passes, ids, compute_kl, compute_ce_loss))
        result = {
            name: torch.stack([found[name].to(rows.device) for found in by_hook]).mean(dim=0)
            for name in by_hook[0]
        }
        for label, found in zip(self.labels, by_hook, strict=True):
            result |= {f"{name}{AT}{label}": values for name, values in found.items()}
        return result

    def metrics_by_hook(self) -> MetricsByHook:
        return MetricsByHook(self.labels)


class CrossLayerReplacement:
    """Hooks that put a cross-layer transcoder in the place of its MLPs, for `run_with_hooks`.

    Each layer's features are computed from what the layer reads in this very pass, in which the
    earlier layers' outputs are replaced already: the replacement model of Ameisen et al. 2025.

    Args:
        sae: the cross-layer transcoder.
        kept: positions at which outputs are replaced, [batch, pos]; all when None.
        scaling: of activations for an SAE in training that is trained on scaled ones.

    Attributes:
        features: those of each layer in the last pass, [batch, pos, features of a layer].
    """

    def __init__(
        self,
        sae: Any,
        kept: Bool[Tensor, "batch pos"] | None = None,
        scaling: Scaling | None = None,
    ) -> None:
        self.sae, self.kept, self.scaling = sae, kept, scaling
        self.features: list[Tensor] = []

    def hooks(self) -> ForwardHooks:
        """Pairs of a hook's name and a function."""
        cfg = self.sae.cfg
        hooks: ForwardHooks = []
        for layer, (name, out) in enumerate(zip(cfg.hook_names, cfg.hook_names_out, strict=True)):
            hooks += [(name, _Read(self, layer)), (out, _Write(self, layer))]
        return hooks

    def read(self, layer: int, x: Float[Tensor, "batch pos d_in"]) -> None:
        """Compute a layer's features."""
        if layer == 0:
            self.features = []
        if len(self.features) != layer:
            raise ValueError(
                f"Layer {layer} is read after {len(self.features)} layers; the hooks of a "
                "cross-layer transcoder must run in the order of its config."
            )
        x = x.to(self.sae.device)
        if self.scaling is not None:
            x = self._columns(self.scaling.apply, layer, x)
        self.features.append(self.sae.encode_hook(layer, x))

    def written(self, layer: int) -> Float[Tensor, "batch pos d_in"]:
        """What the features so far write to a layer's output."""
        if len(self.features) <= layer:
            raise ValueError(
                f"The output of layer {layer} runs before its input; a transcoder's input has to "
                "come first."
            )
        output = self.sae.decode_hook(layer, self.features)
        if self.scaling is not None:
            output = self._columns(self.scaling.undo, layer, output)
        return output

    def _columns(self, change: Any, layer: int, values: Tensor) -> Tensor:
        """A change of rows, of one layer's columns."""
        width = values.shape[-1]
        rows = values.new_zeros(*values.shape[:-1], self.sae.n_hooks * width)
        here = slice(layer * width, (layer + 1) * width)
        rows[..., here] = values
        return change(rows)[..., here]


class _Read:
    def __init__(self, replacement: CrossLayerReplacement, layer: int) -> None:
        self.replacement, self.layer = replacement, layer

    def __call__(self, activations: Tensor, hook: Any) -> None:
        self.replacement.read(self.layer, pick(activations, Site(hook.name, None)))


class _Write:
    def __init__(self, replacement: CrossLayerReplacement, layer: int) -> None:
        self.replacement, self.layer = replacement, layer

    def __call__(self, activations: Tensor, hook: Any) -> Tensor:
        new = self.replacement.written(self.layer)
        kept = self.replacement.kept
        if kept is None:
            kept = torch.ones(activations.shape[:2], dtype=torch.bool)
        return put(activations, new, Site(hook.name, None), kept)


class _CrossLayer(_SeveralHooks):
    """A cross-layer transcoder."""

    def changed_predictions(
        self,
        tokens: Tensor,
        kept: Tensor,
        zeroed: Tensor,
        scaling: Scaling,
        compute_kl: bool,
        compute_ce_loss: bool,
        kwargs: Mapping[str, Any],
    ) -> dict[str, Tensor]:
        """All outputs replaced in one pass, and all zeroed in another."""
        replacement = CrossLayerReplacement(self.sae, kept, scaling)
        zeroing: ForwardHooks = [(name, _Put(None, zeroed)) for _, name in self.targets]
        passes = {
            "without_sae": Logits(self.model, tokens, [], kwargs),
            "with_sae": Logits(self.model, tokens, replacement.hooks(), kwargs),
            "with_ablation": Logits(self.model, tokens, zeroing, kwargs),
        }
        return compare_predictions(passes, tokens, compute_kl, compute_ce_loss)

    def metrics_by_hook(self) -> MetricsByHook:
        features = [self.sae.features_of_hook(layer) for layer in range(len(self.sites))]
        return MetricsByHook(self.labels, features)
