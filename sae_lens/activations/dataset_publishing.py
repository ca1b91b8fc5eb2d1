"""Pushing a finished dataset and a description of it to a dataset repository."""

from __future__ import annotations

import json
from collections.abc import Sized
from typing import TYPE_CHECKING, Any

from sae_lens.activations.retrying import is_of_the_network

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset
    from huggingface_hub import HfApi


def push_dataset(
    dataset: Dataset | IterableDataset,
    api: HfApi,
    repo_id: str,
    num_shards: int | None,
    private: bool,
    revision: str,
    description: dict[str, Any],
    description_filename: str,
    kept_at: str | None,
) -> None:
    """Push a dataset, then a JSON file that says how it was made, to the same revision.

    Args:
        dataset: what to push.
        api: the hub.
        repo_id: the dataset repository, made when it does not exist.
        num_shards: files in it, no more than there are rows; None leaves that to the datasets
            library.
        private: whether a new repository is private.
        revision: branch.
        description: content of the JSON file.
        description_filename: its name in the repository.
        kept_at: the folder that has the dataset on this machine, for error messages.

    Raises:
        PermissionError: when the hub does not accept the login, or its rights.
        FileNotFoundError: when it knows no such owner or repository.
        ConnectionError: when it is busy, fails, or cannot be reached.
    """
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    if num_shards is not None and isinstance(dataset, Sized):
        num_shards = min(num_shards, len(dataset))
    text = json.dumps(description, indent=2, ensure_ascii=False, default=str)
    try:
        dataset.push_to_hub(repo_id, num_shards=num_shards, private=private, revision=revision)
        api.upload_file(
            path_or_fileobj=text.encode("utf-8"),
            path_in_repo=description_filename,
            repo_id=repo_id,
            repo_type="dataset",
            revision=revision,
            commit_message=f"Add {description_filename}",
        )
    except HfHubHTTPError as error:
        status = getattr(error.response, "status_code", None)
        raise _explained(repo_id, status, kept_at) from error
    except Exception as error:
        if not (isinstance(error, OfflineModeIsEnabled) or is_of_the_network(error)):
            raise
        raise _explained(repo_id, None, kept_at) from error


def _explained(repo_id: str, status: int | None, kept_at: str | None) -> Exception:
    kind, reason = ConnectionError, "cannot be reached; check the network and try again"
    if status in (401, 403):
        kind = PermissionError
        reason = f"answered {status}: log in (hf auth login) as somebody who may write there"
    elif status == 404:
        kind = FileNotFoundError
        reason = "answered 404: check the owner and the name, and that your login may write there"
    elif status == 429:
        reason = "answered 429: too many requests; wait some minutes and try again"
    elif status is not None:
        reason = f"answered {status}; try again later"
    kept = (
        f" Nothing is lost: the dataset is whole in {kept_at}; push it from there with "
        f"datasets.load_from_disk({kept_at!r}).push_to_hub({repo_id!r})."
        if kept_at
        else " The dataset was not saved on this machine; set save_path to keep it."
    )
    return kind(f"Pushing to {repo_id} failed: the hub {reason}.{kept}")
