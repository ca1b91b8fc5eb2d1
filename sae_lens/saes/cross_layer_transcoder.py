"""Cross-layer transcoders: an encoder for each layer, which writes to that and all later MLPs.

    f_l = act(x_l W_enc[l] + b_enc[l]),   y_m' = sum_{l <= m} f_l W_dec[l -> m] + b_dec[m]

with x_l what the MLP of layer l reads and y_l what it writes. Ameisen, Lindsey, Pearce et al. 2025,
"Circuit Tracing: Revealing Computational Graphs in Language Models" (Transformer Circuits Thread),
section "Building an interpretable replacement model". What a feature costs, selects by, or is
folded by is the L2 norm of all its decoders together, as there.

The `d_sae` features are those of all layers: the first d_sae / layers belong to the first, and so
on. Files hold `W_enc` [layers, d_in, d], `b_enc` [layers, d], `b_dec` [layers, d_in] (thresholds
like `b_enc`), and for each layer l `W_dec_l` [d, layers - l, d_in], the decoders of its features
for the layers from l on. In memory all decoders are rows of one matrix, in this order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import pad

from sae_lens.hook_names import layer_of, runs_before
from sae_lens.registry import register_sae_class
from sae_lens.saes.activation_fns import TopK
from sae_lens.saes.config import ArchitectureSAEConfig
from sae_lens.saes.cross_layer_some_features import SomeCrossLayerFeatures
from sae_lens.saes.jumprelu import JumpReLUSAE, JumpReLUSAEConfig
from sae_lens.saes.normalization import normalize
from sae_lens.saes.several_hooks import HookSite, check_names, check_settings
from sae_lens.saes.standard import StandardSAE
from sae_lens.saes.topk import TopKSAE, TopKSAEConfig, check_k
from sae_lens.saes.weights import divisors
from sae_lens.whitening import Whitening, undo_directions, undo_parts

CLT_KEYS = ("hook_names", "hook_names_out")

_PER_FEATURE = ("b_enc", "threshold")


@dataclass(kw_only=True)
class CrossLayerFields:
    """What the configs of all cross-layer transcoders have besides those of the SAE of that name.

    Attributes:
        hook_names: what is read, layer by layer: what each MLP reads.
        hook_names_out: what is written, one for each of them: what each MLP writes. All hooks have
            the width d_in.
        apply_b_dec_to_input: must be False.
    """

    hook_names: list[str] = field(default_factory=list)
    hook_names_out: list[str] = field(default_factory=list)
    apply_b_dec_to_input: bool = False

    keys_of_hooks: ClassVar[tuple[str, ...]] = CLT_KEYS
    nested_keys: ClassVar[tuple[str, ...]] = CLT_KEYS

    def __post_init__(  # pyright: ignore[reportGeneralTypeIssues]  (they are the other base's)
        self, metadata: Any, reshape_activations: str | None
    ) -> None:
        check_names("hook_names", self.hook_names)
        check_names("hook_names_out", self.hook_names_out)
        self.hook_names, self.hook_names_out = list(self.hook_names), list(self.hook_names_out)
        self._check_layers()
        self.hook_name: str = getattr(self, "hook_name", "") or self.hook_names[0]
        super().__post_init__(metadata, reshape_activations)  # type: ignore[misc]
        check_settings(self, "cross-layer transcoder")
        d_sae: int = getattr(self, "d_sae")  # noqa: B009  (a field of the other base)
        if d_sae % len(self.hook_names):
            raise ValueError(
                f"d_sae is {d_sae}, the number of features of all {len(self.hook_names)} layers "
                "together; it must be a multiple of the number of layers."
            )
        k = getattr(self, "k", None)
        if k is not None:
            check_k(k, d_sae // len(self.hook_names))

    def _check_layers(self) -> None:
        n_read, n_written = len(self.hook_names), len(self.hook_names_out)
        if n_read < 2 or n_read != n_written:
            raise ValueError(
                "A cross-layer transcoder needs at least two layers, and an output for each input: "
                f"there are {n_read} hook_names and {n_written} hook_names_out."
            )
        for name, out in zip(self.hook_names, self.hook_names_out, strict=True):
            if layer_of(out) < layer_of(name) or runs_before(out, name):
                raise ValueError(
                    f"The output {out!r} runs before its input {name!r}. Exchange them, or put "
                    "both lists into the order of the layers."
                )
        for field_name in CLT_KEYS:
            names = getattr(self, field_name)
            layers = [layer_of(name) for name in names]
            if layers != sorted(layers):
                raise ValueError(f"{field_name} is {names}; it must be in the order of the layers.")

    @property
    def sites(self) -> tuple[HookSite, ...]:
        """What is read, in the order of a row."""
        return tuple(HookSite(0, name) for name in self.hook_names)

    @property
    def target_sites(self) -> tuple[HookSite, ...]:
        """What is written, in the order of a row."""
        return tuple(HookSite(0, name) for name in self.hook_names_out)


class CrossLayerMaps(SomeCrossLayerFeatures):
    """Parameters, linear maps and files of all cross-layer transcoders.

    Raises:
        ValueError: with the error term, since the output is not a reconstruction of the input.
    """

    def __init__(self, cfg: Any, use_error_term: bool = False):
        if use_error_term:
            raise ValueError(
                "A transcoder's output is not a reconstruction of its input, so there is no error "
                "term to add."
            )
        super().__init__(cfg, use_error_term)

    def run_time_activation_norm_fn_out(self, x: Tensor) -> Tensor:
        """Nothing: what was done to the inputs has no counterpart on the outputs."""
        return x

    @property
    def d_sae_of_hook(self) -> int:
        """Features of each layer."""
        return int(self._layout.d_sae) // self.n_hooks

    def features_of_hook(self, layer: int) -> slice:
        """Which of all features are those of a layer (counted from 0 among those read)."""
        return slice(layer * self.d_sae_of_hook, (layer + 1) * self.d_sae_of_hook)

    # -- parameters -------------------------------------------------------------------------------

    def initialize_weights_basic(self) -> None:
        """`b_enc`, `W_dec` [rows, d_in] (see the module's text), `W_enc`, `b_dec`."""
        layers, width, d = self.n_hooks, self.d_in_of_hook, self.d_sae_of_hook
        self.b_enc = self._vector(layers * d)
        self.W_dec = self._matrix(layers * (layers + 1) // 2 * d, width)
        self.W_enc = self._matrix(layers * width, d)
        self.b_dec = self._vector(layers * width)

    def encoders(self) -> Sequence[Float[Tensor, "d_in d"]]:
        """The encoder of each layer: views of `W_enc`."""
        return self.W_enc.split(self.d_in_of_hook)

    def decoders(self) -> list[Float[Tensor, "d written"]]:
        """The decoders of each layer's features for that and all later layers, side by side."""
        layers, d = self.n_hooks, self.d_sae_of_hook
        blocks = self.W_dec.split([d * (layers - layer) for layer in range(layers)])
        return [block.reshape(d, -1) for block in blocks]

    def encoder_columns(self) -> Float[Tensor, "d_in d_sae"]:
        """The encoders of all layers, one layer's columns after the other's."""
        return torch.cat(list(self.encoders()), dim=1)

    def decoder_rows(self) -> Float[Tensor, "d_sae all_layers"]:
        """What each feature writes to all layers, zeros to those before its own."""
        width = self.d_in_of_hook
        rows = [pad(W, (layer * width, 0)) for layer, W in enumerate(self.decoders())]
        return torch.cat(rows)

    def _rows_of_features(self) -> Int[Tensor, " rows"]:
        """The feature that each row of `W_dec` belongs to."""
        layers, d = self.n_hooks, self.d_sae_of_hook
        features = torch.arange(layers * d, device=self.W_dec.device)
        return features.repeat_interleave(layers - features // d)

    # -- linear maps ------------------------------------------------------------------------------

    def linear_encode(self, x: Tensor) -> Tensor:
        """Pre-activations of all layers' features."""
        by_layer = x.unflatten(-1, (self.n_hooks, -1))
        W_enc = self.W_enc.unflatten(0, (self.n_hooks, -1))
        return torch.einsum("...li,lid->...ld", by_layer, W_enc).flatten(-2) + self.b_enc

    def linear_decode(self, acts: Tensor) -> Tensor:
        """What features write to all layers, without bias."""
        parts = acts.split(self.d_sae_of_hook, dim=-1)
        return self._summed([f @ W for f, W in zip(parts, self.decoders(), strict=True)])

    def _summed(self, written: Sequence[Float[Tensor, "... written"]]) -> Float[Tensor, "... d"]:
        """The sum of what each layer writes from itself on."""
        width = self.d_in_of_hook
        total = written[0]
        for layer, part in enumerate(written[1:], start=1):
            total = total + pad(part, (layer * width, 0))
        return total

    def decoder_norms(self, features: Tensor | None = None) -> Tensor:
        """The L2 norm of all decoders of each feature (or of some) together."""
        norms = torch.cat([W.norm(dim=-1) for W in self.decoders()])
        return norms if features is None else norms[features]

    @torch.no_grad()
    def divide_decoder_(self, norms: Tensor, *per_feature: Tensor) -> None:
        """Divide the decoder by `norms` and multiply encoder and `per_feature`, in place."""
        self.W_dec.data.div_(norms[self._rows_of_features()].unsqueeze(1))
        by_layer = norms.unflatten(0, (self.n_hooks, 1, -1))
        self.W_enc.data.unflatten(0, (self.n_hooks, -1)).mul_(by_layer)
        for vector in per_feature:
            vector.mul_(norms.to(vector.dtype))

    def _fold_scale(self, factor: Tensor) -> None:
        read = self.n_hooks * self.d_in_of_hook
        factor = factor.expand(2 * read)
        self.W_enc.data.mul_(factor[:read].unsqueeze(1))
        self.b_dec.data.div_(factor[read:])
        start = 0
        for layer, block in enumerate(self.decoders()):
            rows = block.data.numel() // self.d_in_of_hook
            scaled = block.data / factor[read + layer * self.d_in_of_hook :]
            self.W_dec.data[start : start + rows] = scaled.view(rows, -1)
            start += rows

    @torch.no_grad()
    def map_encoder_(self, maps: Sequence[Whitening]) -> Float[Tensor, " d_sae"]:
        """Let each layer's encoder apply the map of what it reads, in place."""
        means = []
        for part, W in zip(maps, self.encoders(), strict=True):
            mapped = part.matrix @ W.data.float()
            W.data.copy_(mapped)
            means.append(part.mean @ mapped)
        return torch.cat(means)

    @torch.no_grad()
    def map_decoder_(self, maps: Sequence[Whitening]) -> None:
        """Let all decoders undo the map of the layer that they write to, in place."""
        blocks = [undo_directions(maps[layer:], W.data) for layer, W in enumerate(self.decoders())]
        self.W_dec.copy_(torch.cat([block.view(-1, self.d_in_of_hook) for block in blocks]))
        self.b_dec.copy_(undo_parts(maps, self.b_dec.data))

    # -- layer by layer, as a forward pass of the model goes --------------------------------------

    def encode_hook(self, layer: int, x: Float[Tensor, "... d_in"]) -> Float[Tensor, "... d"]:
        """The features of one layer, from what its MLP reads."""
        here = self.features_of_hook(layer)
        x, _ = normalize(self.cfg.normalize_activations, x.to(self.dtype))
        hidden_pre = x @ self.encoders()[layer] + self.b_enc[here]
        return self.activate_hook(here, hidden_pre)

    def activate_hook(self, here: slice, hidden_pre: Tensor) -> Tensor:
        """Features of one layer from their pre-activations, if there is a rule for one layer."""
        return self.activation_fn(hidden_pre)

    def decode_hook(
        self, layer: int, features: Sequence[Float[Tensor, "... d"]]
    ) -> Float[Tensor, "... d_in"]:
        """What the features of all layers up to this one write to its MLP's output."""
        width = self.d_in_of_hook
        written = self.b_dec[layer * width : (layer + 1) * width]
        decoders = self.decoders()
        for source, acts in enumerate(features[: layer + 1]):
            columns = slice((layer - source) * width, (layer - source + 1) * width)
            scaled = self._scaled_for_decoding(self.features_of_hook(source), acts)
            written = written + scaled @ decoders[source][:, columns]
        return written

    def _scaled_for_decoding(self, here: slice, acts: Tensor) -> Tensor:
        return acts * self.finetuning_scaling_factor[here] if self._is_finetuned() else acts

    def _is_finetuned(self) -> bool:
        return bool(self.cfg.finetuning_scaling_factor)

    # -- files ------------------------------------------------------------------------------------

    def process_state_dict_for_saving(self, state_dict: dict[str, Any]) -> None:
        """Files have an axis for the layers, and a decoder for each of them."""
        layers, width, d = self.n_hooks, self.d_in_of_hook, self.d_sae_of_hook
        state_dict["W_enc"] = state_dict["W_enc"].unflatten(0, (layers, width))
        state_dict["b_dec"] = state_dict["b_dec"].unflatten(0, (layers, width))
        for name in _PER_FEATURE:
            if name in state_dict:
                state_dict[name] = state_dict[name].unflatten(0, (layers, d))
        rows = state_dict.pop("W_dec").split([d * (layers - layer) for layer in range(layers)])
        for layer, block in enumerate(rows):
            decoder = block.unflatten(0, (d, layers - layer))
            state_dict[f"W_dec_{layer}"] = decoder.clone()  # files take no parts of a tensor

    def process_state_dict_for_loading(self, state_dict: dict[str, Any]) -> None:
        """Counterpart of `process_state_dict_for_saving`; what is not there is left to complain."""
        super().process_state_dict_for_loading(state_dict)
        for name in ("W_enc", "b_dec", *_PER_FEATURE):
            if (
                name in state_dict
                and state_dict[name].ndim > 1
                and len(state_dict[name]) == self.n_hooks
            ):
                state_dict[name] = state_dict[name].flatten(0, 1)
        names = [f"W_dec_{layer}" for layer in range(self.n_hooks)]
        if all(name in state_dict for name in names):
            decoders = [state_dict.pop(name).flatten(0, 1) for name in names]
            state_dict["W_dec"] = torch.cat(decoders)


class LayerTopK(TopK):
    """The k largest of each token in each layer."""

    def __init__(self, k: int, n_layers: int):
        super().__init__(k)
        self.n_layers = n_layers

    def forward(self, x: Tensor) -> Tensor:
        """Select in the last dimension of [..., features of a layer], or of all layers."""
        return super().forward(x.unflatten(-1, (self.n_layers, -1))).flatten(-2)


@dataclass(kw_only=True)
class CrossLayerTranscoderConfig(CrossLayerFields, ArchitectureSAEConfig):
    """Config of a `CrossLayerTranscoder`."""

    architecture: str = "cross_layer_transcoder"


@dataclass(kw_only=True)
class JumpReLUCrossLayerTranscoderConfig(CrossLayerFields, JumpReLUSAEConfig):
    """Config of a `JumpReLUCrossLayerTranscoder`."""

    architecture: str = "jumprelu_cross_layer_transcoder"


@dataclass(kw_only=True)
class TopKCrossLayerTranscoderConfig(CrossLayerFields, TopKSAEConfig):
    """Config of a `TopKCrossLayerTranscoder`; k features per token and layer."""

    architecture: str = "topk_cross_layer_transcoder"

    nested_keys: ClassVar[tuple[str, ...]] = (*TopKSAEConfig.nested_keys, *CLT_KEYS)


class CrossLayerTranscoder(CrossLayerMaps, StandardSAE):
    """Features by ReLU."""

    architecture = "cross_layer_transcoder"


class ThresholdsByLayer(CrossLayerMaps):
    """Features of a layer by thresholds."""

    threshold: Any

    def activate_hook(self, here: slice, hidden_pre: Tensor) -> Tensor:
        """Those above their thresholds."""
        above = (hidden_pre > self.threshold[here]).to(hidden_pre.dtype)
        return torch.relu(hidden_pre) * above


class JumpReLUCrossLayerTranscoder(ThresholdsByLayer, JumpReLUSAE):
    """Features by thresholds."""

    architecture = "jumprelu_cross_layer_transcoder"


class RankedByDecoderNorm(CrossLayerMaps):
    """Layer by layer what selecting by pre-activation times decoder norm changes."""

    def ranked(self, here: slice, hidden_pre: Tensor) -> Tensor:
        """By what features of a layer are selected."""
        if not getattr(self, "rescales_acts", False):
            return hidden_pre
        return hidden_pre * self.decoder_norms()[here]

    def _scaled_for_decoding(self, here: slice, acts: Tensor) -> Tensor:
        acts = super()._scaled_for_decoding(here, acts)
        if not getattr(self, "rescales_acts", False):
            return acts
        return acts / divisors(self.decoder_norms()[here])


class TopKByLayer(RankedByDecoderNorm):
    """The k largest of each token in each layer, so that a layer need not know of later ones."""

    def _make_activation_fn(self) -> TopK:
        return LayerTopK(int(self.cfg.activation_fn_kwargs["k"]), self.n_hooks)

    def activate_hook(self, here: slice, hidden_pre: Tensor) -> Tensor:
        """The k largest of one layer."""
        assert isinstance(self.activation_fn, LayerTopK)
        return TopK.forward(self.activation_fn, self.ranked(here, hidden_pre))


class TopKCrossLayerTranscoder(TopKByLayer, TopKSAE):
    """The k largest activations of each token in each layer."""

    architecture = "topk_cross_layer_transcoder"


for _sae_class, _config_class in (
    (CrossLayerTranscoder, CrossLayerTranscoderConfig),
    (JumpReLUCrossLayerTranscoder, JumpReLUCrossLayerTranscoderConfig),
    (TopKCrossLayerTranscoder, TopKCrossLayerTranscoderConfig),
):
    register_sae_class(_sae_class.architecture, _sae_class, _config_class)
