"""The files that make a checkpoint one to go on from: safetensors and JSON, nothing pickled.

`resume_state.safetensors` holds the tensors of a state, `resume_state.json` everything else about
it, the run's config, and the SHA-256 of every file of the folder. It is written last, so a folder
that has it is complete, and reading begins by comparing the checksums.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from sae_lens.atomic_files import atomic_save_safetensors, atomic_write_json
from sae_lens.saes.files import jsonable

RESUME_TENSORS_FILENAME = "resume_state.safetensors"
RESUME_INDEX_FILENAME = "resume_state.json"
RESUME_FORMAT = 1

_OWN_CHECKSUM = "index_sha256"
_BYTES_PER_READ = 1 << 20


class DamagedCheckpointError(OSError, ValueError):
    """A checkpoint with a file that is missing, cut off or changed; the message names the file."""


@dataclass
class ResumableCheckpoint:
    """What a run goes on from.

    Attributes:
        folder: the checkpoint's folder.
        state: the state as it was given to `write_resume_files`.
        config: the run's config as plain values.
        n_training_tokens: how far the run was.
    """

    folder: Path
    state: dict[str, Any]
    config: dict[str, Any]
    n_training_tokens: int


def write_resume_files(
    folder: Path, state: Mapping[str, Any], config: Mapping[str, Any], n_training_tokens: int
) -> None:
    """Add the files to a folder whose other files are written.

    Raises:
        TypeError: when the state holds something that is neither a tensor nor plain.
    """
    plain, tensors = pack_state(state)
    atomic_save_safetensors(tensors, folder / RESUME_TENSORS_FILENAME)
    checksums = {file.name: checksum(file) for file in sorted(folder.iterdir()) if file.is_file()}
    index = {
        "format": RESUME_FORMAT,
        "n_training_tokens": n_training_tokens,
        "sha256": checksums,
        "config": jsonable(dict(config)),
        "state": plain,
    }
    index[_OWN_CHECKSUM] = _own_checksum(index)
    atomic_write_json(folder / RESUME_INDEX_FILENAME, index)


def read_resume_files(folder: str | Path) -> ResumableCheckpoint:
    """Check every file of a checkpoint folder and read the state in it.

    Raises:
        FileNotFoundError: when the folder does not exist, or was not made to go on from.
        DamagedCheckpointError: when a file is missing, cut off or changed.
    """
    folder = Path(folder)
    index = read_index(folder)
    check_files(folder, index)
    try:
        tensors = load_file(str(folder / RESUME_TENSORS_FILENAME))
        state = unpack_state(index["state"], tensors)
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise DamagedCheckpointError(
            f"{folder / RESUME_TENSORS_FILENAME} does not hold the state that "
            f"{RESUME_INDEX_FILENAME} describes: {error!r}."
        ) from error
    return ResumableCheckpoint(folder, state, index["config"], index["n_training_tokens"])


def read_index(folder: Path) -> dict[str, Any]:
    """The contents of a folder's `resume_state.json`, whose form is checked.

    Raises:
        FileNotFoundError: when there is none.
        DamagedCheckpointError: when it is not what `write_resume_files` writes.
    """
    path = folder / RESUME_INDEX_FILENAME
    if not path.is_file():
        raise FileNotFoundError(
            f"{folder} has no {RESUME_INDEX_FILENAME}, so no run can go on from it. Give a "
            "checkpoint of this version of the library, or start from the weights with "
            "from_pretrained_path."
        )
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise DamagedCheckpointError(f"{path} is not JSON: {error}.") from error
    wanted = {"sha256": dict, "config": dict, "state": dict, "n_training_tokens": int}
    if not isinstance(index, dict) or any(
        not isinstance(index.get(name), kind) for name, kind in wanted.items()
    ):
        raise DamagedCheckpointError(f"{path} is not the description of a checkpoint.")
    if index.get("format") != RESUME_FORMAT:
        raise DamagedCheckpointError(
            f"{path} has the format {index.get('format')!r}; this version reads {RESUME_FORMAT}."
        )
    return index


def check_files(folder: Path, index: Mapping[str, Any]) -> None:
    """Compare a folder's files with the checksums in its index.

    Raises:
        DamagedCheckpointError: naming the first file that is not as it was written.
    """
    described = folder / RESUME_INDEX_FILENAME
    if index.get(_OWN_CHECKSUM) != _own_checksum(index):
        raise DamagedCheckpointError(f"{described} has changed since it was written.")
    if RESUME_TENSORS_FILENAME not in index["sha256"]:
        raise DamagedCheckpointError(f"{described} does not list {RESUME_TENSORS_FILENAME}.")
    for name, wanted in index["sha256"].items():
        if not is_plain_name(name):
            raise DamagedCheckpointError(f"{described} lists {name!r}, which is no file's name.")
        path = folder / name
        if not path.is_file():
            raise DamagedCheckpointError(f"{path} is missing from the checkpoint.")
        if checksum(path) != wanted:
            raise DamagedCheckpointError(
                f"{path} has changed since it was written (its checksum differs)."
            )


def checksum(path: Path) -> str:
    """SHA-256 of a file's contents."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(_BYTES_PER_READ):
            digest.update(chunk)
    return digest.hexdigest()


def _own_checksum(index: Mapping[str, Any]) -> str:
    """SHA-256 of everything else in an index."""
    rest = {name: value for name, value in index.items() if name != _OWN_CHECKSUM}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def is_plain_name(name: Any) -> bool:
    """Whether a name stands for something inside a folder, and not elsewhere."""
    if not isinstance(name, str) or name in ("", ".", ".."):
        return False
    return not any(letter in name for letter in ("/", "\\", "\0", ":"))


# -- states as plain values and tensors -----------------------------------------------------------


def pack_state(state: Any) -> tuple[Any, dict[str, Tensor]]:
    """(what JSON can hold, the tensors it refers to) of nested dicts, lists and tuples.

    Numbers come back exactly as they were, infinities included; keys and tuples keep their types.

    Raises:
        TypeError: for a value of another kind.
    """
    tensors: dict[str, Tensor] = {}
    return _pack(state, "", tensors), tensors


def unpack_state(plain: Any, tensors: Mapping[str, Tensor]) -> Any:
    """The state that `pack_state` took apart.

    Raises:
        KeyError, TypeError, ValueError: when the two do not belong together.
    """
    if isinstance(plain, list):
        return [unpack_state(item, tensors) for item in plain]
    if not isinstance(plain, dict):
        return plain
    if len(plain) == 1:
        (mark, value), *_ = plain.items()
        if mark == "!tensor":
            return tensors[value]
        if mark == "!tuple":
            return tuple(unpack_state(item, tensors) for item in value)
        if mark == "!items":
            return {key: unpack_state(item, tensors) for key, item in value}
        if mark == "!float":
            return float(value)
    return {key: unpack_state(item, tensors) for key, item in plain.items()}


def _pack(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, Tensor):
        name = name or "tensor"
        tensors[name] = value.detach().cpu()
        return {"!tensor": name}
    if isinstance(value, Mapping):
        packed = {key: _pack(item, f"{name}.{key}".lstrip("."), tensors) for key, item in
                  value.items()}  # fmt: skip
        if all(isinstance(key, str) and not key.startswith("!") for key in packed):
            return packed
        return {"!items": [[key, item] for key, item in packed.items()]}
    if isinstance(value, (list, tuple)):
        items = [_pack(item, f"{name}.{i}".lstrip("."), tensors) for i, item in enumerate(value)]
        return {"!tuple": items} if isinstance(value, tuple) else items
    if isinstance(value, float) and not math.isfinite(value):
        return {"!float": repr(float(value))}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (torch.device, torch.dtype)):
        return str(value)
    raise TypeError(f"{name} is a {type(value).__name__}, which cannot be written to JSON.")
