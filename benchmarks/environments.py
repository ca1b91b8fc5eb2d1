"""The contenders, and a virtual environment for each of them.

Ours runs in the environment that runs the benchmark. The others get one each, with the same torch,
made on first use and kept until the pins change.
"""

from __future__ import annotations

import logging
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

log = logging.getLogger("benchmarks")

TORCH = "torch==2.13.0"


@dataclass(frozen=True)
class Contender:
    """Something that is measured.

    Attributes:
        name: as tables show it.
        family: how a worker drives it.
        requirements: what its environment holds besides torch; empty for this library.
        without_dependencies: what is installed without its own requirements, which would pull
            gigabytes beside the pinned torch that a training step does not touch.
    """

    name: str
    family: str
    requirements: tuple[str, ...] = ()
    without_dependencies: tuple[str, ...] = ()

    @property
    def is_ours(self) -> bool:
        """Whether it is this library."""
        return self.family.startswith("ours")


OURS = Contender("ours", "ours-6")
OURS_5 = Contender("ours, 5.x formulas", "ours-5")
SAE_LENS_6 = Contender("SAELens 6.54.12", "sae_lens-6", ("sae-lens==6.54.12",))
SAE_LENS_5 = Contender(
    "SAELens 5.2.1",
    "sae_lens-5",
    # what was current when it was published; newer ones no longer have what it imports
    ("sae-lens==5.2.1", "numpy<2", "pyarrow<20", "wandb<0.18", "setuptools<81"),
)
SPARSIFY = Contender(
    "eai-sparsify",
    "sparsify",
    ("numpy", "einops", "natsort", "simple-parsing", "transformers", "accelerate"),
    ("eai-sparsify==1.3.3",),
)
DICTIONARY_LEARNING = Contender(
    "dictionary-learning",
    "dictionary_learning",
    ("numpy", "einops"),
    ("dictionary-learning==0.1.0",),
)
FLOOR = Contender("one encoder product", "ours-floor")
CONTENDERS = (OURS, OURS_5, SAE_LENS_6, SAE_LENS_5, SPARSIFY, DICTIONARY_LEARNING)


def python_of(contender: Contender, folder: Path, given: dict[str, Path]) -> Path:
    """The interpreter of a contender's environment, which is made where it is missing.

    Args:
        contender: whose environment.
        folder: where environments are kept.
        given: environments to use as they are, by family.

    Raises:
        subprocess.CalledProcessError: when something cannot be installed.
    """
    if contender.is_ours:
        return Path(sys.executable)
    if contender.family in given:
        return given[contender.family] / "bin" / "python"
    home = folder / contender.family
    python, pins = home / "bin" / "python", home / "benchmark_pins.txt"
    wanted = "\n".join(
        (TORCH, *contender.requirements, "--no-deps", *contender.without_dependencies)
    )
    if pins.exists() and pins.read_text() == wanted:
        return python
    log.info("making the environment of %s in %s", contender.name, home)
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(home)], check=True)
    install = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*install, TORCH, *contender.requirements], check=True)
    if contender.without_dependencies:
        subprocess.run([*install, "--no-deps", *contender.without_dependencies], check=True)
    pins.write_text(wanted)
    return python
