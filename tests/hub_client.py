"""Points the real hub client of this process at a hub of the tests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import datasets.config
import huggingface_hub
import pytest
from huggingface_hub import constants as hub_constants


def point_client_at(url: str, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What HF_ENDPOINT, HF_HUB_CACHE and HF_HUB_OFFLINE=0 do when they are set before import."""
    monkeypatch.setattr(hub_constants, "ENDPOINT", url)
    template = url + "/{repo_id}/resolve/{revision}/{filename}"
    for module in (hub_constants, huggingface_hub.file_download):
        if hasattr(module, "HUGGINGFACE_CO_URL_TEMPLATE"):
            monkeypatch.setattr(module, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(hub_constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(hub_constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub_constants, "HF_HUB_ETAG_TIMEOUT", 5)
    monkeypatch.setattr(hub_constants, "HF_HUB_DISABLE_XET", True, raising=False)
    monkeypatch.setattr(huggingface_hub.HfApi, "__init__", _api_at(url))
    monkeypatch.setattr(datasets.config, "HF_ENDPOINT", url)
    reset_sessions()


def _api_at(url: str) -> Callable[..., None]:
    original = huggingface_hub.HfApi.__init__

    def init(self: huggingface_hub.HfApi, endpoint: str | None = None, **options: object) -> None:
        original(self, endpoint=endpoint or url, **options)  # type: ignore[arg-type]

    return init


def reset_sessions() -> None:
    """Connections of one server are of no use to the next."""
    from huggingface_hub import utils

    for name in ("reset_sessions", "close_session"):
        if hasattr(utils, name):
            getattr(utils, name)()
