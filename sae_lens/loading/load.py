"""From the name of a released SAE to its config and tensors.

release, id -> repository, path, format, overrides      (directory.py)
files       -> config and tensors of ours               (converters/, hub.py)
result      -> completed, cast, checked                 (here)
"""

from __future__ import annotations

import copy
import inspect
import logging
import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sae_lens.constants import DTYPE_MAP, SAE_CFG_FILENAME, SAE_WEIGHTS_FILENAME, dtype_name
from sae_lens.errors import SAELoadError
from sae_lens.loading import directory
from sae_lens.loading.converters import CONVERTERS, Converter
from sae_lens.loading.disk import KEPT_IN_THEIR_DTYPE, settle_scaling_factor
from sae_lens.loading.hub import HubSource, folders_with
from sae_lens.loading.migrations import handle_config_defaulting
from sae_lens.loading.sources import FolderSource, Source

logger = logging.getLogger(__name__)

DEFAULT_FORMAT = "sae_lens"


class LoadedSAE(NamedTuple):
    """An SAE as plain data.

    Attributes:
        cfg_dict: the complete flat config, possibly with keys that the config class lacks.
        state_dict: our tensors, in the config's dtype and on its device.
        log_sparsity: log10 firing frequencies `[d_sae]`, where published.
    """

    cfg_dict: dict[str, Any]
    state_dict: dict[str, Tensor]
    log_sparsity: Tensor | None


class Located(NamedTuple):
    """Where the registry says that an SAE is."""

    repo_id: str
    path: str
    format_name: str
    overrides: dict[str, Any]


def locate(release: str, sae_id: str) -> Located:
    """Look an SAE up in the registry; an unknown `owner/name` is a repository of our own format.

    Raises:
        ValueError: for an unknown release, or an id that the release lacks.
    """
    known = directory.registry().get(release)
    if known is None and "/" not in release:
        raise ValueError(directory.unknown_release_message(release))
    if known is None:
        siblings = directory.find_repository_releases(release)
        if siblings:
            warnings.warn(
                f"The repository {release} belongs to the known release(s) {', '.join(siblings)}. "
                "It is read as a folder of our own format; to load with the right converter, give "
                "the release's name instead.",
                UserWarning,
                stacklevel=2,
            )
    repo_id, path = directory.get_repo_id_and_folder_name(release, sae_id)
    overrides = directory.get_config_overrides(release, sae_id)
    if overrides["neuronpedia_id"] is None:  # then the file's own, if it has one, stays
        del overrides["neuronpedia_id"]
    return Located(repo_id, path, get_conversion_loader_name(release), overrides)


def get_conversion_loader_name(release: Any = None, *, sae_info: Any = None) -> str:
    """Name of the format of a release.

    Args:
        release: the release's name, or its `PretrainedSAELookup`.
        sae_info: the same under the name that 5.2 gave it.

    Raises:
        ValueError: for a format that this version does not know.
    """
    wanted = release if sae_info is None else sae_info
    if isinstance(wanted, str):
        known = directory.registry().get(wanted)
        name = known.conversion_func if known else None
    elif isinstance(wanted, Mapping):
        name = wanted.get("conversion_func")
    else:
        name = getattr(wanted, "conversion_func", None)
    name = name or DEFAULT_FORMAT
    if name not in CONVERTERS:
        raise ValueError(
            f"Conversion func {name!r} not found in NAMED_PRETRAINED_SAE_LOADERS; this version "
            f"knows {', '.join(sorted(CONVERTERS))}."
        )
    return name


def load_pretrained(
    release: str,
    sae_id: str,
    device: str = "cpu",
    force_download: bool = False,
    converter: Callable[..., Any] | str | None = None,
    dtype: str | torch.dtype | None = None,
) -> LoadedSAE:
    """Load a released SAE as plain data. Scaling factors of the registry are not folded here.

    Args:
        release: a release of the registry, or a repository id.
        sae_id: the SAE in the release, or the folder in the repository.
        device: where the tensors go.
        force_download: fetch again what the cache holds.
        converter: a loader that replaces the registry's choice, or the name of a known format.
        dtype: cast the tensors; None keeps what the format says.

    Raises:
        ValueError: unknown release, id, format or dtype.
        FileNotFoundError: the repository lacks the files; the message says which were looked for.
        SAELoadError: a file is damaged, refused, or contradicts itself; or weights are NaN.
    """
    located = locate(release, sae_id)
    overrides = {**located.overrides, "device": str(device)}
    if dtype is not None:
        overrides["dtype"] = checked_dtype_name(dtype)
    loader = _loader_of(converter if converter is not None else located.format_name)
    try:
        result = loader(
            located.repo_id,
            located.path,
            device=str(device),
            force_download=force_download,
            cfg_overrides=overrides,
        )
    except FileNotFoundError as error:
        raise _with_hint(error, located, sae_id) from error
    cfg_dict, state_dict, *rest = result
    cfg_dict = handle_config_defaulting(cfg_dict)
    _distrust(cfg_dict, f"{located.repo_id}/{located.path}")
    cfg_dict["device"] = str(device)
    if dtype is not None:
        cfg_dict["dtype"] = checked_dtype_name(dtype)
        state_dict = gather_tensors(state_dict.items(), cfg_dict, str(device), located.repo_id)
    _check_values(state_dict, f"{located.repo_id}/{located.path}")
    return LoadedSAE(cfg_dict, state_dict, rest[0] if rest else None)


def load_sae_config_from_huggingface(
    release: str, sae_id: str, device: str = "cpu", force_download: bool = False
) -> dict[str, Any]:
    """The completed config of a released SAE, without fetching its weights.

    Raises:
        ValueError: unknown release, id or format.
        FileNotFoundError: the repository lacks the files.
    """
    located = locate(release, sae_id)
    try:
        cfg_dict = config_from_source(
            CONVERTERS[located.format_name],
            _source(located, force_download),
            {**located.overrides, "device": str(device)},
        )
    except FileNotFoundError as error:
        raise _with_hint(error, located, sae_id) from error
    _distrust(cfg_dict, f"{located.repo_id}/{located.path}")
    return handle_config_defaulting(cfg_dict)


def config_from_source(
    converter: Converter, source: Source, overrides: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """A converter's config with overrides laid over it, in nested configs too."""
    return apply_overrides(converter.read_config(source), overrides)


def components_from_source(
    converter: Converter,
    source: Source,
    device: str = "cpu",
    overrides: Mapping[str, Any] | None = None,
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Config and tensors; the latter are read, converted and cast one after the other."""
    cfg_dict = config_from_source(converter, source, {**(overrides or {}), "device": str(device)})
    where = f"{source.name}/{source.path}"
    state_dict = gather_tensors(
        converter.read_tensors(source, cfg_dict, str(device)), cfg_dict, str(device), where
    )
    settle_scaling_factor(cfg_dict, state_dict, where)
    return cfg_dict, state_dict


def apply_overrides(
    cfg_dict: dict[str, Any], overrides: Mapping[str, Any] | None
) -> dict[str, Any]:
    """Lay `overrides` over a flat config and over the nested `metadata` that it may carry."""
    overrides = dict(overrides or {})
    cfg_dict.update(copy.deepcopy(overrides))
    metadata = cfg_dict.get("metadata")
    if isinstance(metadata, dict):
        facts = {k: v for k, v in overrides.items() if k not in ("device", "dtype")}
        structural = ("d_in", "d_sae", "architecture", "normalize_activations")
        metadata.update({k: v for k, v in facts.items() if k not in structural})
    return cfg_dict


def gather_tensors(
    tensors: Iterable[tuple[str, Tensor]], cfg_dict: Mapping[str, Any], device: str, where: str
) -> dict[str, Tensor]:
    """Cast and move tensors one by one, so that never more than one exists twice."""
    if "dtype" not in cfg_dict:
        raise SAELoadError(f"The config of {where} names no dtype.")
    dtype = DTYPE_MAP[checked_dtype_name(cfg_dict["dtype"])]
    gathered: dict[str, Tensor] = {}
    for name, tensor in tensors:
        wanted = tensor.dtype if name in KEPT_IN_THEIR_DTYPE else dtype
        gathered[name] = tensor.to(device=device, dtype=wanted).contiguous()
        del tensor
    return gathered


def checked_dtype_name(dtype: str | torch.dtype) -> str:
    """The short name of a dtype; `ValueError` for one that SAEs do not come in."""
    name = dtype_name(dtype)
    if name not in DTYPE_MAP:
        allowed = ", ".join(known for known in DTYPE_MAP if "." not in known)
        raise SAELoadError(f"The dtype {name!r} is not one of {allowed}.")
    return name


def huggingface_loader(converter: Converter) -> Callable[..., Any]:
    """The function that loads a format from a repository."""

    def load(
        repo_id: str,
        folder_name: str,
        device: str = "cpu",
        force_download: bool = False,
        cfg_overrides: dict[str, Any] | None = None,
    ) -> tuple[dict[str, Any], dict[str, Tensor], Tensor | None]:
        overrides = dict(cfg_overrides or {})
        source = HubSource(repo_id, folder_name, force_download, overrides.pop("revision", None))
        cfg_dict, state_dict = components_from_source(converter, source, device, overrides)
        sparsity = converter.read_sparsity(source) if converter.read_sparsity else None
        return cfg_dict, state_dict, sparsity

    load.__doc__ = (
        f"Load an SAE in the format {converter.name!r}: (config, tensors, log sparsity or None)."
    )
    return load


def huggingface_config_loader(converter: Converter) -> Callable[..., dict[str, Any]]:
    """The function that reads the config of a format from a repository."""

    def load_config(
        repo_id: str,
        folder_name: str,
        device: str | None = None,
        force_download: bool = False,
        cfg_overrides: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        overrides = dict(cfg_overrides or {})
        source = HubSource(repo_id, folder_name, force_download, overrides.pop("revision", None))
        if device is not None:
            overrides["device"] = str(device)
        return config_from_source(converter, source, overrides)

    load_config.__doc__ = f"Read the config of an SAE in the format {converter.name!r}."
    return load_config


def disk_loader(converter: Converter) -> Callable[..., Any]:
    """The function that loads a format from a folder (or a file) on disk."""

    def load(
        path: str | Path, device: str = "cpu", cfg_overrides: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Tensor]]:
        path = Path(path)
        source = FolderSource(path.parent, path.name)
        cfg_dict, state_dict = components_from_source(converter, source, device, cfg_overrides)
        return handle_config_defaulting(cfg_dict), state_dict

    load.__doc__ = f"Load an SAE in the format {converter.name!r} from disk: (config, tensors)."
    return load


def disk_config_loader(converter: Converter) -> Callable[..., dict[str, Any]]:
    """The function that reads the config of a format from disk."""

    def load_config(
        path: str | Path, device: str | None = None, cfg_overrides: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        path = Path(path)
        overrides = dict(cfg_overrides or {})
        if device is not None:
            overrides["device"] = str(device)
        return config_from_source(converter, FolderSource(path.parent, path.name), overrides)

    load_config.__doc__ = f"Read the config of an SAE in the format {converter.name!r} from disk."
    return load_config


def _source(located: Located, force_download: bool) -> HubSource:
    revision = located.overrides.pop("revision", None)
    return HubSource(located.repo_id, located.path, force_download, revision)


def _loader_of(chosen: Callable[..., Any] | str) -> Callable[..., Any]:
    if not isinstance(chosen, str):
        return _tolerant(chosen)
    if chosen not in CONVERTERS:
        raise ValueError(
            f"Unknown converter {chosen!r}; this version knows {', '.join(sorted(CONVERTERS))}."
        )
    return huggingface_loader(CONVERTERS[chosen])


def _tolerant(loader: Callable[..., Any]) -> Callable[..., Any]:
    """A user's loader may leave out arguments that it has no use for."""
    try:
        parameters = inspect.signature(loader).parameters.values()
    except (TypeError, ValueError):
        return loader
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return loader
    names = {p.name for p in parameters}

    def call(repo_id: str, folder_name: str, **options: Any) -> Any:
        return loader(repo_id, folder_name, **{k: v for k, v in options.items() if k in names})

    return call


def _with_hint(error: FileNotFoundError, located: Located, sae_id: str) -> FileNotFoundError:
    """The error with which files were looked for, and which folders would have had them."""
    message = str(error)
    if located.format_name == DEFAULT_FORMAT and "no file" in message:
        message += (
            f" An SAE of our format is a folder with {SAE_CFG_FILENAME} and "
            f"{SAE_WEIGHTS_FILENAME}; looked in {sae_id!r}."
        )
        folders = folders_with(located.repo_id, SAE_CFG_FILENAME)
        if folders:
            message += f" Folders that hold one: {', '.join(map(repr, folders))}."
    return type(error)(message)


def _distrust(cfg_dict: dict[str, Any], where: str) -> None:
    """A downloaded config cannot have code run: every `trust_remote_code` in it is ignored."""
    places = [cfg_dict, cfg_dict.get("metadata") or {}]
    for place in places:
        kwargs = place.get("model_from_pretrained_kwargs")
        if isinstance(kwargs, dict) and kwargs.pop("trust_remote_code", False):
            warnings.warn(
                f"The config of {where} asks for trust_remote_code when its model is loaded; that "
                "is ignored. Pass it yourself if you trust the model's code.",
                UserWarning,
                stacklevel=3,
            )
        if place.get("dataset_trust_remote_code"):
            place["dataset_trust_remote_code"] = False


def _check_values(state_dict: Mapping[str, Tensor], where: str) -> None:
    for name, tensor in state_dict.items():
        # The minimum of a tensor with a NaN is NaN; unlike isnan() it needs no memory.
        if tensor.is_floating_point() and tensor.numel() and bool(tensor.amin().isnan()):
            raise SAELoadError(
                f"{name} of {where} holds NaN, so the SAE would give NaN for every input."
            )
