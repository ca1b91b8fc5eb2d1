"""Reading and replacing a model's activations with an SAE, as evaluations need it.

One place knows how the activations of a hook become the rows an SAE takes (a single head, flattened
heads, or as they are) and how its reconstruction is put back, and how the logits of a changed
forward pass are computed block by block.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformer_lens import HookedTransformer

from sae_lens.activations.model_adapters import activations_at, require_hook, vocabulary_size
from sae_lens.analysis.metrics import kl_divergence, next_token_loss, position_blocks
from sae_lens.hook_names import layer_of
from sae_lens.saes.base import SAE
from sae_lens.saes.training import TrainingSAE

ForwardHooks = list[tuple[str, Callable[..., Any]]]

_PLAIN_FORWARDS = (SAE.forward, TrainingSAE.forward)

# Elements of one [prompts, pos, d_sae] block of feature activations (float32: 512 MiB).
FEATURE_BLOCK_ELEMENTS = 2**27

# Elements of the logits of one pass, for models whose logits come only as a whole (1 GiB).
WHOLE_LOGITS_ELEMENTS = 2**28


class Site(NamedTuple):
    """A hook, or one head of it."""

    hook_name: str
    head: int | None


class Sites(NamedTuple):
    """Where an SAE reads and where its reconstruction belongs; they differ for a transcoder."""

    input: Site
    output: Site
    stop_at_layer: int | None

    @property
    def is_transcoder(self) -> bool:
        """Whether input and output are different activations."""
        return self.input != self.output


class Scaling(NamedTuple):
    """From a model's activations to the space an SAE was trained in, and back."""

    apply: Callable[[Tensor], Tensor]
    undo: Callable[[Tensor], Tensor]


def fact(cfg: Any, name: str) -> Any:
    """A fact about an SAE from its config or its metadata; None when neither knows it."""
    value = getattr(cfg, name, None)
    return getattr(getattr(cfg, "metadata", None), name, None) if value is None else value


def sites_of(sae: Any, model: Any) -> Sites:
    """Where in `model` the SAE reads and writes.

    Hugging Face models have other hook names; an SAE may know these as `hf_hook_name` and
    `hf_hook_name_out`.

    Raises:
        ValueError: when the model has no such hook.
    """
    cfg = sae.cfg
    if getattr(cfg, "sites", None):
        raise ValueError(
            f"This is done for an SAE of one hook; this {cfg.architecture} has "
            f"{len(cfg.sites)}: {', '.join(name for _, name in cfg.sites)}."
        )
    entry = Site(
        _present(model, cfg.hook_name, fact(cfg, "hf_hook_name")), fact(cfg, "hook_head_index")
    )
    out_name = fact(cfg, "hook_name_out")
    exit_ = entry
    if out_name and out_name != cfg.hook_name:
        exit_ = Site(
            _present(model, out_name, fact(cfg, "hf_hook_name_out")),
            fact(cfg, "hook_head_index_out"),
        )
    return Sites(entry, exit_, _stop_at_layer(cfg, entry, exit_))


def _present(model: Any, name: str, other_name: str | None) -> str:
    hooks = getattr(model, "hook_dict", None)
    if isinstance(hooks, Mapping) and name not in hooks and other_name in hooks:
        return str(other_name)
    require_hook(model, name)
    return name


def _stop_at_layer(cfg: Any, entry: Site, exit_: Site) -> int | None:
    names = (entry.hook_name, exit_.hook_name)
    if any(name.startswith(("ln_final", "unembed")) for name in names):
        return None
    known = fact(cfg, "hook_layer")
    layers = [layer_of(name) for name in names] + ([] if known is None else [int(known)])
    return max(layers) + 1


def pick(activations: Float[Tensor, "batch pos *rest"], site: Site) -> Float[Tensor, "batch pos d"]:
    """What an SAE at `site` sees: its head, flattened heads, or the activations as they are."""
    if site.head is not None:
        if activations.ndim < 4:
            raise ValueError(
                f"The SAE belongs to head {site.head}, but activations at {site.hook_name!r} have "
                f"shape {tuple(activations.shape)} and no heads. Choose a hook of attention heads."
            )
        return activations[:, :, site.head]
    return activations.flatten(2) if activations.ndim > 3 else activations


def put(
    activations: Float[Tensor, "batch pos *rest"],
    new: Float[Tensor, "batch pos d"],
    site: Site,
    kept: Bool[Tensor, "batch pos"],
) -> Float[Tensor, "batch pos *rest"]:
    """The activations with `new` at the kept positions of `site`; the argument is not changed."""
    old = pick(activations, site)
    mask = kept.to(old.device)[..., None]
    merged = torch.where(mask, new.to(device=old.device, dtype=old.dtype), old)
    if site.head is None:
        return merged.reshape(activations.shape)
    result = activations.clone()
    result[:, :, site.head] = merged
    return result


@contextmanager
def evaluation_mode(sae: Any) -> Iterator[None]:
    """No noise and flat inputs while inside; the SAE's modes come back, after an error too."""
    training = bool(getattr(sae, "training", False))
    reshaping = bool(getattr(sae, "hook_z_reshaping_mode", False))
    error_term = bool(getattr(sae, "use_error_term", False))
    try:
        if training:
            sae.eval()
        if reshaping:
            sae.turn_off_forward_pass_hook_z_reshaping()
        if error_term:
            sae.use_error_term = False
        yield
    finally:
        if training:
            sae.train()
        if reshaping:
            sae.turn_on_forward_pass_hook_z_reshaping()
        if error_term:
            sae.use_error_term = True


class Reconstruction(NamedTuple):
    """Feature activations of a block of prompts, and what they decode to (unscaled)."""

    feature_acts: Float[Tensor, "batch pos d_sae"]
    output: Float[Tensor, "batch pos d_out"]


def reconstruct(
    sae: Any, x: Float[Tensor, "batch pos d_in"], scaling: Scaling
) -> Iterator[Reconstruction]:
    """Encode and decode, some prompts at a time, so that wide SAEs fit into memory.

    Prompts stay whole: an SAE may look along them.
    """
    # Some architectures add what features alone do not tell (a skip connection, a prediction from
    # the context); only their own forward pass knows it.
    sae = sae[0] if isinstance(sae, tuple) else sae  # what `SAE.from_pretrained` returns
    needs_forward = isinstance(sae, SAE) and type(sae).forward not in _PLAIN_FORWARDS
    per_prompt = max(1, x.shape[1] * int(sae.cfg.d_sae))
    for block in x.split(max(1, FEATURE_BLOCK_ELEMENTS // per_prompt)):
        scaled = scaling.apply(block.to(sae.device))
        feature_acts = sae.encode(scaled)
        if feature_acts.layout != torch.strided:
            feature_acts = feature_acts.to_dense()
        output = sae(scaled) if needs_forward else sae.decode(feature_acts)
        yield Reconstruction(feature_acts, scaling.undo(output))


def reconstruction_of(sae: Any, x: Tensor, scaling: Scaling) -> Float[Tensor, "batch pos d_out"]:
    """The whole reconstruction."""
    return torch.cat([part.output for part in reconstruct(sae, x, scaling)])


class ReplaceBySAE:
    """Hooks that put the SAE's reconstruction into a forward pass, at the kept positions."""

    def __init__(self, sae: Any, sites: Sites, kept: Bool[Tensor, "batch pos"], scaling: Scaling):
        self.sae, self.sites, self.kept, self.scaling = sae, sites, kept, scaling
        self._input: Tensor | None = None

    def hooks(self) -> ForwardHooks:
        """For `run_with_hooks`."""
        replace = [(self.sites.output.hook_name, self._replace)]
        if not self.sites.is_transcoder:
            return replace
        return [(self.sites.input.hook_name, self._remember), *replace]

    def _remember(self, activations: Tensor, hook: Any) -> None:
        self._input = pick(activations, self.sites.input)

    def _replace(self, activations: Tensor, hook: Any) -> Tensor:
        if not self.sites.is_transcoder:
            self._input = pick(activations, self.sites.input)
        if self._input is None:
            raise ValueError(
                f"The output hook {self.sites.output.hook_name!r} runs before the input hook "
                f"{self.sites.input.hook_name!r}; a transcoder's input has to come first."
            )
        new = reconstruction_of(self.sae, self._input, self.scaling)
        return put(activations, new, self.sites.output, self.kept)


class ReplaceByZero:
    """A hook that zeroes what the SAE would reconstruct, at the given positions."""

    def __init__(self, sites: Sites, zeroed: Bool[Tensor, "batch pos"]):
        self.site, self.zeroed = sites.output, zeroed

    def hooks(self) -> ForwardHooks:
        """For `run_with_hooks`."""
        return [(self.site.hook_name, self._replace)]

    def _replace(self, activations: Tensor, hook: Any) -> Tensor:
        zeros = torch.zeros_like(pick(activations, self.site))
        return put(activations, zeros, self.site, self.zeroed)


class ReadActivations(NamedTuple):
    """What an SAE reads in a forward pass, and what it should reconstruct."""

    input: Float[Tensor, "batch pos d_in"]
    target: Float[Tensor, "batch pos d_out"]


def read_activations(
    model: Any, tokens: Int[Tensor, "batch pos"], sites: Sites, model_kwargs: Mapping[str, Any]
) -> ReadActivations:
    """Run the model as far as needed."""
    kwargs = dict(model_kwargs)

    def read(site: Site) -> Tensor:
        stop = sites.stop_at_layer
        full = activations_at(model, tokens, site.hook_name, stop, kwargs)  # type: ignore[arg-type]
        return pick(full, site)

    entry = read(sites.input)
    return ReadActivations(entry, read(sites.output) if sites.is_transcoder else entry)


class Logits:
    """The logits of one forward pass over a batch, [batch · pos, vocabulary] when whole.

    For a `HookedTransformer` only the states before the unembedding are kept, and `block` computes
    the logits of some positions; other models give theirs as a whole.
    """

    def __init__(
        self,
        model: Any,
        tokens: Int[Tensor, "batch pos"],
        fwd_hooks: ForwardHooks,
        model_kwargs: Mapping[str, Any],
    ):
        self._model = model
        self._whole: Tensor | None = None
        if computes_logits_in_blocks(model):
            states = _final_states(model, tokens, fwd_hooks, model_kwargs)
            self._states = states.flatten(0, 1)
        else:
            logits = model.run_with_hooks(
                tokens, return_type="logits", fwd_hooks=fwd_hooks, **model_kwargs
            )
            self._whole = logits.flatten(0, 1)

    def block(self, positions: slice) -> Float[Tensor, "positions vocabulary"]:
        """The logits of a slice of the flattened positions."""
        if self._whole is not None:
            return self._whole[positions]
        logits = self._model.unembed(self._states[positions][None])[0]
        cap = getattr(self._model.cfg, "output_logits_soft_cap", 0.0) or 0.0
        return cap * torch.tanh(logits / cap) if cap > 0 else logits


def computes_logits_in_blocks(model: Any) -> bool:
    """Whether the end of the model's forward pass is the one that `Logits` repeats in blocks."""
    return (
        isinstance(model, HookedTransformer)
        and type(model).forward is HookedTransformer.forward
        and "forward" not in vars(model)
    )


def prompts_per_pass(model: Any, context_size: int) -> int | None:
    """How many prompts fit into one pass when logits come as a whole; None for any number."""
    vocabulary = vocabulary_size(model)
    if computes_logits_in_blocks(model) or vocabulary is None:
        return None
    return max(1, WHOLE_LOGITS_ELEMENTS // (context_size * vocabulary))


def _final_states(
    model: HookedTransformer,
    tokens: Tensor,
    fwd_hooks: ForwardHooks,
    model_kwargs: Mapping[str, Any],
) -> Float[Tensor, "batch pos d_model"]:
    with model.hooks(fwd_hooks=fwd_hooks):  # type: ignore[arg-type]
        states = model(tokens, stop_at_layer=model.cfg.n_layers, **model_kwargs)
        return model.ln_final(states) if model.cfg.normalization_type is not None else states


def changed_predictions(
    sae: Any,
    model: Any,
    tokens: Int[Tensor, "batch pos"],
    kept: Bool[Tensor, "batch pos"],
    zeroed: Bool[Tensor, "batch pos"],
    scaling: Scaling,
    compute_kl: bool,
    compute_ce_loss: bool,
    model_kwargs: Mapping[str, Any],
) -> dict[str, Tensor]:
    """Per-token KL divergence and cross-entropy of three forward passes over a batch.

    Plain, with the reconstruction in place where `kept`, and with its hook zeroed where `zeroed`.
    The logits are compared block by block, so that those of a large vocabulary never exist for all
    positions.

    Returns:
        `kl_div_with_sae`, `kl_div_with_ablation` [batch, pos] and `ce_loss_without_sae`,
        `ce_loss_with_sae`, `ce_loss_with_ablation` [batch, pos − 1], each only if asked for.
    """
    sites = sites_of(sae, model)
    passes = {
        "without_sae": Logits(model, tokens, [], model_kwargs),
        "with_sae": Logits(
            model, tokens, ReplaceBySAE(sae, sites, kept, scaling).hooks(), model_kwargs
        ),
        "with_ablation": Logits(model, tokens, ReplaceByZero(sites, zeroed).hooks(), model_kwargs),
    }
    return compare_predictions(passes, tokens, compute_kl, compute_ce_loss)


def compare_predictions(
    passes: Mapping[str, Logits],
    tokens: Int[Tensor, "batch pos"],
    compute_kl: bool,
    compute_ce_loss: bool,
) -> dict[str, Tensor]:
    """What `changed_predictions` says of its three passes, given by their names."""
    following = tokens.roll(-1, dims=1).flatten()
    blocks: dict[str, list[Tensor]] = defaultdict(list)
    first = passes["without_sae"].block(slice(0, 1))
    for positions in position_blocks(tokens.numel(), first.shape[-1]):
        plain = passes["without_sae"].block(positions)
        targets = following[positions].to(plain.device)
        if compute_ce_loss:
            blocks["ce_loss_without_sae"].append(next_token_loss(plain, targets))
        for name in ("with_sae", "with_ablation"):
            changed = passes[name].block(positions)
            if compute_kl:
                blocks[f"kl_div_{name}"].append(kl_divergence(plain, changed))
            if compute_ce_loss:
                blocks[f"ce_loss_{name}"].append(next_token_loss(changed, targets))
    whole = {name: torch.cat(parts).reshape(tokens.shape) for name, parts in blocks.items()}
    return {
        name: values[:, :-1] if name.startswith("ce_loss") else values
        for name, values in whole.items()
    }
