"""An SAE trained from a cache is the SAE trained from the model on the same tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset, disable_progress_bars

from sae_lens import cache_activations_runner
from sae_lens.cache_activations_runner import CacheActivationsRunner
from sae_lens.config import CacheActivationsRunnerConfig, LanguageModelSAERunnerConfig
from sae_lens.sae_training_runner import SAETrainingRunner
from sae_lens.saes import SkipTranscoderTrainingConfig, TrainingSAE
from tests.helpers import ARCHITECTURES, D_IN, tiny_model

HOOK = "blocks.1.hook_resid_pre"
CONTEXT = 8
N_ROWS = 64


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny_model()


def train(
    folder: Path, model: Any, tokens: Dataset, cache: Path | None, **fields: Any
) -> TrainingSAE:
    cfg = LanguageModelSAERunnerConfig(
        **{
            "model_name": "tiny", "hook_name": HOOK, "hook_layer": 1, "d_in": D_IN, "d_sae": 32,
            "context_size": CONTEXT, "training_tokens": 12 * 32, "train_batch_size_tokens": 32,
            "store_batch_size_prompts": 4, "n_batches_in_buffer": 4, "l1_coefficient": 1e-2,
            "lr": 1e-2, "log_to_wandb": False, "verbose": False, "dataset_path": "tiny/tokens",
            "checkpoint_path": str(folder), "use_cached_activations": cache is not None,
            "cached_activations_path": None if cache is None else str(cache),
            "n_batches_for_norm_estimate": 4, **fields,
        }
    )  # fmt: skip
    return SAETrainingRunner(cfg, override_dataset=tokens, override_model=model).run()


def make_cache(
    folder: Path, model: Any, tokens: Dataset, monkeypatch: pytest.MonkeyPatch, **fields: Any
) -> Path:
    disable_progress_bars()
    monkeypatch.setattr(cache_activations_runner, "load_model", lambda *_, **__: model)
    cfg = CacheActivationsRunnerConfig(
        **{
            "dataset_path": "tiny/tokens", "model_name": "tiny", "model_batch_size": 4,
            "hook_name": HOOK, "hook_layer": 1, "d_in": D_IN, "context_size": CONTEXT,
            "training_tokens": N_ROWS * CONTEXT, "shuffle": False, "device": "cpu",
            "new_cached_activations_path": str(folder / "cache"), **fields,
        }
    )  # fmt: skip
    CacheActivationsRunner(cfg, tokens).run()
    return folder / "cache"


def token_rows() -> Dataset:
    ids = torch.randint(0, 32, (N_ROWS, CONTEXT), generator=torch.Generator().manual_seed(0))
    return Dataset.from_dict({"tokens": ids.tolist()})


CASES = [(architecture, "none") for architecture in ARCHITECTURES] + [
    ("standard", "expected_average_only_in"),
    ("standard", "layer_norm"),
    ("standard", "whitening"),
]


@pytest.mark.parametrize(("architecture", "normalize"), CASES)
def test_the_same_weights(
    tmp_path: Path,
    model: Any,
    monkeypatch: pytest.MonkeyPatch,
    architecture: str,
    normalize: str,
) -> None:
    tokens = token_rows()
    fields = {
        "architecture": architecture,
        "normalize_activations": normalize,
        "activation_fn_kwargs": {"k": 4} if architecture == "topk" else {},
        "b_dec_init_method": "mean",
    }
    cache = make_cache(tmp_path, model, tokens, monkeypatch)
    from_model = train(tmp_path / "a", model, tokens, None, **fields)
    from_cache = train(tmp_path / "b", model, tokens, cache, **fields)
    for name, weights in from_model.state_dict().items():
        torch.testing.assert_close(from_cache.state_dict()[name], weights, rtol=0, atol=0)
    untrained = train(tmp_path / "c", model, tokens, None, **{**fields, "training_tokens": 0})
    assert not torch.equal(from_model.W_dec, untrained.W_dec)


def test_the_same_weights_in_bfloat16_and_sliced(
    tmp_path: Path, model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = token_rows()
    cache = make_cache(
        tmp_path, model, tokens, monkeypatch, dtype="bfloat16", seqpos_slice=(2, None),
        training_tokens=N_ROWS * 6,
    )  # fmt: skip
    fields = {"dtype": "bfloat16", "b_dec_init_method": "zeros", "training_tokens": 6 * 32}
    from_model = train(tmp_path / "a", model, tokens, None, seqpos_slice=(2, None), **fields)
    with pytest.warns(RuntimeWarning, match="are discarded"):
        from_cache = train(tmp_path / "b", model, tokens, cache, context_size=6, **fields)
    for name, weights in from_model.state_dict().items():
        assert torch.equal(from_cache.state_dict()[name], weights)


def test_several_hooks_of_one_cache(
    tmp_path: Path, model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = token_rows()
    other = "blocks.0.hook_mlp_out"
    cache = make_cache(tmp_path, model, tokens, monkeypatch, hook_names=[other])
    for number, hook in enumerate((HOOK, other)):
        fields = {"hook_name": hook, "hook_layer": 1 - number}
        from_model = train(tmp_path / f"a{number}", model, tokens, None, **fields)
        from_cache = train(tmp_path / f"b{number}", model, tokens, cache, **fields)
        assert torch.equal(from_model.W_dec, from_cache.W_dec)


def test_a_transcoder_of_two_hooks_of_a_cache(
    tmp_path: Path, model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = token_rows()
    hook, out = "blocks.0.ln2.hook_normalized", "blocks.0.mlp.hook_post"
    cache = make_cache(
        tmp_path, model, tokens, monkeypatch, hook_name=hook, hook_layer=0, hook_names=[out],
        hook_widths={out: 4 * D_IN},
    )  # fmt: skip

    def weights(folder: str, cached: Path | None) -> dict[str, torch.Tensor]:
        sae = SkipTranscoderTrainingConfig(
            d_in=D_IN, d_sae=32, d_out=4 * D_IN, hook_name=hook, hook_name_out=out
        )
        nested = {"sae": sae, "hook_name": hook, "hook_layer": 0, "l1_coefficient": 1.0}
        return train(tmp_path / folder, model, tokens, cached, **nested).state_dict()

    from_cache = weights("b", cache)
    for name, tensor in weights("a", None).items():
        assert torch.equal(from_cache[name], tensor)
