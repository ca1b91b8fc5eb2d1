"""Every sparsity loss and every way to a target L0, in runs on a language model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from sae_lens.config import LanguageModelSAERunnerConfig, LoggingConfig
from sae_lens.registry import get_sae_training_class
from tests.helpers import D_IN
from tests.runs import make_runner

CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    **{
        f"{name}-{kind}": (name, {"sparsity_loss": kind, "lp_norm": 1.3}, {})
        for name in ("standard", "gated")
        for kind in ("power", "tanh", "tanh-quad")
    },
    **{
        f"jumprelu-{mode}": ("jumprelu", {"jumprelu_sparsity_loss_mode": mode}, {})
        for mode in ("step", "tanh", "power", "tanh-quad")
    },
    "jumprelu-quadratic": (
        "jumprelu",
        {"jumprelu_sparsity_loss_mode": "quadratic", "target_l0": 5.0},
        {},
    ),
    "jumprelu-pre-activations": (
        "jumprelu",
        {"jumprelu_sparsity_loss_mode": "tanh", "pre_act_loss_coefficient": 0.1},
        {},
    ),
    **{
        f"{name}-controlled": (name, {}, {"target_l0": {"target": 5.0}})
        for name in ("standard", "gated", "jumprelu")
    },
    **{
        f"{name}-annealed": (name, fields, {"p_schedule": {"end": 0.5}})
        for name, fields in {
            "standard": {},
            "gated": {},
            "jumprelu": {"jumprelu_sparsity_loss_mode": "power"},
        }.items()
    },
}


@pytest.mark.filterwarnings("ignore:All samples in the training dataset")
@pytest.mark.parametrize("case", CASES)
def test_it_trains(case: str, tmp_path: Path):
    architecture, fields, features = CASES[case]
    coefficient = "l0_coefficient" if architecture == "jumprelu" else "l1_coefficient"
    sae = get_sae_training_class(architecture).config_class(
        d_in=D_IN, d_sae=32, **{coefficient: 0.02, **fields}
    )
    cfg = LanguageModelSAERunnerConfig(
        sae=sae,
        model_name="tiny",
        hook_name="blocks.1.hook_resid_pre",
        context_size=16,
        train_batch_size_tokens=32,
        store_batch_size_prompts=4,
        n_batches_in_buffer=4,
        training_tokens=32 * 40,
        lr=1e-2,
        adam_beta1=0.9,
        features=features,
        checkpoint_path=str(tmp_path),
        model_from_pretrained_kwargs={},
        verbose=False,
        logger=LoggingConfig(
            log_to_wandb=False,
            log_to_jsonl=str(tmp_path / "log.jsonl"),
            wandb_log_frequency=1,
            eval_every_n_wandb_logs=1000,
        ),
    )
    trained = make_runner(cfg).run()
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    mse = [line["losses/mse_loss"] for line in lines if "losses/mse_loss" in line]
    assert len(mse) == 40
    assert sum(mse[-5:]) < 0.8 * sum(mse[:5])
    name = "losses/l0_loss" if architecture == "jumprelu" else "losses/l1_loss"
    assert all(line[name] > 0 for line in lines if name in line)
    assert any(name in line for line in lines)
    assert all(torch.isfinite(value).all() for value in trained.state_dict().values())
    is_steered = any("details/coefficient_scale" in line for line in lines)
    assert is_steered == ("target_l0" in features)
