"""What every test gets: no network, no shared caches, fixed seeds, and a browser on request."""

from __future__ import annotations

import getpass
import os
import random
import shutil
import socket
import tempfile
from collections.abc import Iterator
from multiprocessing.util import Finalize
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest


def _remove_what_killed_sessions_left() -> None:
    for folder in Path(tempfile.gettempdir()).glob("sae-lens-*-*"):
        owner = folder.name.split("-")[2]
        if owner.isdecimal() and not Path(f"/proc/{owner}").exists() and Path("/proc/1").exists():
            shutil.rmtree(folder, ignore_errors=True)


# Read by the libraries when they are imported, so set before anything else is. What processes that
# are killed on purpose leave among temporary files (W&B makes two folders when it is imported) goes
# away with the session's own folder; pytest's folders and compiled kernels stay where they were.
_remove_what_killed_sessions_left()
os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", tempfile.gettempdir())
os.environ.setdefault(
    "TORCHINDUCTOR_CACHE_DIR", f"{tempfile.gettempdir()}/torchinductor_{getpass.getuser()}"
)
_CACHE = tempfile.mkdtemp(prefix=f"sae-lens-{os.getpid()}-")
os.environ["TMPDIR"] = tempfile.tempdir = _CACHE
os.environ["HF_HOME"] = _CACHE
os.environ["WANDB_MODE"] = "offline"
os.environ["WANDB_SILENT"] = "true"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np  # noqa: E402
import torch  # noqa: E402
from hypothesis import settings  # noqa: E402
from jaxtyping import install_import_hook  # noqa: E402

import tests.shape_checks  # noqa: E402, F401  (the import hook looks it up by its name)

if TYPE_CHECKING:
    from selenium.webdriver import Chrome

torch.set_num_threads(1)
# How long an example takes says how busy the machine is.
settings.register_profile("no deadline", deadline=None)
settings.load_profile("no deadline")

# `make shapes`: compare every tensor with the shape in the signature. It costs half as much again.
CHECKS_SHAPES = os.environ.get("SAE_LENS_CHECK_SHAPES") == "1"
if CHECKS_SHAPES:
    install_import_hook(
        [f"sae_lens.{part}" for part in ("kernels", "saes", "activations", "training", "analysis")],
        "tests.shape_checks.check_shapes",
    )

_LOCAL_HOSTS = {"localhost", "127.0.0.1", "::1"}


# When the process ends, after what multiprocessing removes in there (at a priority of -100).
Finalize(None, shutil.rmtree, args=(_CACHE,), kwargs={"ignore_errors": True}, exitpriority=-101)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if CHECKS_SHAPES:
        skip = pytest.mark.skip(reason="compiles, or passes wrong shapes on purpose")
        for item in items:
            if item.get_closest_marker("no_shape_checks"):
                item.add_marker(skip)
    if shutil.which("chromium") and shutil.which("chromedriver"):
        return
    skip = pytest.mark.skip(reason="needs chromium and chromedriver (Debian: chromium-driver)")
    for item in items:
        if item.get_closest_marker("browser"):
            item.add_marker(skip)


@pytest.fixture(autouse=True)
def _fixed_seeds() -> None:
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _no_network(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make a connection to any other machine an error, so that no test depends on one."""
    if request.node.get_closest_marker("network"):
        return
    connect = socket.socket.connect

    def connect_locally(self: socket.socket, address: Any) -> None:
        if self.family in (socket.AF_INET, socket.AF_INET6) and address[0] not in _LOCAL_HOSTS:
            raise AssertionError(f"a test tried to reach {address}; tests run offline")
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", connect_locally)


@pytest.fixture(scope="session")
def browser() -> Iterator[Chrome]:
    """A headless Chromium; tests that use it carry the marker ``browser``."""
    from selenium import webdriver

    profile = tempfile.mkdtemp(prefix="sae-lens-chromium-")
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or ""
    for argument in (
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--disable-dev-shm-usage",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--window-size=1280,1600",
        f"--user-data-dir={profile}",
    ):
        options.add_argument(argument)
    service = webdriver.ChromeService(executable_path=shutil.which("chromedriver"))
    driver = webdriver.Chrome(options=options, service=service)
    yield driver
    driver.quit()
    shutil.rmtree(profile, ignore_errors=True)


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root folder of the checkout."""
    return Path(__file__).resolve().parent.parent
