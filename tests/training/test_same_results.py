"""Training features of a checkpoint's config and of the one to go on with."""

from __future__ import annotations

from typing import Any

import pytest

from sae_lens.config import SAETrainerConfig
from sae_lens.training.same_results import differing_fields, refuse_differences

TARGET = {"target_l0": {"target": 5.0}}


def saved(features: Any) -> dict[str, Any]:
    values = SAETrainerConfig(64, 16).to_dict()
    return {**values, "features": features}


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (None, None),
        (None, {}),
        ({}, None),
        # as a version wrote it that knew fewer features
        ({"target_l0": {"target": 5.0}, "gradient_accumulation_steps": 1}, TARGET),
        (TARGET, {**TARGET, "checkpoint_spacing": "log"}),
    ],
)
def test_these_are_the_same(before: Any, after: Any):
    assert differing_fields(saved(before), SAETrainerConfig(64, 16, features=after)) == {}


def test_only_what_differs_is_named():
    cfg = SAETrainerConfig(64, 16, features={**TARGET, "gradient_accumulation_steps": 2})
    found = differing_fields(saved(TARGET), cfg)
    assert found == {
        "features": ({"gradient_accumulation_steps": 1}, {"gradient_accumulation_steps": 2})
    }
    with pytest.raises(ValueError, match="features is {'gradient_accumulation_steps': 2}, in the"):
        refuse_differences(saved(TARGET), cfg, "there")
    assert "features" in differing_fields(saved({"from_the_future": 1}), cfg)
