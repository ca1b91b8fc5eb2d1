"""The entry points from before version 3: they warn, and do what their successors do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import sae_lens
from sae_lens.config import LanguageModelSAERunnerConfig
from sae_lens.constants import EMBEDDED_DATASET_NAME, EMBEDDED_MODEL_NAME
from sae_lens.saes import SAE, TrainingSAE
from sae_lens.training.lm_runner import language_model_sae_runner
from sae_lens.training.sae_group import (
    SparseAutoencoderDictionary,
    train_sae_group_on_language_model,
)
from sae_lens.training.session_loader import LMSparseAutoencoderSessionloader
from sae_lens.training.sparse_autoencoder import SparseAutoencoder
from tests.helpers import ARCHITECTURES, make_sae, make_training_sae

EMBEDDED = {
    "model_name": EMBEDDED_MODEL_NAME,
    "dataset_path": EMBEDDED_DATASET_NAME,
    "hook_name": "blocks.1.hook_resid_pre",
    "hook_layer": 1,
    "d_in": 128,
    "context_size": 16,
}


def runner_cfg(folder: Path, **fields: Any) -> LanguageModelSAERunnerConfig:
    return LanguageModelSAERunnerConfig(
        **{
            **EMBEDDED, "d_sae": 64, "streaming": False, "log_to_wandb": False, "verbose": False,
            "training_tokens": 256, "train_batch_size_tokens": 64, "store_batch_size_prompts": 4,
            "n_batches_in_buffer": 4, "checkpoint_path": str(folder / "checkpoints"),
            "b_dec_init_method": "zeros", "model_from_pretrained_kwargs": {}, **fields,
        }
    )  # fmt: skip


@pytest.fixture
def saved(tmp_path: Path) -> tuple[SAE, Path]:
    sae = make_sae("standard", **EMBEDDED)
    sae.save_model(str(tmp_path / "sae"))
    return sae, tmp_path / "sae"


# -- SparseAutoencoder -----------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_sae_is_a_sparse_autoencoder(architecture: str) -> None:
    assert isinstance(make_sae(architecture), SparseAutoencoder)
    assert isinstance(make_training_sae(architecture), SparseAutoencoder)
    assert issubclass(type(make_sae(architecture)), SparseAutoencoder)
    assert not isinstance(torch.nn.Linear(2, 2), SparseAutoencoder)


def test_loading_gives_an_ordinary_sae(saved: tuple[SAE, Path]) -> None:
    sae, path = saved
    with pytest.warns(DeprecationWarning, match=r"use SAE\.load_from_disk"):
        loaded = SparseAutoencoder.load_from_pretrained(path)
    x = torch.randn(3, 128)
    assert type(loaded) is type(sae)
    assert torch.equal(loaded.eval()(x), sae(x))


def test_from_pretrained_gives_the_sae_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    sae = make_sae()
    asked: list[Any] = []

    def from_pretrained(*args: Any, **kwargs: Any) -> Any:
        asked.append((args, kwargs))
        return sae, {"some": "dict"}, None

    monkeypatch.setattr(SAE, "from_pretrained", from_pretrained)
    with pytest.warns(DeprecationWarning, match=r"use SAE\.from_pretrained"):
        got = SparseAutoencoder.from_pretrained("gpt2-small-res-jb", "blocks.8.hook_resid_pre")
    assert got is sae
    assert asked == [(("gpt2-small-res-jb", "blocks.8.hook_resid_pre"), {"device": "cpu"})]


def test_from_a_config(tmp_path: Path) -> None:
    with pytest.warns(DeprecationWarning, match=r"use TrainingSAE\(cfg\)"):
        training = SparseAutoencoder(runner_cfg(tmp_path, architecture="gated"))
    assert isinstance(training, TrainingSAE)
    assert training.cfg.architecture == "gated"
    training.save_model(str(tmp_path / "saved"))
    assert SAE.load_from_disk(tmp_path / "saved").cfg.hook_name == EMBEDDED["hook_name"]
    with pytest.warns(DeprecationWarning, match="is deprecated"):
        assert not isinstance(SparseAutoencoder(make_sae().cfg), TrainingSAE)


@pytest.mark.parametrize("name", ["sae.pt", "sae.pkl.gz"])
def test_pickles_are_refused_with_the_way_out(name: str) -> None:
    with (
        pytest.warns(DeprecationWarning, match="is deprecated"),
        pytest.raises(ValueError, match="Convert it once"),
    ):
        SparseAutoencoder.load_from_pretrained(name)


# -- the session loader ----------------------------------------------------------------------------


def load_session(loader_or_cfg: Any, **kwargs: Any) -> Any:
    with pytest.warns(UserWarning, match="not tokenized"):
        return loader_or_cfg.load_sae_training_group_session(**kwargs)


def make_loader(cfg: Any) -> LMSparseAutoencoderSessionloader:
    with pytest.warns(DeprecationWarning, match="LMSparseAutoencoderSessionloader is deprecated"):
        return LMSparseAutoencoderSessionloader(cfg)


def test_session_of_a_loaded_sae_as_the_early_readme_has_it(saved: tuple[SAE, Path]) -> None:
    sae, path = saved
    model, loaded, store = load_session(make_loader(sae.cfg), path=str(path))
    assert model.cfg.model_name == EMBEDDED_MODEL_NAME
    assert torch.equal(loaded.W_dec, sae.W_dec)
    assert (store.hook_name, store.context_size, store.d_in) == (sae.cfg.hook_name, 16, 128)
    tokens = store.get_batch_tokens(2)
    assert loaded(store.get_activations(tokens)).shape == (2, 16, 1, 128)


def test_session_of_a_run(tmp_path: Path) -> None:
    cfg = runner_cfg(tmp_path)
    _, sae, store = load_session(make_loader(cfg))
    assert isinstance(sae, TrainingSAE)
    assert store.next_batch().shape == (64, 1, 128)


def test_session_of_an_sae_config_alone(saved: tuple[SAE, Path]) -> None:
    sae, _ = saved
    _, fresh, _ = load_session(make_loader(sae.cfg))
    assert fresh.W_dec.shape == sae.W_dec.shape
    assert not torch.equal(fresh.W_dec, sae.W_dec)


@pytest.mark.parametrize("name", ["load_pretrained_sae", "load_session_from_pretrained"])
def test_session_of_a_folder(saved: tuple[SAE, Path], name: str) -> None:
    sae, path = saved
    load = getattr(LMSparseAutoencoderSessionloader, name)
    with pytest.warns(UserWarning, match="not tokenized") as warned:
        model, loaded, store = load(path, device="cpu")
    assert any(w.category is DeprecationWarning for w in warned)
    assert torch.equal(loaded.W_enc, sae.W_enc)
    assert store.model is model


def test_a_session_needs_a_dataset_and_a_model() -> None:
    loader = make_loader(make_sae(dataset_path="").cfg)
    with pytest.raises(ValueError, match=r"names no dataset \(dataset_path\)"):
        loader.load_sae_training_group_session()
    with pytest.raises(ValueError, match="names no model"):
        loader.get_model(None)


# -- runs and groups -------------------------------------------------------------------------------


def test_the_early_runner(tmp_path: Path) -> None:
    cfg = runner_cfg(tmp_path)
    with pytest.warns(UserWarning, match="not tokenized") as warned:
        sae = language_model_sae_runner(cfg)
    assert any("use SAETrainingRunner(cfg).run()" in str(w.message) for w in warned)
    assert isinstance(sae, TrainingSAE)
    assert list((tmp_path / "checkpoints").rglob("final_256"))


def test_groups_are_gone() -> None:
    with pytest.raises(NotImplementedError, match="SAETrainer"):
        train_sae_group_on_language_model(1, 2, three=3)


def test_a_dictionary_of_saes(tmp_path: Path) -> None:
    saes = {"a": make_sae(seed=1), "b": make_sae(seed=2)}
    with pytest.warns(DeprecationWarning, match="use a dict of SAEs"):
        group = SparseAutoencoderDictionary(saes)
    assert group["b"] is saes["b"]
    assert len(group) == 2
    assert list(group) == list(saes.items())
    assert group.to("cpu") is group
    for name, sae in group:
        sae.save_model(str(tmp_path / name))
    with pytest.warns(DeprecationWarning, match="is deprecated"):
        loaded = SparseAutoencoderDictionary.load_from_pretrained(tmp_path)
    assert [name for name, _ in loaded] == ["a", "b"]
    assert torch.equal(loaded["a"].W_dec, saes["a"].W_dec)
    with pytest.warns(DeprecationWarning, match="is deprecated"):
        assert len(SparseAutoencoderDictionary.load_from_pretrained(tmp_path / "a")) == 1
    with pytest.raises(FileNotFoundError, match="There is no SAE"):
        SparseAutoencoderDictionary.load_from_pretrained(tmp_path / "a" / "nothing")


def test_a_dictionary_from_a_config(tmp_path: Path) -> None:
    cfg = runner_cfg(tmp_path)
    with pytest.warns(DeprecationWarning, match="is deprecated"):
        ((name, sae),) = SparseAutoencoderDictionary(cfg)
    assert cfg.hook_name in name
    assert isinstance(sae, TrainingSAE)
    cfg.lr = [1e-3, 1e-4]  # type: ignore[assignment]
    with (
        pytest.warns(DeprecationWarning, match="is deprecated"),
        pytest.raises(ValueError, match=r"lists .*\(lr\)"),
    ):
        SparseAutoencoderDictionary(cfg)


def test_early_names_in_the_root() -> None:
    assert sae_lens.SparseAutoencoder is SparseAutoencoder
    assert sae_lens.LMSparseAutoencoderSessionloader is LMSparseAutoencoderSessionloader
    assert "SparseAutoencoder" not in sae_lens.__all__


@pytest.mark.parametrize(
    ("module", "name", "home"),
    [
        ("config", "LanguageModelSAERunnerConfig", "sae_lens.config"),
        ("config", "CacheActivationsRunnerConfig", "sae_lens.config"),
        ("evals", "run_evals", "sae_lens.evals"),
        ("load_model", "load_model", "sae_lens.load_model"),
        ("cache_activations_runner", "CacheActivationsRunner", "sae_lens"),
        ("pretokenize_runner", "PretokenizeRunner", "sae_lens"),
        ("batching", "concat_and_batch_sequences", "sae_lens.tokenization_and_batching"),
        ("activation_functions", "get_activation_fn", "sae_lens.saes.activation_fns"),
    ],
)
def test_early_modules_lead_to_the_same_objects(module: str, name: str, home: str) -> None:
    import importlib

    early = getattr(importlib.import_module(f"sae_lens.training.{module}"), name)
    assert early is getattr(importlib.import_module(home), name)


@pytest.mark.parametrize("name", ["lr", "l1_coefficient", "hook_layer", "expansion_factor"])
def test_lists_of_hyper_parameters_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name}: lists of hyper-parameters"):
        LanguageModelSAERunnerConfig(**{name: [1, 2]})
