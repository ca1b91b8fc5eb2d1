from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

from sae_lens.config import CacheActivationsRunnerConfig


def make(**fields: Any) -> CacheActivationsRunnerConfig:
    return CacheActivationsRunnerConfig(
        **{
            "dataset_path": "owner/data",
            "model_name": "owner/model",
            "model_batch_size": 16,
            "hook_name": "blocks.0.hook_mlp_out",
            "hook_layer": 0,
            "d_in": 512,
            "training_tokens": 1024,
            "context_size": 8,
            "buffer_size_gb": 256 * 2048 / 1e9,
            **fields,
        }
    )


def test_sizes_that_follow() -> None:
    cfg = make()
    assert cfg.bytes_per_token == 2048
    assert cfg.n_tokens_in_batch == 128
    assert cfg.n_tokens_in_buffer == 256
    assert cfg.n_batches_in_buffer == 2
    assert cfg.n_seq_in_buffer == 32
    assert cfg.n_buffers == 4
    assert cfg.n_seq_in_dataset == 128
    assert cfg.sliced_context_size == 8


def test_sizes_count_the_slice() -> None:
    cfg = make(seqpos_slice=(1, 7, 2))
    assert cfg.sliced_context_size == 3
    assert cfg.n_tokens_in_batch == 48
    assert cfg.n_tokens_in_buffer == 240  # whole batches of 48 in 256
    assert cfg.n_seq_in_dataset == 341
    assert cfg.n_buffers == 5
    assert make(seqpos_slice=None).sliced_context_size == 8


def test_a_buffer_holds_whole_batches_and_the_last_is_counted() -> None:
    cfg = make(buffer_size_gb=300 * 2048 / 1e9, training_tokens=1025)
    assert cfg.n_tokens_in_buffer == 256
    assert cfg.n_buffers == 5


@pytest.mark.parametrize(
    ("dtype", "itemsize"), [("float32", 4), ("bfloat16", 2), ("float16", 2), ("float64", 8)]
)
def test_bytes_of_a_token(dtype: str, itemsize: int) -> None:
    assert make(dtype=dtype).bytes_per_token == 512 * itemsize


def test_several_hooks_share_the_buffer() -> None:
    cfg = make(
        hook_names=["blocks.0.hook_mlp_out", "blocks.1.mlp.hook_post"],
        hook_widths={"blocks.1.mlp.hook_post": 1536},
        buffer_size_gb=1.0,
    )
    assert cfg.widths == {"blocks.0.hook_mlp_out": 512, "blocks.1.mlp.hook_post": 1536}
    assert cfg.bytes_per_token == 4 * 2048
    assert make(hook_names=["a.1", "a.2"], buffer_size_gb=1.0).widths == {
        "blocks.0.hook_mlp_out": 512, "a.1": 512, "a.2": 512,
    }  # fmt: skip
    with pytest.raises(ValueError, match=r"hook_widths names a\.9"):
        make(hook_widths={"a.9": 4})


def test_a_batch_that_does_not_fit_is_refused_with_the_size_it_needs() -> None:
    with pytest.raises(ValueError, match=r"buffer_size_gb to at least 0\.000262"):
        make(buffer_size_gb=1e-5)


def test_a_config_is_rebuilt_from_its_values() -> None:
    cfg = make(hook_names=["a.1"], seqpos_slice=(2,), model_kwargs={"x": 1})
    assert CacheActivationsRunnerConfig(**asdict(cfg)) == cfg
    as_json = {**asdict(cfg), "seqpos_slice": [2]}
    assert CacheActivationsRunnerConfig(**as_json) == cfg


def test_defaults() -> None:
    cfg = CacheActivationsRunnerConfig("a/b", "c/d", 1, "blocks.3.hook_z", 3, 4, 80, 8)
    assert cfg.new_cached_activations_path == "activations/a_b/c_d/blocks.3.hook_z"
    assert cfg.shuffle is True
    assert cfg.streaming is True
    assert cfg.seed == 42
    assert cfg.buffer_size_gb == 2.0
    assert cfg.seqpos_slice == (None,)
    assert cfg.hf_revision == "main"
    assert cfg.device == ("cuda" if torch.cuda.is_available() else "cpu")
    assert cfg.cache_token_ids is False


def test_values_may_be_torch_objects() -> None:
    cfg = make(dtype=torch.bfloat16, device=torch.device("cpu"))
    assert (cfg.dtype, cfg.device) == ("bfloat16", "cpu")


def test_early_names_are_taken_with_a_warning() -> None:
    with pytest.warns(DeprecationWarning, match="hook_point is an early name of hook_name"):
        cfg = CacheActivationsRunnerConfig(
            dataset_path="d", model_name="m", model_batch_size=1, d_in=4, training_tokens=80,
            context_size=8, hook_point="blocks.{layer}.hook_mlp_out", hook_point_layer=2,
        )  # type: ignore[call-arg]  # fmt: skip
    assert (cfg.hook_name, cfg.hook_layer) == ("blocks.2.hook_mlp_out", 2)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"dtype": "int8"}, "dtype is 'int8'"),
        ({"d_in": 0}, "d_in is 0"),
        ({"model_batch_size": 0}, "model_batch_size is 0"),
        ({"context_size": 0}, "context_size is 0"),
        ({"training_tokens": 7}, "training_tokens is 7, less than the 8 positions"),
        ({"seqpos_slice": (8, 9)}, "leaves no position"),
    ],
)
def test_bad_values_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(**fields)


@pytest.mark.parametrize("column", ["tokens", "input_ids"])
def test_the_context_can_be_read_off_the_data(tmp_path: Path, column: str) -> None:
    from datasets import Dataset

    Dataset.from_dict({column: [[1, 2, 3, 4, 5]]}).save_to_disk(str(tmp_path / "data"))
    cfg = make(dataset_path=str(tmp_path / "data"), context_size=-1)
    assert cfg.context_size == 5


def test_the_context_cannot_be_read_off_text(tmp_path: Path) -> None:
    from datasets import Dataset

    Dataset.from_dict({"text": ["a"]}).save_to_disk(str(tmp_path / "data"))
    with pytest.raises(ValueError, match=r"columns \['text'\] and neither tokens nor input_ids"):
        make(dataset_path=str(tmp_path / "data"), context_size=-1)
