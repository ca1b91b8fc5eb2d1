"""How a config is written: flat keys for both ages of readers, and nested ones besides."""

from __future__ import annotations

from dataclasses import fields
from typing import Any, ClassVar

from sae_lens.constants import FILE_FORMAT_VERSION, dtype_name
from sae_lens.hook_names import is_hook_z

# Flat files hold exactly these architectures; the others exist only in the nested format.
FLAT_ARCHITECTURES = ("standard", "gated", "jumprelu", "topk")

# Facts without a field that legacy flat files keep at top level.
FLAT_EXTRA_METADATA = (
    "model_class_name",
    "exclude_special_tokens",
    "hook_name_out",
    "hook_head_index_out",
    "hf_hook_name",
    "hf_hook_name_out",
    "norm_filter_multiple",
    "norm_filter_median",
)

BASE_KEYS = (
    "architecture",
    "d_in",
    "d_sae",
    "dtype",
    "device",
    "model_name",
    "hook_name",
    "hook_layer",
    "hook_head_index",
    "activation_fn_str",
    "activation_fn_kwargs",
    "apply_b_dec_to_input",
    "finetuning_scaling_factor",
    "sae_lens_training_version",
    "prepend_bos",
    "dataset_path",
    "dataset_trust_remote_code",
    "context_size",
    "normalize_activations",
    "neuronpedia_id",
    "model_from_pretrained_kwargs",
    "seqpos_slice",
)


class WritesItself:
    """The part of a config that gives its dicts."""

    architecture: str
    dtype: str
    hook_name: str
    activation_fn_str: str
    activation_fn_kwargs: dict[str, Any]
    model_from_pretrained_kwargs: dict[str, Any]
    normalize_activations: str
    reshape_activations: Any
    metadata: Any
    extra_metadata: Any

    #: keys of the nested format that flat configs do not have, per class
    nested_keys: ClassVar[tuple[str, ...]] = ()

    def to_dict(self) -> dict[str, Any]:
        """A plain dict from which `from_dict` makes an equal config: the 22 flat keys.

        What flat configs cannot say (options of newer architectures, further metadata, a reshaping
        that differs from the hook's name) is added only when it is set.
        """
        values = {name: getattr(self, name) for name in BASE_KEYS}
        values["architecture"] = str(self.architecture)
        values["activation_fn_kwargs"] = dict(self.activation_fn_kwargs or {})
        values["model_from_pretrained_kwargs"] = dict(self.model_from_pretrained_kwargs or {})
        for name in self._nested_keys_that_matter():
            values[name] = getattr(self, name)
        if "_reshape_activations" in self.__dict__ and self.reshape_activations != (
            "hook_z" if is_hook_z(self.hook_name or "") else "none"
        ):
            values["reshape_activations"] = self.reshape_activations
        metadata = self._extra_metadata_to_write()
        if metadata:
            values["metadata"] = metadata
        return values

    def _nested_keys_that_matter(self) -> list[str]:
        flat = self.architecture in FLAT_ARCHITECTURES
        defaults = {f.name: f.default for f in fields(self)}  # type: ignore[arg-type]
        return [
            name
            for name in self.nested_keys
            if name != "k" and not (flat and getattr(self, name) == defaults[name])
        ]

    def _extra_metadata_to_write(self) -> dict[str, Any]:
        return dict(self.extra_metadata)

    def to_file_dict(self) -> dict[str, Any]:
        """The contents of `cfg.json`: flat keys and nested ones, so that both ages read it."""
        values = self.to_dict()
        values["dtype"] = dtype_name(self.dtype)
        values["normalize_activations"] = self.normalize_activations or "none"
        values["reshape_activations"] = self.reshape_activations
        for name in self.nested_keys:
            values[name] = getattr(self, name)
        if self.activation_fn_str == "topk":
            values["k"] = self.activation_fn_kwargs["k"]
            values.setdefault("rescale_acts_by_decoder_norm", False)
            if self.architecture == "standard" and not hasattr(self, "form"):
                # The same function; readers of nested files go by the architecture alone.
                values["architecture"] = "topk"
        metadata = {
            name: value
            for name, value in self.metadata.items()
            if name not in ("hook_layer", "dataset_trust_remote_code") and value is not None
        }
        metadata.update(self._extra_metadata_to_write())
        metadata["sae_lens_version"] = FILE_FORMAT_VERSION
        values["metadata"] = metadata
        return values
