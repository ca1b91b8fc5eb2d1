"""Runs of the newer architectures, and with training features, go on with the same numbers."""

from __future__ import annotations

import copy
import shutil
from pathlib import Path
from typing import Any

import pytest

from sae_lens.registry import get_sae_training_class
from sae_lens.training.features import (
    Resampling,
    TargetL0,
    TrainingFeatures,
    WeightAverage,
)
from tests.helpers import D_IN, tiny_model
from tests.runs import assert_same_weights, run_config, train

pytestmark = pytest.mark.filterwarnings("ignore:All samples in the training dataset")

HOOKS = {"hook_name": "blocks.0.ln2.hook_normalized", "hook_name_out": "blocks.0.hook_mlp_out"}
CROSSCODER = {
    "hook_name": "blocks.0.hook_resid_pre",
    "hook_names": ["blocks.0.hook_resid_pre", "blocks.1.hook_resid_post"],
}
CROSS_LAYER = {
    "hook_name": HOOKS["hook_name"],
    "hook_names": [f"blocks.{layer}.ln2.hook_normalized" for layer in range(2)],
    "hook_names_out": [f"blocks.{layer}.hook_mlp_out" for layer in range(2)],
}
SAES: dict[str, dict[str, Any]] = {
    "matryoshka_batchtopk": {"k": 4, "matryoshka_widths": [8, 32]},
    "abstopk": {"k": 4},
    "matching_pursuit": {"max_iterations": 3, "decoder_init_norm": 1.0},
    "transcoder": HOOKS,
    "topk_skip_transcoder": {**HOOKS, "k": 4},
    "crosscoder": {**CROSSCODER, "normalize_activations": "expected_average_only_in"},
    "jumprelu_crosscoder": CROSSCODER,
    "topk_crosscoder": {**CROSSCODER, "k": 4},
    "batchtopk_crosscoder": {
        **CROSSCODER,
        "k": 4,
        "normalize_activations": "expected_average_only_in",
    },
    "cross_layer_transcoder": CROSS_LAYER,
    "jumprelu_cross_layer_transcoder": {
        **CROSS_LAYER,
        "normalize_activations": "expected_average_only_in",
    },
    "topk_cross_layer_transcoder": {**CROSS_LAYER, "k": 2},
    "batchtopk_cross_layer_transcoder": {
        **CROSS_LAYER,
        "k": 2,
        "normalize_activations": "expected_average_only_in",
    },
}


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny_model()


def resumed_is_whole(tmp_path: Path, model: Any, architecture: str, **fields: Any) -> None:
    def config(folder: Path, **more: Any) -> Any:
        made = copy.deepcopy(fields)
        if "sae" in made and "hook_name" in SAES[architecture]:
            made["hook_name"] = SAES[architecture]["hook_name"]
        return run_config(folder, architecture, n_checkpoints=3, **made, **more)

    whole = train(config(tmp_path), model)
    names = sorted(p.name for p in (tmp_path / "run").iterdir() if p.name.isdecimal())
    assert len(names) >= 2
    elsewhere = tmp_path / "copy"
    shutil.copytree(tmp_path / "run" / names[0], elsewhere / "run" / names[0])
    path = str(elsewhere / "run" / names[0])
    assert_same_weights(train(config(elsewhere, resume_from_checkpoint=path), model), whole)


@pytest.mark.parametrize("architecture", SAES)
def test_newer_architectures(architecture: str, tmp_path: Path, model: Any):
    config_class = get_sae_training_class(architecture).config_class
    sae = config_class(d_in=D_IN, d_sae=32, **SAES[architecture])
    nested = {"sae": sae, "d_in": D_IN, "d_sae": 32, "l1_warm_up_steps": 0, "noise_scale": 0.0}
    if architecture == "transcoder":
        nested["l1_warm_up_steps"] = sae.l1_warm_up_steps
    resumed_is_whole(tmp_path, model, architecture, **nested)


@pytest.mark.parametrize(
    ("architecture", "features"),
    [
        (
            "standard",
            TrainingFeatures(
                target_l0=TargetL0(5.0),
                weight_average=WeightAverage(0.9),
                resampling=Resampling(every=6, until=1.0),
                gradient_accumulation_steps=3,
            ),
        ),
        ("standard", {"p_schedule": {"end": 0.5}, "optimizer": {"path": "torch.optim.AdamW"}}),
        ("topk", {"k_schedule": {"initial_k": 12, "steps": 0.8}, "checkpoint_spacing": "log"}),
        (
            "jumprelu",
            {
                "jumprelu_lr_factor": 0.3,
                "weight_average": {"decay": 0.7},
                "aux_k": {"k": 4},
                "ghost_gradients": True,
                "dead_after_tokens": 40,
                "norm_filter": {"multiple": 1.2},
            },
        ),
        (
            "gated",
            {
                "weight_schedules": {"sparsity": {"start": 3.0, "kind": "exponential"}},
                "aux_k": {"coefficient": 0.5},
                "resampling": {"every": 6, "until": 1.0},
            },
        ),
    ],
)
def test_training_features(architecture: str, features: Any, tmp_path: Path, model: Any):
    fields = {"l1_warm_up_steps": 0} if "weight_schedules" in str(features) else {}
    resumed_is_whole(tmp_path, model, architecture, features=features, **fields)


@pytest.mark.parametrize("name", ["constantwithwarmup", "cosineannealing", "exponentialwarmup"])
def test_learning_rate_schedules(name: str, tmp_path: Path, model: Any):
    schedule = {"name": name, "warm_up_steps": 0 if name == "cosineannealing" else 0.3}
    features = {"lr_schedule": schedule, "jumprelu_lr_factor": 0.5}
    fields = {"lr_warm_up_steps": 0, "lr_decay_steps": 0}
    resumed_is_whole(tmp_path, model, "jumprelu", features=features, **fields)
