from __future__ import annotations

import pytest
import torch

from sae_lens.training import geometric_median as module
from sae_lens.training.geometric_median import (
    compute_geometric_median,
    geometric_median_objective,
    weighted_average,
)
from tests.helpers import golden_cases, load_golden


def test_equals_the_reference() -> None:
    (case,) = golden_cases("geometric_median")
    description, tensors = load_golden(case)
    found = compute_geometric_median(tensors["in/points"], maxiter=description["maxiter"])
    torch.testing.assert_close(found.median, tensors["out/median"], atol=1e-3, rtol=1e-3)


def test_weighted_average_and_objective_by_hand() -> None:
    points = torch.tensor([[0.0, 0.0], [2.0, 0.0], [0.0, 4.0]])
    weights = torch.tensor([1.0, 1.0, 2.0])
    average = weighted_average(points, weights)
    assert average.tolist() == [0.5, 2.0]
    objective = geometric_median_objective(torch.zeros(2), points, weights)
    assert objective.item() == pytest.approx(2.0 + 8.0)


def test_an_outlier_moves_the_median_little() -> None:
    points = torch.randn(101, 4, generator=torch.Generator().manual_seed(0))
    points[0] = 1e4
    found = compute_geometric_median(points)
    assert found.median.norm() < 1
    assert points.mean(0).norm() > 100


def test_says_why_it_ended_and_logs_a_falling_objective() -> None:
    points = torch.randn(50, 3, generator=torch.Generator().manual_seed(0))
    ended = compute_geometric_median(points, maxiter=3, do_log=True)
    assert "maximum iterations" in ended.termination
    assert ended.logs is not None
    assert ended.logs == sorted(ended.logs, reverse=True)
    converged = compute_geometric_median(points, ftol=1e-3)
    assert "converged" in converged.termination
    assert converged.logs is None
    assert converged.new_weights.shape == (50,)


def test_half_precision_points_are_measured_in_float32() -> None:
    points = torch.randn(64, 8, generator=torch.Generator().manual_seed(0)) + 3
    found = compute_geometric_median(points.bfloat16())
    assert found.median.dtype == torch.float32
    torch.testing.assert_close(
        found.median, compute_geometric_median(points).median, atol=0.03, rtol=0.01
    )


def test_distances_are_taken_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    points = torch.randn(50, 3, generator=torch.Generator().manual_seed(0))
    whole = compute_geometric_median(points).median
    monkeypatch.setattr(module, "_ROWS_PER_PIECE", 7)
    torch.testing.assert_close(compute_geometric_median(points).median, whole)


def test_the_points_may_be_differentiated() -> None:
    points = torch.randn(10, 3, requires_grad=True)
    compute_geometric_median(points).median.sum().backward()
    assert points.grad is not None
    torch.testing.assert_close(points.grad.sum(0), torch.ones(3))


def test_a_bar_is_shown_when_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    compute_geometric_median(torch.randn(5, 2))
    assert capsys.readouterr().err == ""
    compute_geometric_median(torch.randn(5, 2), verbose=True)
    assert "Geometric median" in capsys.readouterr().err


def test_no_points_are_refused() -> None:
    with pytest.raises(ValueError, match="n > 0"):
        compute_geometric_median(torch.zeros(0, 3))
