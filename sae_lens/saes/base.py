"""`SAE`: the interface of every sparse autoencoder, and what they all do the same way.

An architecture fills in `initialize_weights`, `encode` and `fold_W_dec_norm`, one file each.
`SAE(cfg)` gives an instance of the class registered for `cfg.architecture`.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sae_lens.constants import DTYPE_MAP
from sae_lens.errors import SAELoadError, stumbling_over
from sae_lens.hook_names import is_hook_z
from sae_lens.loading.disk import sae_lens_disk_loader
from sae_lens.loading.inference_form import inference_form
from sae_lens.registry import get_sae_class
from sae_lens.saes.activation_fns import get_activation_fn
from sae_lens.saes.config import SAEConfig
from sae_lens.saes.files import write_sae_folder
from sae_lens.saes.hooks import (
    HookedRootModule,
    HookPoint,
    add_hook_points,
    has_active_hooks,
    hooks_disabled,
)
from sae_lens.saes.normalization import NormStats, denormalize, normalize
from sae_lens.saes.weights import (
    constant_parameter,
    decoder_norms_for_folding,
    fold_activation_scale_,
    fold_decoder_norms_,
    kaiming_parameter,
    weights_without_values,
)

if TYPE_CHECKING:
    from typing_extensions import Self

logger = logging.getLogger(__name__)

AnySAE = TypeVar("AnySAE", bound="SAE")
DiskLoader = Callable[..., tuple[dict[str, Any], dict[str, Tensor]]]


class SAE(HookedRootModule):
    """A sparse autoencoder: `d_in` activations to `d_sae` features and back.

    Args:
        cfg: the config; kept as it is, not copied.
        use_error_term: whether `forward` adds what the reconstruction misses, so that its output
            equals its input until a feature is intervened on.

    Raises:
        ValueError: for an unknown architecture or activation function.
    """

    cfg: Any
    W_enc: nn.Parameter
    W_dec: nn.Parameter
    b_enc: nn.Parameter
    b_dec: nn.Parameter
    finetuning_scaling_factor: nn.Parameter
    activation_fn: nn.Module
    hook_sae_input: HookPoint
    hook_sae_acts_pre: HookPoint
    hook_sae_acts_post: HookPoint
    hook_sae_output: HookPoint
    hook_sae_recons: HookPoint
    hook_sae_error: HookPoint

    #: the architecture that a class stands for; empty on `SAE` and `TrainingSAE` themselves
    architecture: str = ""

    def __class_getitem__(cls, _item: Any) -> type[SAE]:
        return cls

    def __new__(cls, cfg: Any = None, *_args: Any, **_kwargs: Any) -> Any:
        """An object of the class that `cfg.architecture` names."""
        variant: Any = cls if cfg is None else cls._class_for(str(cfg.architecture))
        return super().__new__(variant)

    @classmethod
    def _class_for(cls, architecture: str) -> type[SAE]:
        if cls.architecture:
            return cls
        variant = cls._registered_class(architecture)
        if cls in (SAE, *variant.__mro__):
            return variant
        # a subclass by a user of the general class: their methods first, then the architecture's
        return type(cls.__name__, (cls, variant), {"__module__": cls.__module__})

    @classmethod
    def _registered_class(cls, architecture: str) -> type[SAE]:
        return get_sae_class(architecture).sae_class

    def __init__(self, cfg: Any, use_error_term: bool = False):
        super().__init__()
        self.cfg = cfg
        if cfg.model_from_pretrained_kwargs:
            warnings.warn(
                "This SAE was trained on a model loaded with "
                f"model_from_pretrained_kwargs={cfg.model_from_pretrained_kwargs}. Load the model "
                "with HookedSAETransformer.from_pretrained_no_processing and these kwargs, so that "
                "its activations are those the SAE knows.",
                UserWarning,
                stacklevel=2,
            )
        self.activation_fn = self._make_activation_fn()
        if cfg.dtype not in DTYPE_MAP:
            raise KeyError(f"{cfg.dtype!r} is no dtype; allowed are {list(DTYPE_MAP)}.")
        self._initial_dtype = DTYPE_MAP[cfg.dtype]
        self._initial_device = torch.device(cfg.device)
        self.use_error_term = use_error_term
        self.initialize_weights()
        if cfg.finetuning_scaling_factor:
            self.finetuning_scaling_factor = self._vector(cfg.d_sae, 1.0)
        add_hook_points(self)
        # what the last encode needs undone by decode
        self.norm_stats: NormStats | None = None
        self.d_head: int | None = None
        self.hook_z_reshaping_mode = self._reshapes_hook_z(cfg)
        self.setup()

    # -- what an architecture fills in ------------------------------------------------------------

    def initialize_weights(self) -> None:
        """Create the parameters, in state-dict order. Random draws happen in that order."""
        raise NotImplementedError

    def encode(self, x: Float[Tensor, "... d_in"]) -> Float[Tensor, "... d_sae"]:
        """Feature activations of `x`."""
        raise NotImplementedError

    def fold_W_dec_norm(self) -> None:
        """Give the decoder unit rows: features grow by the norms, reconstructions stay the same.

        Rows of zeros are left alone. Does nothing the second time.
        """
        self._fold_decoder_norms(self.b_enc.data)

    # -- encoding and decoding --------------------------------------------------------------------

    def process_sae_in(self, sae_in: Float[Tensor, "..."]) -> Float[Tensor, "... d_in"]:
        """Cast, flatten heads, fire `hook_sae_input`, normalise, subtract the decoder bias."""
        x = self.hook_sae_input(self.reshape_fn_in(sae_in.to(self.dtype)))
        x = self.run_time_activation_norm_fn_in(x)
        return x - self.b_dec if self.cfg.apply_b_dec_to_input else x

    def decode(self, feature_acts: Float[Tensor, "... d_sae"]) -> Float[Tensor, "..."]:
        """Reconstruction from features; undoes the normalisation and reshaping of the last encode.

        Raises:
            ValueError: when the normalisation needs an `encode` first.
        """
        recons = self.apply_finetuning_scaling_factor(feature_acts) @ self.W_dec + self.b_dec
        recons = self.run_time_activation_norm_fn_out(self.hook_sae_recons(recons))
        return self.reshape_fn_out(recons, self.d_head)

    def forward(self, x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Encode and decode; with the error term, plus the error (no gradient) of a clean pass."""
        out = self.decode(self._encode_for_forward(x))
        if self.use_error_term:
            with torch.no_grad():
                target = x.to(out.dtype)
                error = target - self._clean_reconstruction(x, out)
            out = out + self.hook_sae_error(error)
        return self.hook_sae_output(out)

    def _encode_for_forward(self, x: Tensor) -> Tensor:
        return self.encode(x)

    def _clean_encode(self, x: Tensor) -> Tensor:
        """Encode as in inference: no noise."""
        return self.encode(x)

    def _clean_reconstruction(self, x: Tensor, out: Tensor) -> Tensor:
        """The reconstruction without interventions, noise, or a trace in anybody's cache."""
        if not has_active_hooks(self) and not self._forward_is_noisy():
            return out
        with hooks_disabled(self):
            return self.decode(self._clean_encode(x))

    def _forward_is_noisy(self) -> bool:
        return False

    def apply_finetuning_scaling_factor(self, feature_acts: Tensor) -> Tensor:
        """Features times the fine-tuned factor, when the config has one."""
        if self.cfg.finetuning_scaling_factor:
            return feature_acts * self.finetuning_scaling_factor
        return feature_acts

    def run_time_activation_norm_fn_in(self, x: Tensor) -> Tensor:
        """Normalise as `cfg.normalize_activations` says and remember the statistics."""
        x, self.norm_stats = normalize(self.cfg.normalize_activations, x)
        return x

    def run_time_activation_norm_fn_out(self, x: Tensor) -> Tensor:
        """Undo the normalisation of the last encode."""
        return denormalize(self.cfg.normalize_activations, x, self.norm_stats)

    # -- heads ------------------------------------------------------------------------------------

    @staticmethod
    def _reshapes_hook_z(cfg: Any) -> bool:
        chosen = getattr(cfg, "reshape_activations", None)
        return chosen == "hook_z" if chosen is not None else is_hook_z(cfg.hook_name or "")

    def turn_on_forward_pass_hook_z_reshaping(self) -> None:
        """Take `[..., n_heads, d_head]` and give it back. `ValueError` on a hook without heads."""
        if not is_hook_z(self.cfg.hook_name or ""):
            raise ValueError(
                "hook_z reshaping is for hooks whose name ends in '_z', not "
                f"{self.cfg.hook_name!r}."
            )
        self.hook_z_reshaping_mode = True

    def turn_off_forward_pass_hook_z_reshaping(self) -> None:
        """Take and give `[..., d_in]`."""
        self.hook_z_reshaping_mode = False
        self.d_head = None

    def reshape_fn_in(self, x: Tensor) -> Tensor:
        """Flatten heads when reshaping is on. Inputs that are flat already stay as they are."""
        if not self.hook_z_reshaping_mode:
            return x
        if x.shape[-1] == self.cfg.d_in:
            self.d_head = None
            return x
        self.d_head = x.shape[-1]
        return x.flatten(-2)

    def reshape_fn_out(self, x: Tensor, d_head: int | None) -> Tensor:
        """Split the last dimension into heads of width `d_head`, when reshaping is on."""
        if not self.hook_z_reshaping_mode or d_head is None:
            return x
        return x.unflatten(-1, (-1, d_head))

    # -- folds ------------------------------------------------------------------------------------

    def _fold_decoder_norms(self, *per_feature: Tensor) -> None:
        with torch.no_grad():
            norms = decoder_norms_for_folding(self.W_dec.data)
            fold_decoder_norms_(norms, self.W_enc.data, self.W_dec.data, *per_feature)

    def fold_activation_norm_scaling_factor(self, activation_norm_scaling_factor: float) -> None:
        """Make an SAE trained on scaled activations work on raw ones, in place.

        With factor s, afterwards `sae(x) == old_sae(s * x) / s`, and the config says "none".
        """
        with torch.no_grad():
            fold_activation_scale_(
                float(activation_norm_scaling_factor),
                self.W_enc.data,
                self.W_dec.data,
                self.b_dec.data,
            )
        self.cfg.normalize_activations = "none"

    # -- weights ----------------------------------------------------------------------------------

    def _make_activation_fn(self) -> nn.Module:
        return get_activation_fn(
            self.cfg.activation_fn_str, **(self.cfg.activation_fn_kwargs or {})
        )

    def _vector(self, size: int, value: float = 0.0) -> nn.Parameter:
        return constant_parameter(size, value=value, dtype=self.dtype, device=self.device)

    def _matrix(self, rows: int, columns: int) -> nn.Parameter:
        return kaiming_parameter(rows, columns, self.dtype, self.device)

    def initialize_weights_basic(self) -> None:
        """The four parameters of standard and topk SAEs."""
        self.b_enc = self._vector(self.cfg.d_sae)
        self.W_dec = self._matrix(self.cfg.d_sae, self.cfg.d_in)
        self.W_enc = self._matrix(self.cfg.d_in, self.cfg.d_sae)
        self.b_dec = self._vector(self.cfg.d_in)

    def initialize_weights_gated(self) -> None:
        """The parameters of gated SAEs."""
        self.W_enc = self._matrix(self.cfg.d_in, self.cfg.d_sae)
        self.b_gate = self._vector(self.cfg.d_sae)
        self.r_mag = self._vector(self.cfg.d_sae)
        self.b_mag = self._vector(self.cfg.d_sae)
        self.W_dec = self._matrix(self.cfg.d_sae, self.cfg.d_in)
        self.b_dec = self._vector(self.cfg.d_in)

    def initialize_weights_jumprelu(self) -> None:
        """The threshold, then the parameters of standard SAEs."""
        self.threshold = self._vector(self.cfg.d_sae)
        self.initialize_weights_basic()

    # -- the encoders under their 5.x names: every SAE has them all -------------------------------

    def encode_standard(self, x: Tensor) -> Tensor:
        """Encode as a standard (or topk) SAE, whatever the architecture."""
        return get_sae_class("standard").sae_class.encode(self, x)

    def encode_gated(self, x: Tensor) -> Tensor:
        """Encode as a gated SAE; needs its parameters."""
        return get_sae_class("gated").sae_class.encode(self, x)

    def encode_jumprelu(self, x: Tensor) -> Tensor:
        """Encode as a jumprelu SAE; needs its threshold."""
        return get_sae_class("jumprelu").sae_class.encode(self, x)

    # -- dtype and device -------------------------------------------------------------------------

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weights as they are now."""
        W_dec = self._parameters.get("W_dec")
        return self._initial_dtype if W_dec is None else W_dec.dtype

    @dtype.setter
    def dtype(self, dtype: torch.dtype) -> None:
        self.to(dtype=dtype)

    @property
    def device(self) -> torch.device:
        """The device of the weights as they are now."""
        W_dec = self._parameters.get("W_dec")
        return self._initial_device if W_dec is None else W_dec.device

    @device.setter
    def device(self, device: torch.device | str) -> None:
        self.to(device=device)

    def to(self, *args: Any, **kwargs: Any) -> Self:  # type: ignore[override]
        """Move or cast in place, as `nn.Module.to`; `cfg.device` and `cfg.dtype` follow.

        What is given by position and by keyword is taken from the keyword.
        """
        kwargs = {name: value for name, value in kwargs.items() if value is not None}
        if "tensor" in kwargs:
            args = (kwargs.pop("tensor"), *args)
        parse_to = torch._C._nn._parse_to  # type: ignore[attr-defined]
        names = ("device", "dtype", "non_blocking", "memory_format")
        by_position = dict(zip(names, parse_to(*args), strict=True))
        settings = {name: value for name, value in by_position.items() if value is not None}
        settings |= kwargs
        device, dtype, *_ = parse_to(**settings)
        super().to(**settings)
        if device is not None:
            self.cfg.device = str(device)
        if dtype is not None:
            self.cfg.dtype = str(dtype)
        return self

    def _apply(self, fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Self:  # type: ignore[override]
        # .half(), .cuda() and moves of a parent module all pass through here
        module = super()._apply(fn, *args, **kwargs)
        cfg = self.__dict__.get("cfg")
        if cfg is not None and self._parameters.get("W_dec") is not None:
            if DTYPE_MAP.get(cfg.dtype) != self.dtype:
                cfg.dtype = str(self.dtype)
            if torch.device(cfg.device).type != self.device.type:
                cfg.device = str(self.device)
        return module

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        if self.norm_stats is not None:
            scale, shift = self.norm_stats
            state["norm_stats"] = NormStats(
                scale.detach(), None if shift is None else shift.detach()
            )
        return state

    # -- saving and loading -----------------------------------------------------------------------

    def get_name(self) -> str:
        """`sae_{model_name}_{hook_name}_{d_sae}`."""
        return f"sae_{self.cfg.model_name}_{self.cfg.hook_name}_{self.cfg.d_sae}"

    def process_state_dict_for_saving(self, state_dict: dict[str, Any]) -> None:
        """Change `state_dict` in place into what files hold."""

    def process_state_dict_for_loading(self, state_dict: dict[str, Any]) -> None:
        """Change `state_dict` in place from what files hold into this class's parameters."""

    def save_model(
        self, path: str | Path, sparsity: Tensor | None = None
    ) -> tuple[Path, Path] | tuple[Path, Path, Path]:
        """Write weights and config, and `sparsity` if given, into the folder `path`.

        Each file is written beside its target and renamed, so that a reader never sees half of one.

        Returns:
            The paths of weights, config and, if given, sparsity.
        """
        state_dict = dict(self.state_dict())
        self.process_state_dict_for_saving(state_dict)
        return write_sae_folder(path, self._file_config(), state_dict, sparsity)

    def _file_config(self) -> dict[str, Any]:
        to_file_dict = getattr(self.cfg, "to_file_dict", None)
        return to_file_dict() if to_file_dict is not None else self.cfg.to_dict()

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any]) -> Self:
        """A fresh SAE from a config dict."""
        return cls(cls._config_class().from_dict(config_dict))

    @classmethod
    def _config_class(cls) -> type[SAEConfig]:
        if cls.architecture:
            return get_sae_class(cls.architecture).config_class
        return SAEConfig

    @classmethod
    def load_from_disk(
        cls,
        path: str | Path,
        device: str | torch.device = "cpu",
        dtype: str | torch.dtype | None = None,
        converter: DiskLoader = sae_lens_disk_loader,
    ) -> Self:
        """Load an SAE from a folder.

        Args:
            path: the folder.
            device: where the weights go.
            dtype: a name of `DTYPE_MAP` or a torch dtype; None keeps the file's.
            converter: reads another format: `converter(path, device, cfg_overrides)` gives a config
                dict and tensors.

        Raises:
            FileNotFoundError: when the folder or a file in it is missing.
            SAELoadError: when a file is broken, or config and tensors contradict each other.
        """
        overrides: dict[str, Any] = {"device": str(device)}
        if dtype is not None:
            overrides["dtype"] = str(dtype)
        with stumbling_over(path, SAELoadError):
            cfg_dict, state_dict = converter(path, device=device, cfg_overrides=overrides)
            return cls.from_components(cfg_dict, state_dict, source=str(path))

    @classmethod
    def load_from_pretrained(
        cls,
        path: str | Path,
        device: str | torch.device = "cpu",
        dtype: str | torch.dtype | None = None,
    ) -> Self:
        """The older name of `load_from_disk`."""
        return cls.load_from_disk(path, device=device, dtype=dtype)

    @classmethod
    def from_components(
        cls, cfg_dict: dict[str, Any], state_dict: dict[str, Tensor], source: str = "the given dict"
    ) -> Self:
        """An SAE around tensors that are already in memory (they are taken over, not copied).

        Raises:
            SAELoadError: when keys are missing in the config, or names or shapes of the tensors
                differ from what it describes.
        """
        cfg_dict, state_dict = cls._in_own_form(cfg_dict, dict(state_dict), source)
        try:
            config = cls._config_class().from_dict(cfg_dict)
        except TypeError as error:
            raise SAELoadError(f"The config of {source} is incomplete: {error}.") from error
        with weights_without_values():
            sae = cls(config)
        sae.process_state_dict_for_loading(state_dict)
        sae._check_tensors(state_dict, source)
        sae.load_state_dict(state_dict, assign=True)
        for parameter in sae.parameters():
            parameter.requires_grad_(True)
        return sae

    @classmethod
    def _in_own_form(
        cls, cfg_dict: dict[str, Any], state_dict: dict[str, Tensor], source: str
    ) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """What a file says of the SAE as this kind of class has it."""
        return inference_form(cfg_dict, state_dict, source)

    def _check_tensors(self, state_dict: dict[str, Tensor], source: str) -> None:
        expected = {name: tuple(tensor.shape) for name, tensor in self.state_dict().items()}
        found = {name: tuple(tensor.shape) for name, tensor in state_dict.items()}
        if expected == found:
            return
        problems = [f"{name} is missing" for name in expected.keys() - found.keys()]
        problems += [f"{name} is not expected" for name in found.keys() - expected.keys()]
        problems += [
            f"{name} has shape {list(found[name])} instead of {list(expected[name])}"
            for name in expected.keys() & found.keys()
            if expected[name] != found[name]
        ]
        raise SAELoadError(
            f"The tensors of {source} do not fit its config ({self.cfg.architecture}, d_in "
            f"{self.cfg.d_in}, d_sae {self.cfg.d_sae}): {'; '.join(sorted(problems))}."
        )

    @classmethod
    def from_pretrained(
        cls,
        release: str,
        sae_id: str,
        device: str = "cpu",
        force_download: bool = False,
        converter: Any = None,
        dtype: str | torch.dtype | None = None,
    ) -> Any:
        """Load a released SAE by name, or from a Hugging Face repository.

        Args:
            release: a release of the registry, or a repository id (`user/name`).
            sae_id: the SAE in the release, or the folder in the repository.
            device: where the weights go.
            force_download: fetch again what the cache already holds.
            converter: reads the repository's format instead of the registry's choice.
            dtype: cast the weights; None keeps what the format says.

        Returns:
            `(sae, cfg_dict, log_sparsity or None)`, in a tuple that can also be used as the SAE.

        Raises:
            ValueError: for an unknown release or id.
        """
        from sae_lens.saes.pretrained import from_pretrained

        return from_pretrained(cls, release, sae_id, device, force_download, converter, dtype)

    @classmethod
    def from_pretrained_with_cfg_and_sparsity(
        cls,
        release: str,
        sae_id: str,
        device: str = "cpu",
        force_download: bool = False,
        converter: Any = None,
        dtype: str | torch.dtype | None = None,
    ) -> Any:
        """The same tuple as `from_pretrained`, under its 6.x name."""
        return cls.from_pretrained(release, sae_id, device, force_download, converter, dtype)


@contextmanager
def _disable_hooks(sae: SAE) -> Iterator[None]:
    """Swap the SAE's hook points for pass-throughs while inside."""
    with hooks_disabled(sae):
        yield
