"""What SAEBench and sae-probes do: the registry, configs, stores, a trainer of their own."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sae_lens import SAE, ActivationsStore
from sae_lens.config import LoggingConfig, SAETrainerConfig
from sae_lens.loading import directory
from sae_lens.loading.pretrained_saes_directory import get_pretrained_saes_directory
from sae_lens.saes.batchtopk_sae import BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig
from sae_lens.saes.sae import SAEMetadata
from sae_lens.saes.topk_sae import TopK
from sae_lens.training.activations_store import ActivationsStore as StoreAtItsOldPath
from sae_lens.training.sae_trainer import SAETrainer
from tests.clients.users import D_SAE, HOOK, KINDS, converter_of, saved, standardize, users_sae

pytestmark = pytest.mark.filterwarnings("ignore:Dataset is not tokenized")

CONTEXT = 16


def test_names_are_where_it_imports_them():
    assert StoreAtItsOldPath is ActivationsStore
    assert importlib.metadata.version("sae_lens")  # else results say "Unknown"
    assert not list(SAEMetadata())
    assert SAEMetadata().hook_name is None


def test_the_registry_is_listed_and_filtered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    file = tmp_path / "registry.yaml"
    file.write_text(
        "a-release:\n  repo_id: o/r\n  model: m\n  saes:\n"
        "  - {id: layer_1, path: one, l0: 7.5, variance_explained: 0.5}\n"
        "  - {id: layer_2, path: two}\n"
    )
    monkeypatch.setattr(directory, "REGISTRY_FILE", file)
    found = []
    for release, lookup in get_pretrained_saes_directory().items():
        for sae_id in lookup.saes_map:
            found.append(
                (release, sae_id, lookup.expected_var_explained[sae_id], lookup.expected_l0[sae_id])
            )
    assert found == [("a-release", "layer_1", 0.5, 7.5), ("a-release", "layer_2", 1.0, 0.0)]
    rows = [
        (data.model, data.release, data.repo_id, len(data.saes_map))
        for data in get_pretrained_saes_directory().values()
    ]
    assert rows == [("m", "a-release", "o/r", 2)]
    details = get_pretrained_saes_directory()["a-release"].__dict__
    assert details["saes_map"] == {"layer_1": "one", "layer_2": "two"}


def loaded_by_name(kind: str, d_in: int, folder: Path, **fields: Any) -> Any:
    """`load_and_format_sae` for a release and an id."""
    saved(users_sae(kind, d_in, **fields), folder / kind)
    sae, _, sparsity = SAE.from_pretrained_with_cfg_and_sparsity(
        release="owner/repo", sae_id=kind, device="cpu", converter=converter_of(folder)
    )
    assert sparsity is None
    try:
        sae.fold_W_dec_norm()
    except NotImplementedError:
        assert kind == "topk"
    standardize(sae.cfg)
    return sae


@pytest.mark.filterwarnings("ignore:Folding decoder norms")
@pytest.mark.parametrize("kind", KINDS)
def test_a_config_is_standardized_and_kept_in_the_results(kind: str, d_in: int, tmp_path: Path):
    sae = loaded_by_name(kind, d_in, tmp_path)
    cfg = sae.cfg
    assert cfg.architecture_str == kind
    assert (cfg.hook_name, cfg.hook_layer, cfg.hook_head_index) == (HOOK, 1, None)
    assert cfg.metadata.hook_layer == 1
    assert cfg.metadata.exclude_special_tokens is None
    assert cfg.model_from_pretrained_kwargs == {}
    described = json.loads(json.dumps(cfg.to_dict()))
    assert (described["d_sae"], described["hook_name"]) == (D_SAE, HOOK)
    assert dataclasses.asdict(cfg)["d_in"] == d_in
    # a second evaluation of the same object does it again
    standardize(cfg)
    assert json.loads(json.dumps(cfg.to_dict())) == described
    # and such an SAE is still saved and loaded as the one it is
    again = SAE.load_from_disk(saved(sae, tmp_path / "again"))
    x = torch.randn(3, d_in)
    torch.testing.assert_close(again(x), sae(x))


@pytest.mark.filterwarnings("ignore:Folding decoder norms")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_encoding_and_decoding_in_any_order(
    kind: str, dtype: torch.dtype, d_in: int, tmp_path: Path
):
    sae = loaded_by_name(kind, d_in, tmp_path).to(device="cpu", dtype=dtype)
    assert sae.cfg.dtype in ("float32", "bfloat16", "torch.float32", "torch.bfloat16")
    acts = torch.randn(4, 6, d_in).to(dtype)
    with torch.no_grad():
        features = sae.encode(acts)
        assert type(features) is Tensor
        assert not features.is_sparse
        assert features.dtype == dtype == sae.dtype
        changed = features.clone()
        changed[..., 2] *= 10.0
        plain, modified, part = (
            sae.decode(features),
            sae.decode(changed),
            sae.decode(features[:, :2]),
        )
        assert plain.shape == modified.shape == acts.shape
        assert plain.dtype == dtype
        torch.testing.assert_close(part, plain[:, :2])
        # flat batches of another size give the same features
        torch.testing.assert_close(sae.encode(acts.flatten(0, 1)), features.flatten(0, 1))
        torch.testing.assert_close(sae.decode(features.flatten(0, 1)), plain.flatten(0, 1))
    bias = "b_enc" if hasattr(sae, "b_enc") else "b_mag"
    assert getattr(sae, bias).shape == (D_SAE,)
    assert hasattr(sae, "b_enc") == (kind != "gated")


def test_activations_are_encoded_in_batches_on_the_cpu(d_in: int):
    sae = users_sae("jumprelu", d_in)
    activations = torch.randn(13, d_in)
    with torch.inference_mode():
        parts = [sae.encode(activations[i : i + 5].to("cpu")).cpu().float() for i in (0, 5, 10)]
    assert torch.cat(parts).to_sparse().shape == (13, D_SAE)
    torch.testing.assert_close(torch.cat(parts), sae.encode(activations).detach())


def test_a_store_for_the_core_evaluation(d_in: int, model: Any, text_path: str):
    sae = users_sae("standard", d_in)
    standardize(sae.cfg)
    store = ActivationsStore.from_sae(
        model, sae, context_size=CONTEXT, dataset=text_path, dataset_trust_remote_code=True
    )
    assert store.context_size == CONTEXT
    store.shuffle_input_dataset(seed=42)
    first = store.get_batch_tokens(4)
    assert first.shape == (4, CONTEXT)
    assert not torch.equal(store.get_batch_tokens(4), first)
    store.reset_input_dataset()
    assert torch.equal(store.get_batch_tokens(4), first)


def test_batches_without_special_tokens(d_in: int, model: Any, text_path: str):
    sae = users_sae("standard", d_in)
    standardize(sae.cfg)
    sae.cfg.dataset_trust_remote_code = True
    sae.cfg.metadata.dataset_trust_remote_code = True
    sae.cfg.metadata.context_size = CONTEXT
    sae.cfg.metadata.exclude_special_tokens = [model.tokenizer.bos_token_id]
    make = lambda: ActivationsStore.from_sae(  # noqa: E731
        model, sae, store_batch_size_prompts=4, dataset=text_path, device="cpu"
    )
    tokens = make().get_batch_tokens()
    store = make()
    rows = torch.cat([store.get_filtered_llm_batch() for _ in range(2)], dim=0)
    assert rows.ndim == 2
    assert rows.shape[1] == d_in
    _, cache = model.run_with_cache(tokens, names_filter=HOOK)
    expected = cache[HOOK][tokens != model.tokenizer.bos_token_id]
    torch.testing.assert_close(rows[: len(expected)], expected, atol=1e-4, rtol=1e-4)
    assert sae.encode(rows.unsqueeze(1)).squeeze().shape == (len(rows), D_SAE)


def test_topk_of_activations():
    acts = torch.randn(6, 10)
    kept = TopK(k=3)(acts)
    assert kept.shape == acts.shape
    wanted = torch.zeros_like(acts)
    values, indices = acts.topk(3, dim=-1)
    wanted.scatter_(-1, indices, values.relu())
    assert torch.equal(kept, wanted)


@pytest.mark.parametrize("weight_decay", [0.0, 0.01])
def test_an_sae_of_decoder_directions_is_trained(
    weight_decay: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    torch.manual_seed(0)
    width, k = 12, 2
    decoder = torch.randn(30, width)
    decoder = (decoder / decoder.norm(dim=-1, keepdim=True)).contiguous()

    def batches(size: int) -> Iterator[Tensor]:
        while True:
            yield decoder[torch.randint(0, len(decoder), (size,))]

    inner = BatchTopKTrainingSAE(
        BatchTopKTrainingSAEConfig(
            d_in=width,
            d_sae=max(math.ceil(30 * 0.5), k),
            k=k,
            device="cpu",
            dtype="float32",
            rescale_acts_by_decoder_norm=True,
        )
    )
    config = SAETrainerConfig(
        n_checkpoints=0,
        checkpoint_path=None,
        save_final_checkpoint=False,
        total_training_samples=150 * 16,
        device="cpu",
        autocast=False,
        lr=3e-3,
        lr_end=3e-3,
        lr_scheduler_name="constant",
        lr_warm_up_steps=0,
        adam_beta1=0.9,
        adam_beta2=0.999,
        lr_decay_steps=0,
        n_restart_cycles=0,
        train_batch_size_samples=16,
        dead_feature_window=1000,
        feature_sampling_window=2000,
        logger=LoggingConfig(log_to_wandb=False),
    )
    trainer = SAETrainer(cfg=config, sae=inner, data_provider=batches(16))
    for group in trainer.optimizer.param_groups:
        group["weight_decay"] = weight_decay
    before = explained(inner, decoder)
    monkeypatch.chdir(tmp_path)
    trained = trainer.fit()
    assert explained(trained, decoder) > max(0.3, before)
    assert not list(tmp_path.iterdir())  # neither checkpoints nor logs


@torch.no_grad()
def explained(sae: Any, rows: Tensor) -> float:
    sae.eval()
    residual = sum(((batch - sae(batch)) ** 2).sum() for batch in rows.split(7))
    return float(1 - residual / ((rows - rows.mean(dim=0)) ** 2).sum())
