"""Put SAEs into a Hugging Face repository, with a card that says how to load them.

Everything goes through the names imported from `huggingface_hub` here. A live SAE is anything with
`save_model(path)`; this module knows no SAE class.
"""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from huggingface_hub import HfApi, get_hf_file_metadata, hf_hub_url
from huggingface_hub.utils import EntryNotFoundError, RepositoryNotFoundError
from tqdm import tqdm

from sae_lens.constants import (
    RUNNER_CFG_FILENAME,
    SAE_CFG_FILENAME,
    SAE_WEIGHTS_FILENAME,
    SPARSITY_FILENAME,
)
from sae_lens.loading.hub import with_retries
from sae_lens.loading.sources import checked_name

logger = logging.getLogger(__name__)

#: what belongs to an SAE; other files in its folder stay at home
UPLOADED_FILES = (SAE_CFG_FILENAME, SAE_WEIGHTS_FILENAME, SPARSITY_FILENAME, RUNNER_CFG_FILENAME)
README = "README.md"


@dataclass
class UploadPlan:
    """What an upload sends.

    Attributes:
        repo_id: the repository.
        revision: the branch.
        files: by SAE id, the names of its files with their sizes in bytes (None for a live SAE
            whose files are not written yet).
        readme: the card's text.
    """

    repo_id: str
    revision: str
    files: dict[str, dict[str, int | None]] = field(default_factory=dict)
    readme: str | None = None

    def describe(self) -> str:
        """The plan as text, a line per file."""
        lines = [f"To {self.repo_id}, branch {self.revision}:"]
        for sae_id, files in self.files.items():
            for name, size in files.items():
                told = "" if size is None else f"  {size:,} bytes"
                lines.append(f"  {sae_id}/{name}{told}")
        if self.readme is not None:
            lines.append(f"  {README}  (only if the repository has none)")
        return "\n".join(lines)


def upload_saes_to_huggingface(
    saes_dict: Mapping[str, Any] | None = None,
    hf_repo_id: str | None = None,
    hf_revision: str = "main",
    show_progress: bool = True,
    add_default_readme: bool = True,
    *,
    saes: Mapping[str, Any] | Iterable[Any] | None = None,
    repo_id: str | None = None,
    token: str | None = None,
    private: bool | None = None,
    dry_run: bool = False,
) -> UploadPlan:
    """Upload SAEs to a model repository, which is created if it does not exist.

    Args:
        saes_dict: SAEs by id; each an SAE, or the path of a saved one.
        hf_repo_id: `owner/name`.
        hf_revision: the branch to commit to.
        show_progress: whether to show a progress bar.
        add_default_readme: whether to add a card where there is none.
        saes: as `saes_dict`, or a list; ids are then hook names, or folder names of paths.
        repo_id: as `hf_repo_id`.
        token: sent to the hub with every call; the ambient login when None.
        private: whether a repository that is created is private.
        dry_run: only say what would be sent. The hub is not contacted.

    Returns:
        What was (or would be) sent.

    Raises:
        TypeError: two spellings of one thing, or neither.
        ValueError: there are no SAEs, or an id is not a path inside the repository.
        FileNotFoundError: a path lacks a file of a saved SAE; nothing has been sent then.
    """
    named = _named(_one_of("saes_dict", saes_dict, "saes", saes))
    target = str(_one_of("hf_repo_id", hf_repo_id, "repo_id", repo_id))
    if not named:
        raise ValueError("No SAEs to upload")
    for sae_id, sae in named.items():
        checked_name(sae_id)
        if isinstance(sae, (str, Path)):
            _validate_sae_path(Path(sae))
    plan = UploadPlan(target, hf_revision)
    plan.files = {sae_id: _files_of(sae) for sae_id, sae in named.items()}
    if add_default_readme:
        plan.readme = _create_default_readme(target, named, _facts_of(named))
    if dry_run:
        return plan

    api = HfApi(token=token)
    if not _repo_exists(api, target):
        _write(api.create_repo, target, private=bool(private), exist_ok=True)
    if hf_revision != "main":
        _write(api.create_branch, target, branch=hf_revision, exist_ok=True)
    for sae_id, sae in tqdm(named.items(), desc="Uploading SAEs", disable=not show_progress):
        with TemporaryDirectory() as tmp_dir:
            _upload_sae(api, _build_sae_path(sae, tmp_dir), target, sae_id, hf_revision)
    if plan.readme is not None and not _repo_file_exists(target, README, hf_revision, token):
        _write(
            api.upload_file,
            path_or_fileobj=io.BytesIO(plan.readme.encode("utf-8")),
            path_in_repo=README,
            repo_id=target,
            revision=hf_revision,
            commit_message="Add README",
        )
    return plan


def _write(call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    return with_retries(call, *args, server_errors=True, **kwargs)


def _one_of(first: str, first_value: Any, second: str, second_value: Any) -> Any:
    if first_value is not None and second_value is not None:
        raise TypeError(f"Give {first} or {second}, not both: they mean the same.")
    if first_value is None and second_value is None:
        raise TypeError(f"{first} (or {second}) is missing.")
    return second_value if first_value is None else first_value


def _named(saes: Mapping[str, Any] | Iterable[Any]) -> dict[str, Any]:
    """SAEs by id. Ids of a list are hook names or folder names, numbered where they repeat."""
    if isinstance(saes, Mapping):
        return {str(sae_id): sae for sae_id, sae in saes.items()}
    if isinstance(saes, (str, Path)) or hasattr(saes, "save_model"):
        raise TypeError("saes must be a list or a dict of SAEs; put a single one into a list.")
    named: dict[str, Any] = {}
    for sae in saes:
        wanted = Path(sae).resolve().name if isinstance(sae, (str, Path)) else sae.cfg.hook_name
        if not wanted:
            raise ValueError(
                "An SAE without a hook name has no id of its own: give a dict of ids and SAEs."
            )
        sae_id, number = wanted, 1
        while sae_id in named:
            number += 1
            sae_id = f"{wanted}_{number}"
        named[sae_id] = sae
    return named


def _files_of(sae: Any) -> dict[str, int | None]:
    if not isinstance(sae, (str, Path)):
        return {SAE_CFG_FILENAME: None, SAE_WEIGHTS_FILENAME: None}
    found = (Path(sae) / name for name in UPLOADED_FILES)
    return {path.name: path.stat().st_size for path in found if path.is_file()}


def _facts_of(named: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """What the card's table says of each SAE."""
    facts: dict[str, dict[str, Any]] = {}
    for sae_id, sae in named.items():
        if isinstance(sae, (str, Path)):
            try:
                config = json.loads((Path(sae) / SAE_CFG_FILENAME).read_text(encoding="utf-8"))
            except ValueError:
                config = {}
        else:
            config = sae.cfg.to_dict()
        metadata = config.get("metadata") or {}
        names = ("architecture", "model_name", "hook_name", "d_in", "d_sae")
        facts[sae_id] = {name: config.get(name) or metadata.get(name) for name in names}
    return facts


def _upload_sae(api: HfApi, sae_path: Path, repo_id: str, sae_id: str, revision: str) -> None:
    """One commit with the files of one SAE."""
    _write(
        api.upload_folder,
        folder_path=str(sae_path),
        path_in_repo=sae_id,
        repo_id=repo_id,
        revision=revision,
        repo_type="model",
        commit_message=f"Upload SAE {sae_id}",
        allow_patterns=list(UPLOADED_FILES),
    )


def _build_sae_path(sae_ref: Any, tmp_dir: str) -> Path:
    """The folder of a saved SAE; a live one is saved into `tmp_dir` first."""
    if isinstance(sae_ref, (str, Path)):
        return Path(sae_ref)
    sae_ref.save_model(tmp_dir)
    return Path(tmp_dir)


def _validate_sae_path(sae_path: Path) -> None:
    """`FileNotFoundError` naming the file that a saved SAE must have and this folder lacks."""
    for name in (SAE_CFG_FILENAME, SAE_WEIGHTS_FILENAME):
        if not (Path(sae_path) / name).is_file():
            raise FileNotFoundError(
                f"SAE file not found: {Path(sae_path) / name}. A saved SAE is a folder with "
                f"{SAE_CFG_FILENAME} and {SAE_WEIGHTS_FILENAME}."
            )


def _repo_exists(api: HfApi, repo_id: str) -> bool:
    try:
        with_retries(api.repo_info, repo_id)
        return True
    except RepositoryNotFoundError:
        return False


def _repo_file_exists(repo_id: str, filename: str, revision: str, token: str | None = None) -> bool:
    try:
        url = hf_hub_url(repo_id=repo_id, filename=filename, revision=revision)
        with_retries(get_hf_file_metadata, url, token=token)
        return True
    except EntryNotFoundError:
        return False


def _create_default_readme(
    repo_id: str,
    sae_ids: Iterable[str],
    facts: Mapping[str, Mapping[str, Any]] | None = None,
) -> str:
    """The model card: what is in the repository and how to load it."""
    sae_ids = list(sae_ids)
    lines = [
        "---",
        "library_name: saelens",
        "---",
        "",
        "# SAEs for use with the SAELens library",
        "",
        "This repository contains the following SAEs:",
        *(f"- {sae_id}" for sae_id in sae_ids),
        "",
    ]
    if facts:
        lines += [*_table(sae_ids, facts), ""]
    lines += [
        "Load these SAEs using SAELens as below:",
        "```python",
        "from sae_lens import SAE",
        "",
        f'sae, cfg_dict, sparsity = SAE.from_pretrained("{repo_id}", "<sae_id>")',
        "```",
    ]
    return "\n".join(lines)


def _table(sae_ids: Iterable[str], facts: Mapping[str, Mapping[str, Any]]) -> list[str]:
    columns = {
        "architecture": "architecture",
        "model_name": "model",
        "hook_name": "hook",
        "d_in": "d_in",
        "d_sae": "features",
    }
    rows = [["id", *columns.values()], ["---"] * (len(columns) + 1)]
    for sae_id in sae_ids:
        known = facts.get(sae_id, {})
        rows.append([sae_id, *(str(known.get(name) or "") for name in columns)])
    return ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
