"""Toy models of superposition: more features than dimensions, stored in one hidden layer.

`x -> relu(W^T W x + b_final)`, as in "Toy Models of Superposition" (Elhage et al., 2022,
https://transformer-circuits.pub/2022/toy_model). Features are present with a given probability and
have a uniform magnitude; pairs of them may occur only together (correlated) or never together
(anticorrelated).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from tqdm.auto import trange
from transformer_lens.hook_points import HookPoint

from sae_lens.transformer_lens_versions import HookedRootModule

_CPU = torch.device("cpu")
_RETURN_TYPES = ("reconstruction", "loss")


def linear_lr(step: int, steps: int) -> float:
    """From 1 straight down to 0."""
    return 1 - step / steps


def constant_lr(*_: Any) -> float:
    """Always 1."""
    return 1.0


def cosine_decay_lr(step: int, steps: int) -> float:
    """From 1 to 0 along a quarter of a cosine."""
    return math.cos(0.5 * math.pi * step / max(1, steps - 1))


@dataclass
class ToyConfig:
    """The features of a toy model, and its width.

    Features come in this order: correlated pairs, anticorrelated pairs, all others.

    Attributes:
        n_features: number of features.
        n_hidden: width of the hidden layer.
        n_correlated_pairs: pairs that are present together or not at all.
        n_anticorrelated_pairs: pairs of which at most one is present.
        feature_probability: how often each feature is present: one number, or [n_features]; 1 when
            None.
        importance: weight of each feature in the loss: one number, or [n_features]; 1 when None.
        device: where data are made.
    """

    n_features: int = 5
    n_hidden: int = 2
    n_correlated_pairs: int = 0
    n_anticorrelated_pairs: int = 0
    feature_probability: float | Tensor | None = None
    importance: float | Tensor | None = None
    device: str | torch.device = "cpu"


def _init_importance(
    importance: float | Tensor | None, n_features: int, device: str | torch.device
) -> Tensor:
    """A value per feature, [n_features]."""
    return _per_feature(importance, n_features, device)


class HookedToyModel(HookedRootModule, ABC):
    """A model of features in a narrow hidden layer, with data to train it on.

    Attributes:
        W: [n_hidden, n_features], the direction of each feature.
        b_final: [n_features].
        hook_hidden: the hidden layer, [batch, n_hidden].
        hook_out_prebias: what is read back of the features, [batch, n_features].
    """

    def __init__(self, cfg: ToyConfig, device: torch.device = _CPU):
        super().__init__()
        n_paired = 2 * (cfg.n_correlated_pairs + cfg.n_anticorrelated_pairs)
        if n_paired > cfg.n_features:
            raise ValueError(
                f"{cfg.n_correlated_pairs} correlated and {cfg.n_anticorrelated_pairs} "
                f"anticorrelated pairs are {n_paired} features, but n_features is {cfg.n_features}."
            )
        self.cfg = cfg
        self.feature_probability = _per_feature(cfg.feature_probability, cfg.n_features, device)
        self.importance = _init_importance(cfg.importance, cfg.n_features, device)
        self._check_probabilities(n_paired)
        self.W = nn.Parameter(torch.empty(cfg.n_hidden, cfg.n_features, device=device))
        nn.init.xavier_normal_(self.W)
        self.b_final = nn.Parameter(torch.zeros(cfg.n_features, device=device))
        self.hook_hidden = HookPoint()
        self.hook_out_prebias = HookPoint()
        self.setup()

    @abstractmethod
    def forward(self, features: Tensor, return_type: str) -> Tensor:
        """Features [..., n_features] as the model gives them back, or the loss."""

    @abstractmethod
    def calculate_loss(self, out: Tensor, batch: Tensor) -> Tensor:
        """The loss of an output for a batch, both [batch, n_features]; a scalar."""

    def generate_correlated_features(
        self, batch_size: int, n_correlated_pairs: int
    ) -> Float[Tensor, "batch_size features"]:
        """Pairs of features that are present together, [batch_size, 2 * n_correlated_pairs]."""
        p = self.feature_probability[: 2 * n_correlated_pairs : 2]
        present = self._draw(batch_size, n_correlated_pairs) < p
        return present.repeat_interleave(2, dim=1) * self._draw(batch_size, 2 * n_correlated_pairs)

    def generate_anticorrelated_features(
        self, batch_size: int, n_anticorrelated_pairs: int
    ) -> Float[Tensor, "batch_size features"]:
        """Pairs of which at most one is present, [batch_size, 2 * n_anticorrelated_pairs]."""
        start = 2 * self.cfg.n_correlated_pairs
        p = self.feature_probability[start : start + 2 * n_anticorrelated_pairs : 2]
        either = self._draw(batch_size, n_anticorrelated_pairs) < 2 * p
        first = self._draw(batch_size, n_anticorrelated_pairs) < 0.5
        present = torch.stack([either & first, either & ~first], dim=-1).flatten(1)
        return present * self._draw(batch_size, 2 * n_anticorrelated_pairs)

    def generate_uncorrelated_features(
        self, batch_size: int, n_uncorrelated: int
    ) -> Float[Tensor, "batch_size features"]:
        """Features that know nothing of each other, [batch_size, n_uncorrelated]."""
        p = self.feature_probability[self.cfg.n_features - n_uncorrelated :]
        present = self._draw(batch_size, n_uncorrelated) < p
        return present * self._draw(batch_size, n_uncorrelated)

    def generate_batch(self, batch_size: int) -> Float[Tensor, "batch_size features"]:
        """Random features, [batch_size, n_features]."""
        cfg = self.cfg
        n_paired = 2 * (cfg.n_correlated_pairs + cfg.n_anticorrelated_pairs)
        return torch.cat(
            [
                self.generate_correlated_features(batch_size, cfg.n_correlated_pairs),
                self.generate_anticorrelated_features(batch_size, cfg.n_anticorrelated_pairs),
                self.generate_uncorrelated_features(batch_size, cfg.n_features - n_paired),
            ],
            dim=-1,
        )

    def optimize(
        self,
        batch_size: int = 1024,
        steps: int = 10_000,
        log_freq: int = 100,
        lr: float = 1e-3,
        lr_scale: Callable[[int, int], float] = constant_lr,
    ) -> None:
        """Train the model with Adam on fresh batches.

        Args:
            batch_size: features per step.
            steps: how many.
            log_freq: steps between two updates of the progress bar.
            lr: learning rate.
            lr_scale: its factor, from the step and the number of steps.
        """
        optimizer = torch.optim.Adam(self.parameters(), lr=lr)
        with trange(steps, desc="Training the toy model") as progress:
            for step in progress:
                for group in optimizer.param_groups:
                    group["lr"] = lr * lr_scale(step, steps)
                optimizer.zero_grad()
                batch = self.generate_batch(batch_size)
                loss = self.calculate_loss(self(batch, return_type="reconstruction"), batch)
                loss.backward()
                optimizer.step()
                if step % log_freq == 0 or step + 1 == steps:
                    progress.set_postfix(loss=loss.item())

    def _draw(self, *shape: int) -> Tensor:
        return torch.rand(shape, device=self.W.device)

    def _check_probabilities(self, n_paired: int) -> None:
        p = self.feature_probability
        if bool((p < 0).any()) or bool((p > 1).any()):
            raise ValueError(f"feature_probability must lie between 0 and 1, but is {p.tolist()}.")
        if not torch.equal(p[:n_paired:2], p[1:n_paired:2]):
            raise ValueError(
                "The two features of a pair must have the same probability, but these are "
                f"{p[:n_paired].tolist()}."
            )
        anticorrelated = p[2 * self.cfg.n_correlated_pairs : n_paired]
        if bool((anticorrelated > 0.5).any()):
            raise ValueError(
                "Of an anticorrelated pair one is present at a time, so each has a probability of "
                f"at most 0.5; these are {anticorrelated.tolist()}."
            )


class ReluOutputModel(HookedToyModel):
    """`relu(W^T W x + b_final)`, trained on an importance-weighted squared error."""

    def forward(
        self, features: Float[Tensor, "... features"], return_type: str = "reconstruction"
    ) -> Float[Tensor, "... features"]:
        """The features as the model gives them back, or the loss (a scalar).

        Args:
            features: [..., n_features].
            return_type: "reconstruction" or "loss".

        Raises:
            ValueError: for another return type.
        """
        if return_type not in _RETURN_TYPES:
            raise ValueError(
                f"return_type is {return_type!r}; allowed are {', '.join(_RETURN_TYPES)}."
            )
        hidden = self.hook_hidden(features @ self.W.T)  # [..., n_hidden]
        out = torch.relu(self.hook_out_prebias(hidden @ self.W) + self.b_final)
        return out if return_type == "reconstruction" else self.calculate_loss(out, features)

    def calculate_loss(
        self, out: Float[Tensor, "batch features"], batch: Float[Tensor, "batch features"]
    ) -> Float[Tensor, ""]:
        """Mean over batch and features of importance times squared error."""
        return (self.importance * (batch - out) ** 2).mean()


class ReluOutputModelCE(ReluOutputModel):
    """The same model, trained to say which feature is the strongest (cross-entropy).

    Args:
        cfg: the sizes.
        device: where it lies.
        extra_feature_value: what one feature gets in a sample where none is present, so that there
            is a strongest one.
    """

    def __init__(
        self,
        cfg: ToyConfig,
        device: torch.device = torch.device("cpu"),  # noqa: B008  (immutable)
        extra_feature_value: float = 1e-6,
    ):
        super().__init__(cfg, device=device)
        self.extra_feature_value = extra_feature_value

    def generate_batch(self, batch_size: int) -> Float[Tensor, "batch_size features"]:
        """Random features; where none is present one is, so that there is a strongest."""
        batch = super().generate_batch(batch_size)
        lone = torch.randint(batch.shape[1], (batch_size,), device=batch.device)
        nothing = (batch == 0).all(dim=1)
        batch[nothing, lone[nothing]] = self.extra_feature_value
        return batch

    def calculate_loss(
        self, out: Float[Tensor, "batch features"], batch: Float[Tensor, "batch features"]
    ) -> Float[Tensor, ""]:
        """Cross-entropy of the output as logits, against the strongest feature."""
        return nn.functional.cross_entropy(out, batch.argmax(dim=-1))


def parse_colors_for_superposition_plot(
    colors: tuple[int, int] | list[str] | Tensor | None, n_feats: int
) -> list[Any]:
    """A colour for each feature.

    Args:
        colors: a list of them; a pair of numbers (of correlated and anticorrelated pairs), which
            gives both features of a pair the same colour; values [n_feats] between 0 and 1 for a
            colour scale; None for black.
        n_feats: number of features.

    Raises:
        ValueError: when there are not as many colours as features.
    """
    if colors is None:
        return ["black"] * n_feats
    if isinstance(colors, tuple):
        n_paired = 2 * sum(colors)
        if n_paired > n_feats:
            raise ValueError(
                f"{colors} are {n_paired} features in pairs, but n_feats is {n_feats}."
            )
        blues = [("#0000ff", "#5555ff", "#9999ff")[i % 3] for i in range(colors[0])]
        reds = [("#ff0000", "#ff5555", "#ff9999")[i % 3] for i in range(colors[1])]
        paired = [color for color in (*blues, *reds) for _ in range(2)]
        return paired + ["black"] * (n_feats - n_paired)
    if isinstance(colors, Tensor):
        import matplotlib

        scale = matplotlib.colormaps["viridis"]
        colors = [scale(value) for value in colors.flatten().tolist()]
    if len(colors) != n_feats:
        raise ValueError(f"There are {len(colors)} colors for {n_feats} features.")
    return list(colors)


def plot_features_in_2d(
    values: Float[Tensor, "timesteps d_hidden feats"],
    colors: list[Any] | None = None,
    title: str | list[str] | None = None,
    subplot_titles: list[str] | list[list[str]] | None = None,
    save: str | None = None,
    colab: bool = False,
) -> Any:
    """Draw the directions of features in a hidden layer of width 2, side by side for each time.

    Args:
        values: [timesteps, 2, feats] or [2, feats].
        colors: as `parse_colors_for_superposition_plot` takes them.
        title: above it all; of a list, the last.
        subplot_titles: above each picture.
        save: file to write.
        colab: without effect.

    Returns:
        The matplotlib figure.

    Raises:
        ValueError: when the hidden layer is not of width 2, or titles or colours are too few.
    """
    from matplotlib.figure import Figure

    del colab
    values = values.detach().float().cpu()
    frames = values.unsqueeze(0) if values.ndim == 2 else values
    if frames.ndim != 3 or frames.shape[1] != 2:
        raise ValueError(
            f"values has the shape {tuple(values.shape)}; expected [timesteps, 2, features]."
        )
    titles = subplot_titles or [""] * len(frames)
    if len(titles) != len(frames):
        raise ValueError(f"There are {len(titles)} subplot_titles for {len(frames)} pictures.")
    parsed = parse_colors_for_superposition_plot(colors, frames.shape[2])  # type: ignore[arg-type]
    figure = Figure(figsize=(3.5 * len(frames), 3.5))
    limit = 1.2 * max(1.0, float(frames.norm(dim=1).max()))
    for index, frame in enumerate(frames):
        axes = figure.add_subplot(1, len(frames), index + 1)
        for (x, y), color in zip(frame.T.tolist(), parsed, strict=True):
            axes.plot([0, x], [0, y], color=color)
            axes.scatter([x], [y], color=[color])
        axes.set(xlim=(-limit, limit), ylim=(-limit, limit), aspect="equal")
        text = titles[index]
        axes.set_title(text if isinstance(text, str) else " ".join(text))
    if title:
        figure.suptitle(title if isinstance(title, str) else title[-1])
    if save is not None:
        figure.savefig(save)
    return figure


def _per_feature(
    value: float | Tensor | None, n_features: int, device: str | torch.device
) -> Tensor:
    given = torch.ones(()) if value is None else torch.as_tensor(value, dtype=torch.float32)
    if given.ndim > 0 and given.shape != (n_features,):
        raise ValueError(
            f"A value per feature needs the shape ({n_features},), but this has "
            f"{tuple(given.shape)}."
        )
    return given.to(device).expand(n_features).clone()
