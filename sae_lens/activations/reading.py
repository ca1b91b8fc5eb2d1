"""What one SAE asks for of every token: one hook, an input and an output, or several hooks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from sae_lens.activations import scaling
from sae_lens.activations.joint import JointActivationsStore
from sae_lens.activations.paired import PairedActivationsStore
from sae_lens.activations.store import ActivationsStore
from sae_lens.hook_names import layer_of


class HookSite(NamedTuple):
    """A hook, or one head of it, and the width of its activations."""

    hook_name: str
    hook_head_index: int | None
    d_in: int


@dataclass(frozen=True)
class Reading:
    """What one SAE asks for of every token.

    Attributes:
        sites: what it reads, and then what else it is to predict.
        n_read: how many of them it reads.
    """

    sites: tuple[HookSite, ...]
    n_read: int = 1

    @property
    def widths(self) -> tuple[int, ...]:
        """Width at each site."""
        return tuple(site.d_in for site in self.sites)

    @property
    def outputs(self) -> tuple[HookSite, ...]:
        """What is to be predicted besides."""
        return self.sites[self.n_read :]

    def factor_estimate(self) -> scaling.FactorEstimate:
        """As the store of this SAE alone estimates it."""
        if self.n_read == 1:
            return scaling.FactorEstimate(sum(self.widths))
        return scaling.FactorEstimate(self.widths[0], one_for_each=True)

    def single_store(self, model: Any, **settings: Any) -> ActivationsStore:
        """The store of this SAE alone."""
        first = self.sites[0]
        settings |= {
            "hook_name": first.hook_name,
            "hook_layer": layer_of(first.hook_name),
            "hook_head_index": first.hook_head_index,
            "d_in": first.d_in,
        }
        if self.n_read > 1:
            sites, targets = self.sites[: self.n_read], self.outputs
            return JointActivationsStore(
                model,
                sites=[(0, site.hook_name) for site in sites],
                target_sites=[(0, site.hook_name) for site in targets],
                **settings,
            )
        if self.outputs:
            (out,) = self.outputs
            return PairedActivationsStore(
                model, hook_name_out=out.hook_name, d_out=out.d_in, **settings
            )
        return ActivationsStore(model, **settings)


def reading_of(cfg: Any) -> Reading:
    """What the SAE of a run's config asks for."""
    sites, d_in = getattr(cfg.sae, "sites", ()), cfg.d_in
    if sites:
        names = [name for _, name in (*sites, *getattr(cfg.sae, "target_sites", ()))]
        return Reading(tuple(HookSite(name, None, d_in) for name in names), len(sites))
    read = HookSite(cfg.hook_name, cfg.hook_head_index, d_in)
    hook_name_out = getattr(cfg.sae, "hook_name_out", None)
    if hook_name_out is None:
        return Reading((read,))
    return Reading((read, HookSite(hook_name_out, None, cfg.sae.d_out)))
