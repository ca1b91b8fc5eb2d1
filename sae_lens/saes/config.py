"""Configs of SAEs: the flat 5.x dataclass, and the bases of the per-architecture 6.x ones.

A flat config (`SAEConfig`, `TrainingSAEConfig`) names its architecture in a field and carries the
facts about model, hook and data as fields. A per-architecture config (`TopKSAEConfig` and so on,
beside the class that reads it) presets the architecture and needs only `d_in` and `d_sae`. Both are
`SAEConfig`s, both show the same facts through `cfg.metadata`.
"""

from __future__ import annotations

from dataclasses import InitVar, dataclass, field, fields
from typing import Any, ClassVar, Literal

from sae_lens.hook_names import is_hook_z, layer_of
from sae_lens.loading.migrations import flatten_config, is_nested_config
from sae_lens.registry import SAE_CLASSES, get_sae_training_class
from sae_lens.saes.config_dicts import (
    BASE_KEYS,
    FLAT_ARCHITECTURES,
    FLAT_EXTRA_METADATA,
    WritesItself,
)
from sae_lens.saes.metadata import METADATA_FIELDS, SAEMetadata


class Architecture(str):
    """The name of an architecture: a string that may also be called, as 6.x does."""

    def __call__(self) -> str:
        """The name as a plain string."""
        return str(self)


@dataclass
class SAEConfig(WritesItself):
    """What an SAE is, and on what it was trained.

    Attributes:
        architecture: "standard", "gated", "jumprelu", "topk", or another registered name.
        d_in: width of the activations (heads times head width for `hook_z`).
        d_sae: number of features.
        activation_fn_str: "relu", "tanh-relu" or "topk".
        apply_b_dec_to_input: whether the decoder bias is subtracted before encoding.
        finetuning_scaling_factor: whether features are scaled before decoding.
        context_size: tokens per prompt during training.
        model_name: the language model.
        hook_name: the hook whose activations are encoded.
        hook_layer: layer after which a forward pass may stop.
        hook_head_index: the single head that was used, or None.
        prepend_bos: whether prompts began with a beginning-of-sequence token.
        dataset_path: the training data.
        dataset_trust_remote_code: whether loading that data needed code from its repository.
        normalize_activations: "none", "expected_average_only_in", "constant_norm_rescale",
            "layer_norm" or "whitening".
        dtype: name of the weights' dtype.
        device: name of the weights' device.
        sae_lens_training_version: version of the library that trained the SAE.
        activation_fn_kwargs: arguments of the activation function, `{"k": 32}` for topk.
        neuronpedia_id: id under which the features can be looked at.
        model_from_pretrained_kwargs: how the language model was loaded.
        seqpos_slice: arguments of `slice` that chose the positions.
    """

    architecture: str
    d_in: int
    d_sae: int
    activation_fn_str: str
    apply_b_dec_to_input: bool
    finetuning_scaling_factor: bool
    context_size: int | None
    model_name: str | None
    hook_name: str
    hook_layer: int | None
    hook_head_index: int | None
    prepend_bos: bool
    dataset_path: str | None
    dataset_trust_remote_code: bool | None
    normalize_activations: str
    dtype: str
    device: str
    sae_lens_training_version: str | None
    activation_fn_kwargs: dict[str, Any] = field(default_factory=dict)
    neuronpedia_id: str | None = None
    model_from_pretrained_kwargs: dict[str, Any] = field(default_factory=dict)
    seqpos_slice: tuple[int | None, ...] = (None,)

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "architecture":
            value = Architecture(value() if callable(value) else value)
        elif name in ("dtype", "device") and value is not None:
            value = str(value)
        object.__setattr__(self, name, value)

    @property
    def extra_metadata(self) -> dict[str, Any]:
        """Metadata that is no field of the config."""
        return self.__dict__.setdefault("_extra_metadata", {})

    @property
    def metadata(self) -> SAEMetadata:
        """A writable view of the facts about model, hook and data."""
        return SAEMetadata.of(self)

    @metadata.setter
    def metadata(self, facts: SAEMetadata | dict[str, Any]) -> None:
        self._take_metadata(facts)

    def _take_metadata(self, facts: SAEMetadata | dict[str, Any]) -> None:
        facts = facts.to_dict() if isinstance(facts, SAEMetadata) else dict(facts)
        view = SAEMetadata.of(self)
        for name, value in facts.items():
            view[name] = value
        if facts.get("hook_name") and getattr(self, "hook_layer", None) is None:
            self.hook_layer = layer_of(facts["hook_name"])

    @property
    def reshape_activations(self) -> str:
        """Whether inputs have a head axis: "hook_z" or "none"; by the hook's name unless set."""
        chosen = self.__dict__.get("_reshape_activations")
        return chosen or ("hook_z" if is_hook_z(self.hook_name or "") else "none")

    @reshape_activations.setter
    def reshape_activations(self, value: str) -> None:
        if value not in ("none", "hook_z"):
            raise ValueError(f"reshape_activations is {value!r}; allowed are 'none' and 'hook_z'.")
        self.__dict__["_reshape_activations"] = value

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any]) -> SAEConfig:
        """Build a config from a flat or nested dict of any age; unknown keys are dropped.

        A nested dict, or one of an architecture that flat files do not know, gives the
        architecture's own config class.

        Raises:
            TypeError: when a required field is missing.
        """
        target: type[SAEConfig] = cls
        architecture = config_dict.get("architecture", "standard")
        if cls is SAEConfig and (
            is_nested_config(config_dict) or architecture not in FLAT_ARCHITECTURES
        ):
            registered = SAE_CLASSES.get(architecture)
            target = registered.config_class if registered is not None else cls
        return target._from_flat(flatten_config(config_dict))

    @classmethod
    def _from_flat(cls, flat: dict[str, Any]) -> Any:
        names = {f.name for f in fields(cls) if f.init}
        values = {name: value for name, value in flat.items() if name in names}
        if "seqpos_slice" in values:
            values["seqpos_slice"] = _as_tuple(values["seqpos_slice"])
        extra = dict(flat.get("metadata") or {})
        config = cls(**values)
        for name in FLAT_EXTRA_METADATA:
            if flat.get(name) is not None:
                extra.setdefault(name, flat[name])
        for name, value in extra.items():
            if name not in METADATA_FIELDS and name != "sae_lens_version":
                config.extra_metadata[name] = value
        if flat.get("reshape_activations"):
            config.reshape_activations = flat["reshape_activations"]
        return config


@dataclass
class TrainingSAEConfig(SAEConfig):
    """An `SAEConfig` and how the SAE is initialised and trained.

    Attributes:
        l1_coefficient: weight of the sparsity term (of the L0 term for jumprelu).
        lp_norm: p of the p-norm in the sparsity term.
        use_ghost_grads: whether dead features of a standard SAE get ghost gradients.
        normalize_sae_decoder: whether decoder rows are kept at unit norm.
        noise_scale: standard deviation of the noise on pre-activations while training.
        decoder_orthogonal_init: start with an orthogonal decoder.
        mse_loss_normalization: None or "dense_batch".
        jumprelu_init_threshold: first threshold of a jumprelu SAE.
        jumprelu_bandwidth: width of the window of the threshold's pseudo-gradient.
        decoder_heuristic_init: start with random decoder rows of one norm.
        decoder_heuristic_init_norm: that norm.
        init_encoder_as_decoder_transpose: start with `W_enc = W_dec.T`.
        scale_sparsity_penalty_by_decoder_norm: weigh features by their decoder norm in the
            sparsity term.
    """

    l1_coefficient: float = field(default=1e-3, kw_only=True)
    lp_norm: float = field(default=1, kw_only=True)
    use_ghost_grads: bool = field(default=False, kw_only=True)
    normalize_sae_decoder: bool = field(default=True, kw_only=True)
    noise_scale: float = field(default=0.0, kw_only=True)
    decoder_orthogonal_init: bool = field(default=False, kw_only=True)
    mse_loss_normalization: str | None = field(default=None, kw_only=True)
    jumprelu_init_threshold: float = field(default=0.001, kw_only=True)
    jumprelu_bandwidth: float = field(default=0.001, kw_only=True)
    decoder_heuristic_init: bool = field(default=False, kw_only=True)
    decoder_heuristic_init_norm: float = field(default=0.1, kw_only=True)
    init_encoder_as_decoder_transpose: bool = field(default=False, kw_only=True)
    scale_sparsity_penalty_by_decoder_norm: bool = field(default=False, kw_only=True)

    #: which formulas train: "v5" for flat configs, "v6" for the per-architecture ones
    form: ClassVar[Literal["v5", "v6"]] = "v5"

    @classmethod
    def from_sae_runner_config(cls, cfg: Any) -> TrainingSAEConfig:
        """The part of a runner config that concerns the SAE."""
        return cls.from_dict(cfg.get_training_sae_cfg_dict())

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any]) -> TrainingSAEConfig:
        """Build a config from a dict, which may be a whole runner config's.

        A dict whose `metadata` names a `training_architecture`, or which has no hook at top level,
        gives the per-architecture config, whose formulas are those of 6.x.
        """
        target: type[TrainingSAEConfig] = cls
        if cls is TrainingSAEConfig and trains_in_v6_form(config_dict):
            metadata = config_dict.get("metadata") or {}
            architecture = metadata.get("training_architecture") or config_dict.get(
                "architecture", "standard"
            )
            target = get_sae_training_class(str(architecture)).config_class
            config_dict = {**config_dict, "architecture": architecture}
        flat = flatten_config(config_dict)
        if target.form == "v5" and "finetuning_method" in config_dict:
            flat.setdefault("finetuning_scaling_factor", bool(config_dict["finetuning_method"]))
        if target.form == "v5":
            metadata = flat.pop("metadata", None) or {}
            filters = {name: metadata[name] for name in FLAT_EXTRA_METADATA if name in metadata}
            if filters:
                flat["metadata"] = filters
        return target._from_flat(flat)

    def to_dict(self) -> dict[str, Any]:
        """The dict of `SAEConfig.to_dict` and the training fields."""
        values = super().to_dict()
        base = set(BASE_KEYS)
        for f in fields(self):
            if f.name not in base:
                values[f.name] = getattr(self, f.name)
        return values

    def get_base_sae_cfg_dict(self) -> dict[str, Any]:
        """The 19 keys from which the inference config of this SAE is made."""
        values = {name: getattr(self, name) for name in BASE_KEYS}
        for name in ("neuronpedia_id", "model_from_pretrained_kwargs", "seqpos_slice"):
            del values[name]
        values["architecture"] = str(self.architecture)
        return values


@dataclass(kw_only=True)
class ArchitectureSAEConfig(SAEConfig):
    """Base of the per-architecture configs: everything but `d_in` and `d_sae` has a default.

    `metadata=` takes a `SAEMetadata` or dict of facts about model, hook and data.
    """

    architecture: str = "standard"
    activation_fn_str: str = "relu"
    apply_b_dec_to_input: bool = True
    finetuning_scaling_factor: bool = False
    context_size: int | None = None
    model_name: str | None = None
    hook_name: str = ""
    hook_layer: int | None = None
    hook_head_index: int | None = None
    prepend_bos: bool = True
    dataset_path: str | None = None
    dataset_trust_remote_code: bool | None = None
    normalize_activations: str = "none"
    dtype: str = "float32"
    device: str = "cpu"
    sae_lens_training_version: str | None = None
    metadata: InitVar[Any] = None
    reshape_activations: InitVar[str | None] = None

    def __post_init__(self, metadata: Any, reshape_activations: str | None) -> None:
        if metadata is not None:
            self._take_metadata(metadata)
        if self.hook_layer is None and self.hook_name:
            self.hook_layer = layer_of(self.hook_name)
        if reshape_activations is not None:
            setattr(self, "reshape_activations", reshape_activations)  # noqa: B010  (a property)

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any]) -> Any:
        """Build this class's config from a flat or nested dict."""
        return cls._from_flat(flatten_config({"architecture": cls.architecture, **config_dict}))


# The dataclass machinery replaced both properties by the default of the init-only argument of the
# same name.
ArchitectureSAEConfig.metadata = SAEConfig.metadata  # type: ignore[assignment]
ArchitectureSAEConfig.reshape_activations = SAEConfig.reshape_activations  # type: ignore[assignment]


@dataclass(kw_only=True)
class ArchitectureTrainingSAEConfig(ArchitectureSAEConfig, TrainingSAEConfig):
    """Base of the per-architecture training configs, whose formulas are those of 6.x.

    Attributes:
        decoder_init_norm: norm of the decoder rows at the start, with the encoder as the decoder's
            transpose; None leaves both as drawn.
    """

    l1_coefficient: float = 1.0
    normalize_sae_decoder: bool = False
    scale_sparsity_penalty_by_decoder_norm: bool = True
    decoder_init_norm: float | None = 0.1

    form: ClassVar[Literal["v5", "v6"]] = "v6"

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any]) -> Any:
        """Build this class's config from a flat or nested dict."""
        flat = flatten_config({**config_dict, "architecture": cls.architecture})
        return cls._from_flat(flat)

    def _extra_metadata_to_write(self) -> dict[str, Any]:
        return {**self.extra_metadata, "training_architecture": str(self.architecture)}


def trains_in_v6_form(config_dict: dict[str, Any]) -> bool:
    """Whether a dict asks for the 6.x formulas: it says so, or has no hook at top level."""
    metadata = config_dict.get("metadata") or {}
    if metadata.get("training_architecture"):
        return True
    return "hook_name" not in config_dict and "hook_point" not in config_dict


def _as_tuple(value: Any) -> tuple[int | None, ...]:
    if isinstance(value, (list, tuple)):
        return tuple(value)
    return (value,)


__all__ = [
    "Architecture",
    "ArchitectureSAEConfig",
    "ArchitectureTrainingSAEConfig",
    "SAEConfig",
    "SAEMetadata",
    "TrainingSAEConfig",
    "trains_in_v6_form",
]
