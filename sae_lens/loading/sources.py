"""Where the files of one released SAE come from: a folder on disk, or (see `hub.py`) a repository.

Converters ask a source for files by their names relative to its root and never see paths or URLs.
"""

from __future__ import annotations

import json
import pickle
import struct
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

import numpy as np
import torch
import yaml
from safetensors import SafetensorError, safe_open
from torch import Tensor

from sae_lens.errors import SAELoadError


class Source(Protocol):
    """The files of one SAE: those at and around `path` below a root."""

    #: repository id, or the root folder's path
    name: str
    #: what the registry says about this SAE: a folder or a file below the root
    path: str

    def file(self, name: str) -> Path:
        """A local path with the contents of file `name`; `FileNotFoundError` without it."""
        ...

    def optional_file(self, name: str) -> Path | None:
        """As `file`, but None when the file does not exist."""
        ...

    def shapes(self, name: str) -> dict[str, tuple[int, ...]]:
        """Tensor shapes of a safetensors file, from its header alone."""
        ...


class FolderSource:
    """A folder on disk, or a file in one."""

    def __init__(self, root: str | Path, path: str = "") -> None:
        self.root = Path(root)
        self.name = str(root)
        self.path = path

    def file(self, name: str) -> Path:
        """The file below the root; `FileNotFoundError` when it is missing."""
        found = self.optional_file(name)
        if found is None:
            raise FileNotFoundError(f"{self.root / name} is missing.")
        return found

    def optional_file(self, name: str) -> Path | None:
        """The file below the root, or None."""
        found = self.root / checked_name(name)
        return found if found.is_file() else None

    def shapes(self, name: str) -> dict[str, tuple[int, ...]]:
        """Tensor shapes from the file's header."""
        return safetensors_shapes(self.file(name))


def checked_name(name: str) -> str:
    """`name` as a relative POSIX path that stays below its root.

    Raises:
        ValueError: for an absolute path, a drive, or a part `..`.
    """
    parts = PurePosixPath(name.replace("\\", "/"))
    if parts.is_absolute() or ".." in parts.parts or ":" in (parts.parts or ("",))[0]:
        raise ValueError(
            f"{name!r} is not a path inside the repository: it must be relative and without '..'."
        )
    return str(parts)


def join(*parts: str) -> str:
    """Path parts joined by slashes, without empty and `.` parts."""
    return "/".join(part.strip("/") for part in parts if part.strip("/") not in ("", "."))


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; `SAELoadError` for anything else."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise SAELoadError(f"{path} is not valid JSON: {error}") from error
    return _mapping(value, path)


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML mapping, read without constructing objects; `SAELoadError` for anything else."""
    try:
        value = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise SAELoadError(f"{path} is not plain YAML: {error}") from error
    return _mapping(value, path)


def _mapping(value: Any, path: Path) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise SAELoadError(f"{path} holds a {type(value).__name__}; a mapping is needed.")
    return value


class Tensors(Mapping[str, Tensor]):
    """Named tensors of a file, read when asked for and not kept.

    Taking each tensor once, and letting go of it once it is converted, is what keeps loading at the
    size of the weights plus one tensor.
    """

    def __init__(
        self, tensors: Mapping[str, Tensor], where: str | Path = "the given tensors"
    ) -> None:
        self.tensors = tensors
        self.where = where

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)

    def take(self, *names: str) -> Tensor:
        """The first of `names` that is there, removed where it was held in memory.

        Raises:
            SAELoadError: when there is none; the message lists what the file holds.
        """
        for name in names:
            if name in self.tensors:
                if isinstance(self.tensors, dict):
                    return self.tensors.pop(name)
                return self.tensors[name]
        raise SAELoadError(
            f"{self.where} has no tensor {' or '.join(map(repr, names))}; "
            f"it holds {', '.join(map(repr, sorted(self.tensors)))}."
        )


class _SafetensorsFile(Mapping[str, Tensor]):
    def __init__(self, path: Path, device: str) -> None:
        self.path, self.device = path, device
        self.names = list(safetensors_shapes(path))

    def __getitem__(self, name: str) -> Tensor:
        if name not in self.names:
            raise KeyError(name)
        try:
            with safe_open(str(self.path), framework="pt", device=self.device) as file:
                return file.get_tensor(name)
        except SafetensorError as error:
            raise SAELoadError(f"{self.path} cannot be read ({error}).") from error

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)


class _NumpyFile(Mapping[str, Tensor]):
    def __init__(self, path: Path) -> None:
        self.path = path
        if not zipfile.is_zipfile(path):
            raise SAELoadError(f"{path} is not an npz archive; it may be truncated.")
        with self._open() as archive:
            self.names = list(archive.files)

    @contextmanager
    def _open(self) -> Iterator[Any]:
        # Opened here, because numpy leaves a damaged file open.
        with open(self.path, "rb") as file:
            try:
                # Arrays of Python objects would be pickles; they are refused.
                archive = np.load(file, allow_pickle=False)
            except (ValueError, OSError, NotImplementedError, zipfile.BadZipFile) as error:
                raise SAELoadError(f"{self.path} is no sound npz archive ({error}).") from error
            with archive:
                yield archive

    def __getitem__(self, name: str) -> Tensor:
        if name not in self.names:
            raise KeyError(name)
        try:
            with self._open() as archive:
                return torch.from_numpy(archive[name])
        except (ValueError, TypeError, zipfile.BadZipFile) as error:
            raise SAELoadError(f"{self.path} cannot be read at {name!r} ({error}).") from error

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)


def read_safetensors_lazily(path: Path, device: str = "cpu") -> Tensors:
    """The tensors of a safetensors file; each is read from disk when it is asked for."""
    return Tensors(_SafetensorsFile(path, device), path)


def read_npz(path: Path) -> Tensors:
    """The arrays of an npz archive; pickled ones are refused."""
    return Tensors(_NumpyFile(path), path)


def read_torch_file(path: Path) -> Tensors:
    """The tensors of a file written by `torch.save`, unpickled without running any code of it.

    A checkpoint that nests its tensors under `state_dict` is unwrapped.

    Raises:
        SAELoadError: for a file that holds anything but tensors and plain values, or no tensors.
    """
    content = _torch_load(path)
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]
    if not isinstance(content, Mapping):
        raise SAELoadError(f"{path} holds a {type(content).__name__}; a dict of tensors is needed.")
    return Tensors({str(k): v for k, v in content.items() if isinstance(v, Tensor)}, path)


def read_torch_values(path: Path) -> dict[str, Any]:
    """Everything in a dict written by `torch.save`, plain values included."""
    content = _torch_load(path)
    if not isinstance(content, Mapping):
        raise SAELoadError(f"{path} holds a {type(content).__name__}; a dict is needed.")
    return {str(key): value for key, value in content.items()}


def _torch_load(path: Path) -> Any:
    try:
        # Read rather than mapped: tensors that are converted and let go of then free their memory.
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise SAELoadError(
            f"{path} is refused: reading it would run code stored in the file (it is a pickle with "
            f"more than tensors and plain values). {_first_line(error)}"
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise SAELoadError(
            f"{path} cannot be read as a torch file ({_first_line(error)}); "
            "it may be truncated or of another format."
        ) from error


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0]


def safetensors_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Tensor shapes of a safetensors file: 8 bytes of length, a JSON header, then the data.

    Raises:
        SAELoadError: for a file whose header is not whole or contradicts the file's size.
    """
    size = path.stat().st_size
    try:
        with open(path, "rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > size:
                raise ValueError(f"the header is said to have {length} bytes")
            header = json.loads(file.read(length))
        shapes = {name: tuple(v["shape"]) for name, v in header.items() if name != "__metadata__"}
        ends = [v["data_offsets"][1] for name, v in header.items() if name != "__metadata__"]
    except (ValueError, struct.error, KeyError, TypeError, AttributeError) as error:
        raise SAELoadError(
            f"{path} is not a safetensors file ({error}); it may be truncated or of another format."
        ) from error
    missing = 8 + length + max(ends, default=0) - size
    if missing > 0:
        raise SAELoadError(
            f"{path} is truncated: {missing} of its {size + missing} bytes are missing."
        )
    return shapes
