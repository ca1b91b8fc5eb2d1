"""Files that are either whole or not there: written beside their target, flushed, then renamed."""

from __future__ import annotations

import errno
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it is flushed to disk and renamed to `path`.

    When the body raises, the temporary file is removed and whatever stood at `path` stays.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.", suffix=".tmp")
    os.close(handle)
    temporary = Path(name)
    try:
        try:
            yield temporary
        except (OSError, SafetensorError) as error:
            # Neither a full disk nor safetensors' own errors say which file it was.
            number = error.errno if isinstance(error, OSError) else None
            raise OSError(number or errno.EIO, f"{target} could not be written: {error}") from error
        with open(temporary, "rb") as written:
            os.fsync(written.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def atomic_write_bytes(path: str | Path, data: bytes) -> None:
    """Write `data` to `path` so that a reader sees the old file or the whole new one."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def atomic_write_json(path: str | Path, value: Any, indent: int | None = None) -> None:
    """Write `value` as JSON to `path`, atomically. Non-ASCII text is kept readable."""
    text = json.dumps(value, indent=indent, ensure_ascii=False)
    atomic_write_bytes(path, text.encode("utf-8"))


def atomic_save_safetensors(
    tensors: Mapping[str, Tensor], path: str | Path, metadata: dict[str, str] | None = None
) -> None:
    """Write tensors (made contiguous, shared storage separated) to `path`, atomically."""
    separate: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in tensors.items():
        tensor = tensor.detach().contiguous()
        if tensor.data_ptr() in seen and tensor.numel() > 0:
            tensor = tensor.clone()
        seen.add(tensor.data_ptr())
        separate[name] = tensor
    with atomic_path(path) as temporary:
        save_file(separate, str(temporary), metadata=metadata)


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current
