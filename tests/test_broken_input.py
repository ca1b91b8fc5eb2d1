"""Readers given broken and hostile files: a readable error or a right result, nothing else.

`make test-slow` runs ten thousand cases of each; docs/resumption.md says what came of it.
"""

from __future__ import annotations

import json
import random
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from sae_lens.activations.store import ActivationsStore
from sae_lens.config import LanguageModelSAERunnerConfig
from sae_lens.config.arguments import config_from_file, read_config_file
from sae_lens.loading.registry_file import read_registry_file
from sae_lens.saes import SAE, TrainingSAE
from sae_lens.training.run_folder import open_checkpoint
from tests.activations.fakes import make_store
from tests.activations.test_cached_activations import write_cache
from tests.helpers import make_sae, tiny_model
from tests.mutation import mutate_bytes, mutate_file, mutate_tree, run_cases
from tests.runs import run_config, train

pytestmark = [
    pytest.mark.skipif(sys.platform == "win32", reason="limits and alarms of POSIX"),
    pytest.mark.filterwarnings("ignore:All samples in the training dataset"),
]

FAST, SLOW = 200, 10_000
# What readers may raise: their own types are among these, and so is what says that a file is bad.
READABLE = (ValueError, OSError, KeyError, NotImplementedError)
RUN = {
    "model_name": "tiny", "hook_name": "blocks.1.hook_resid_pre", "d_in": 16, "d_sae": 32,
    "architecture": "topk", "activation_fn_kwargs": {"k": 4}, "seqpos_slice": [0, 8, 1],
    "lr": 1e-3, "training_tokens": 1000, "log_to_wandb": False, "verbose": False,
    "exclude_special_tokens": [1, 2], "checkpoint_path": "checkpoints", "wandb_id": "abc",
    "model_kwargs": {}, "dataset_path": "text",
}  # fmt: skip


def expect_readable(read: Callable[[], Any]) -> Any:
    """What it reads; None for an error that says something in few words."""
    try:
        return read()
    except READABLE as error:
        said = str(error)
    assert 10 < len(said) < 20_000, said[:500]
    return None


# -- the cases, one function for each reader -------------------------------------------------------


def config_case(folder: Path, chance: random.Random) -> None:
    path = folder / chance.choice(["run.json", "run.yaml"])
    if path.suffix == ".yaml" and chance.random() < 0.7:
        tree = mutate_tree(json.loads((folder / "run.json").read_text()), chance)
        path.write_text(yaml.safe_dump(tree), encoding="utf-8", errors="surrogatepass")
    else:
        mutate_file(path, chance)
    cfg = expect_readable(lambda: config_from_file(LanguageModelSAERunnerConfig, path))
    if cfg is not None and cfg.wandb_id is not None:
        assert Path(cfg.checkpoint_path).name == str(cfg.wandb_id) != ".."
        assert "\0" not in cfg.checkpoint_path
    if path.suffix == ".json":
        expect_readable(lambda: LanguageModelSAERunnerConfig.from_json(path))


def sae_case(folder: Path, chance: random.Random) -> None:
    mutate_file(chance.choice([p for p in sorted(folder.iterdir()) if p.is_file()]), chance)
    for cls in (SAE, TrainingSAE):
        sae = expect_readable(lambda cls=cls: cls.load_from_disk(folder))
        if sae is not None:
            assert sae.W_enc.shape == (sae.cfg.d_in, sae.cfg.d_sae)
            assert sae.W_dec.shape == (sae.cfg.d_sae, sae.cfg.d_in)


def checkpoint_case(folder: Path, chance: random.Random) -> None:
    sound = open_checkpoint(folder / "64") if (folder / "64").exists() else None
    assert sound is not None
    target = chance.choice([folder / "latest", *sorted((folder / "64").iterdir())])
    before = target.read_bytes()
    mutate_file(target, chance)
    same = target.exists() and target.read_bytes() == before
    for place in (folder / "64", folder):
        found = expect_readable(lambda place=place: open_checkpoint(place))
        if found is None:
            assert not same
            continue
        assert found.folder.resolve().parent == folder.resolve()
        if found.folder.name == "64":
            # It was not touched, or not in what counts.
            assert found.config == sound.config
            assert found.n_training_tokens == sound.n_training_tokens
            for name, tensor in sound.state["sae"].items():
                assert torch.equal(found.state["sae"][name], tensor)
    if target.name != "latest" and not same and target.suffix == ".safetensors":
        assert expect_readable(lambda: open_checkpoint(folder / "64")) is None


def registry_case(folder: Path, chance: random.Random) -> None:
    path = folder / "registry.yaml"
    if chance.random() < 0.7:
        tree = mutate_tree(yaml.safe_load(path.read_text()), chance)
        path.write_text(yaml.safe_dump(tree), encoding="utf-8", errors="surrogatepass")
    else:
        path.write_bytes(mutate_bytes(path.read_bytes(), chance))
    expect_readable(lambda: read_registry_file(path))


def cache_case(folder: Path, chance: random.Random) -> None:
    mutate_file(chance.choice(sorted(p for p in (folder / "cache").rglob("*") if p.is_file())),
                chance)  # fmt: skip

    def read() -> Any:
        store = make_store(cached_activations_path=str(folder / "cache"))
        return [store.next_batch() for _ in range(4)]

    expect_readable(read)


def state_case(folder: Path, chance: random.Random) -> None:
    """The store's state alone, as older versions wrote it, has no checksum."""
    path = folder / "state.safetensors"
    mutate_file(path, chance)

    def read() -> Any:
        store = make_store()
        store.load(path)
        return store.next_batch()

    expect_readable(read)


CASES = {
    "config": config_case,
    "sae": sae_case,
    "checkpoint": checkpoint_case,
    "registry": registry_case,
    "cache": cache_case,
    "state": state_case,
}


# -- sound files ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of sound inputs by the name of their reader."""
    root = tmp_path_factory.mktemp("sound")
    (root / "config").mkdir()
    (root / "config" / "run.json").write_text(json.dumps(RUN))
    (root / "config" / "run.yaml").write_text(yaml.safe_dump(RUN))
    make_sae("standard").save_model(root / "sae", sparsity=torch.zeros(48))
    train(run_config(root / "c", training_tokens=96, lr_decay_steps=0, lr_warm_up_steps=0,
                     n_checkpoints=2, log_to_jsonl=None), tiny_model())  # fmt: skip
    (root / "c" / "run").rename(root / "checkpoint")
    (root / "registry").mkdir()
    release = {"repo_id": "owner/name", "model": "tiny", "conversion_func": None,
               "saes": [{"id": "a", "path": "a/b", "neuronpedia": "x/y"}]}  # fmt: skip
    (root / "registry" / "registry.yaml").write_text(yaml.safe_dump({"mine": release}))
    (root / "cache").mkdir()
    write_cache(root / "cache" / "cache", with_ids=True)
    (root / "state").mkdir()
    store: ActivationsStore = make_store()
    store.next_batch()
    store.save(root / "state" / "state.safetensors")
    return root


@pytest.mark.parametrize("reader", CASES)
def test_broken_files_are_refused_readably(reader: str, sound: Path, tmp_path: Path) -> None:
    run_cases(CASES[reader], sound / reader, tmp_path / "work", range(FAST))


@pytest.mark.slow
@pytest.mark.parametrize("reader", CASES)
def test_ten_thousand_broken_files(reader: str, sound: Path, tmp_path: Path) -> None:
    run_cases(CASES[reader], sound / reader, tmp_path / "work", range(FAST, FAST + SLOW))


# -- single inputs that a fuzzer meets seldom -----------------------------------------------------


def test_a_header_that_claims_a_terabyte(tmp_path: Path) -> None:
    make_sae("standard").save_model(tmp_path)
    path = tmp_path / "sae_weights.safetensors"
    good = load_file(path)
    for header in (
        {"W_enc": {"dtype": "F32", "shape": [2**20, 2**18], "data_offsets": [0, 2**40]}},
        {"W_enc": {"dtype": "F32", "shape": [2**62, 2**62], "data_offsets": [0, 16]}},
        {"W_enc": {"dtype": "F32", "shape": [-1], "data_offsets": [8, 4]}},
    ):
        text = json.dumps(header).encode()
        path.write_bytes(struct.pack("<Q", len(text)) + text + b"\0" * 16)
        with pytest.raises(ValueError, match="sae_weights"):
            SAE.load_from_disk(tmp_path)
    assert "W_enc" in good


def test_a_yaml_file_that_multiplies_itself(tmp_path: Path) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12)]
    path = tmp_path / "bomb.yaml"
    path.write_text("\n".join(lines))
    with pytest.raises(ValueError, match="bomb"):
        read_config_file(path)
    path.write_text("a: &a [*a]")
    with pytest.raises(ValueError, match="bomb"):
        read_config_file(path)


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, "9" * 5000])
def test_files_that_are_too_deep_or_too_long(text: str, tmp_path: Path) -> None:
    for name in ("run.json", "run.yaml"):
        (tmp_path / name).write_text(text)
        with pytest.raises(ValueError, match=name):
            config_from_file(LanguageModelSAERunnerConfig, tmp_path / name)
