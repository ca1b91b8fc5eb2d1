"""Files in Hugging Face repositories: fetched once, checked, retried when the hub is busy.

Everything goes through the names imported from `huggingface_hub` here, so the cache, the login, the
endpoint and the offline switch are the hub library's own, and tests can replace them.
"""

from __future__ import annotations

import hashlib
import logging
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from huggingface_hub import HfApi, hf_hub_download, try_to_load_from_cache
from huggingface_hub import constants as hub_constants
from huggingface_hub.utils import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
    SafetensorsParsingError,
)

from sae_lens.errors import SAELoadError
from sae_lens.loading.sources import checked_name, safetensors_shapes

logger = logging.getLogger(__name__)

Result = TypeVar("Result")

# The hub answers 429 to fast callers, and 5xx when it is overloaded. Both pass. The client library
# asks again by itself after 5xx, except where something is written.
TOO_MANY_REQUESTS = 429
SERVER_ERRORS = frozenset({500, 502, 503, 504})
ATTEMPTS = 5
LONGEST_WAIT_SECONDS = 60.0
_HASHED_BLOCK = 1 << 20


class HubSource:
    """The files of one SAE in a repository.

    Args:
        repo_id: `owner/name`.
        path: the SAE's folder or file in it.
        force_download: fetch again what the cache holds.
        revision: branch, tag or commit; the default branch when None.
    """

    def __init__(
        self,
        repo_id: str,
        path: str,
        force_download: bool = False,
        revision: str | None = None,
    ) -> None:
        self.name = repo_id
        self.path = checked_name(str(path))
        self.force_download = force_download
        self.revision = revision
        self._fetched: dict[str, Path] = {}

    def file(self, name: str) -> Path:
        """A local path of the repository's file `name`.

        Raises:
            FileNotFoundError: the repository or the file does not exist.
            PermissionError: the hub wants a login, or one with more rights.
            ConnectionError: the hub cannot be reached and the cache does not hold the file.
            SAELoadError: what arrived is not what the hub announced.
        """
        # Two readers of one file (config and tensors) fetch it once, forced or not.
        if name not in self._fetched:
            self._fetched[name] = download(self.name, name, self.force_download, self.revision)
        return self._fetched[name]

    def optional_file(self, name: str) -> Path | None:
        """As `file`, but None when the repository has no such file."""
        try:
            return self.file(name)
        except FileNotFoundError as error:
            if isinstance(error.__cause__, (RepositoryNotFoundError, RevisionNotFoundError)):
                raise
            return None

    def shapes(self, name: str) -> dict[str, tuple[int, ...]]:
        """Tensor shapes of a safetensors file, without fetching its tensors.

        From the cache when the file is there, else by asking the hub for the first bytes only.
        """
        cached = try_to_load_from_cache(self.name, checked_name(name), revision=self.revision)
        if isinstance(cached, str) and not self.force_download:
            return safetensors_shapes(Path(cached))
        if hub_constants.HF_HUB_OFFLINE:
            return safetensors_shapes(self.file(name))
        try:
            metadata = _ask_hub(
                self.name,
                name,
                HfApi().parse_safetensors_file_metadata,
                repo_id=self.name,
                filename=name,
                revision=self.revision,
            )
            return {tensor: tuple(info.shape) for tensor, info in metadata.tensors.items()}
        except (SafetensorsParsingError, struct.error, TypeError) as error:
            raise SAELoadError(
                f"{name} of {self.name} has no sound safetensors header ({error})."
            ) from error


def download(
    repo_id: str, filename: str, force_download: bool = False, revision: str | None = None
) -> Path:
    """Fetch a file into the hub's cache (or find it there) and return its path.

    A file that was fetched now is compared with the hash by which the hub knows it.

    Raises:
        FileNotFoundError, PermissionError, ConnectionError, SAELoadError: see `HubSource.file`.
    """
    filename = checked_name(filename)
    known = try_to_load_from_cache(repo_id, filename, revision=revision)
    path = Path(
        _ask_hub(
            repo_id,
            filename,
            hf_hub_download,
            repo_id=repo_id,
            filename=filename,
            revision=revision,
            force_download=force_download,
        )
    )
    fetched_now = force_download or not isinstance(known, str) or Path(known) != path
    if fetched_now and not _matches_its_hash(path):
        _remove_from_cache(path)
        raise SAELoadError(
            f"{filename} of {repo_id} arrived damaged: its contents do not have the hash that the "
            "hub announced. It was removed from the cache; try again."
        )
    return path


def with_retries(
    call: Callable[..., Result], /, *args: Any, server_errors: bool = False, **kwargs: Any
) -> Result:
    """Call the hub, again when it is busy or breaks off, at most five times.

    Waits as long as the answer's `Retry-After` says (at most a minute), else 1, 2, 4, 8 seconds.

    Args:
        call: what to call.
        args: its arguments.
        server_errors: whether to call again after 5xx too.
        kwargs: its keyword arguments.
    """
    for attempt in range(ATTEMPTS):
        try:
            return call(*args, **kwargs)
        except Exception as error:
            wait = _seconds_to_wait(error, attempt, server_errors)
            if wait is None or attempt == ATTEMPTS - 1:
                raise
            logger.warning("The hub said %s; asking again in %.0f s.", _in_short(error), wait)
            time.sleep(wait)
    raise AssertionError("unreachable")


def _ask_hub(
    repo_id: str, filename: str, call: Callable[..., Result], /, *args: Any, **kwargs: Any
) -> Result:
    """A call to the hub with retries, whose errors say what was wanted and what to do."""
    try:
        return with_retries(call, *args, **kwargs)
    except GatedRepoError as error:
        raise PermissionError(
            f"{repo_id} is gated: accept its conditions on its page and log in with "
            "`huggingface-cli login` (or set HF_TOKEN)."
        ) from error
    except RepositoryNotFoundError as error:
        if _status(error) == 401:
            raise PermissionError(
                f"The hub refuses access to {repo_id} (401): either there is no such repository or "
                "it is private. Check the name; for a private one log in with "
                "`huggingface-cli login` or set HF_TOKEN."
            ) from error
        raise FileNotFoundError(f"There is no repository {repo_id} on the hub.") from error
    except RevisionNotFoundError as error:
        raise FileNotFoundError(f"{repo_id} has no revision {kwargs.get('revision')}.") from error
    except LocalEntryNotFoundError as error:
        status = _status(error)
        if status is not None:
            raise ConnectionError(
                f"The hub answered {status} for {filename} of {repo_id} and the cache does not "
                "hold the file; try again later."
            ) from error
        if hub_constants.HF_HUB_OFFLINE:
            raise FileNotFoundError(
                f"{filename} of {repo_id} is not in the cache and HF_HUB_OFFLINE is set; unset it, "
                "or load the SAE once while online."
            ) from error
        raise ConnectionError(
            f"The hub cannot be reached and the cache does not hold {filename} of {repo_id}; "
            "check the network connection."
        ) from error
    except EntryNotFoundError as error:
        raise FileNotFoundError(f"{repo_id} has no file {filename}.") from error
    except HFValidationError as error:
        raise ValueError(f"{repo_id!r} is not a repository id such as 'owner/name'.") from error
    except HfHubHTTPError as error:
        if _status(error) in (401, 403):
            raise PermissionError(
                f"The hub refuses access to {filename} of {repo_id} ({_status(error)}): log in "
                "with `huggingface-cli login` or set HF_TOKEN."
            ) from error
        raise ConnectionError(
            f"The hub answered {_status(error)} for {filename} of {repo_id}; try again later."
        ) from error


def _chain(error: BaseException | None) -> list[BaseException]:
    chain: list[BaseException] = []
    while error is not None and error not in chain:
        chain.append(error)
        error = error.__cause__ or error.__context__
    return chain


def _response(error: BaseException) -> Any:
    for link in _chain(error):
        response = getattr(link, "response", None)
        if getattr(response, "status_code", None) is not None:
            return response
    return None


def _status(error: BaseException) -> int | None:
    response = _response(error)
    return None if response is None else int(response.status_code)


def _seconds_to_wait(error: Exception, attempt: int, server_errors: bool = False) -> float | None:
    """How long to wait before asking again; None when that would not help."""
    response = _response(error)
    if response is None:
        return 2.0**attempt if _broke_off(error) else None
    retried = SERVER_ERRORS | {TOO_MANY_REQUESTS} if server_errors else {TOO_MANY_REQUESTS}
    if response.status_code not in retried:
        return None
    try:
        wait = float(response.headers.get("Retry-After", ""))
    except ValueError:  # no such header, or a date
        wait = 2.0**attempt
    return min(max(wait, 0.0), LONGEST_WAIT_SECONDS)


def _broke_off(error: Exception) -> bool:
    """Whether a transfer ended early. What has arrived is kept, so asking again resumes it."""
    names = {type(link).__name__ for link in _chain(error)}
    if names & {"ChunkedEncodingError", "IncompleteRead", "RemoteProtocolError", "ReadTimeout"}:
        return True
    return any("Consistency check failed" in str(link) for link in _chain(error))


def _in_short(error: Exception) -> str:
    status = _status(error)
    return f"{status}" if status is not None else type(error).__name__


def _matches_its_hash(path: Path) -> bool:
    """Whether a cached file's contents have the hash that is its name in the cache.

    The cache names contents by the hub's ETag: the SHA-256 of large files, git's hash of small
    ones. On systems without symbolic links the name is lost; then nothing can be compared.
    """
    blob = path.resolve()
    if blob.parent.name != "blobs":
        return True
    if len(blob.name) == 64:
        digest = hashlib.sha256()
    elif len(blob.name) == 40:
        digest = hashlib.sha1(usedforsecurity=False)
        digest.update(f"blob {blob.stat().st_size}\0".encode())
    else:
        return True
    with open(blob, "rb") as file:
        while block := file.read(_HASHED_BLOCK):
            digest.update(block)
    return digest.hexdigest() == blob.name


def _remove_from_cache(path: Path) -> None:
    path.resolve().unlink(missing_ok=True)
    path.unlink(missing_ok=True)


def folders_with(repo_id: str, file_name: str, limit: int = 5) -> list[str]:
    """Folders of a repository that hold `file_name`, for error messages: empty when unknown."""
    try:
        files = HfApi().list_repo_files(repo_id)
    except Exception:  # only a hint; the error that led here is the one to report
        return []
    folders = [file.rpartition("/")[0] for file in files if file.rpartition("/")[2] == file_name]
    return sorted(folders)[:limit]
