"""Sparse steps whose number of entries the host does not wait for: the exact ones, to the bit.

On the CPU, told that it were another device. Dense references stand in for the products, so that
sums are taken in the same order whatever the number of entries is.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from sae_lens.config import SAETrainerConfig
from sae_lens.kernels import autograd, entry_products, sparse_decode, weight_gradient
from sae_lens.kernels.entry_capacity import EntryCapacity
from sae_lens.saes import TrainingSAE, TrainStepInput, TrainStepOutput
from sae_lens.saes.training_step import reported_features
from sae_lens.training.resumption import capture, restore_weights
from sae_lens.training.sae_trainer import SAETrainer
from sae_lens.training.statistics import count_firing
from tests.helpers import D_IN, D_SAE, activations, make_training_sae, randomize
from tests.saes.test_sparse_training import DEAD_FEATURES, V5_CASES, V6_CASES
from tests.saes.test_transcoder_training import ARCHITECTURES as TRANSCODERS
from tests.saes.test_transcoder_training import make as make_transcoder

_MODULES = ("sparse_training", "cross_layer_training")


@pytest.fixture(autouse=True)
def references(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sae_lens.saes.sparse_training.has_sparse_kernels", lambda *_: True)
    for module in (sparse_decode, entry_products, weight_gradient):
        monkeypatch.setattr(autograd, module.__name__.rsplit(".", 1)[-1], module.reference)


def one_pass(
    sae: TrainingSAE, step: TrainStepInput, looks: bool, room: int | None = None
) -> tuple[TrainingSAE, TrainStepOutput, dict[str, Tensor]]:
    """A pass and its gradients, with or without the host's waiting to learn how many entries."""
    sae = copy.deepcopy(sae).train()
    sae.sparse_kernels = "sparse"
    x = step.sae_in.clone().requires_grad_()
    with pytest.MonkeyPatch.context() as patch:
        for module in _MODULES:
            patch.setattr(f"sae_lens.saes.{module}.may_look_at", lambda _: looks)
        if room is not None:
            patch.setattr(EntryCapacity, "room", lambda _, n_positions: min(room, n_positions))
        output = sae.training_forward_pass(replace(step, sae_in=x))
        output.loss.backward()
    gradients = {n: p.grad for n, p in sae.named_parameters() if p.grad is not None}
    assert x.grad is not None
    return sae, output, {**gradients, "sae_in": x.grad}


def assert_same(sae: TrainingSAE, step: TrainStepInput, room: int | None = None) -> None:
    exact_sae, exact, exact_gradients = one_pass(sae, step, looks=True)
    filled_sae, filled, gradients = one_pass(sae, step, looks=False, room=room)
    assert torch.equal(filled.loss, exact.loss)
    assert filled.losses.keys() == exact.losses.keys()
    for name, value in exact.losses.items():
        assert torch.equal(filled.losses[name], value), name
    assert torch.equal(filled.sae_out, exact.sae_out)
    features, wanted = reported_features(filled), reported_features(exact)
    assert torch.equal(features.to_dense(), wanted.to_dense())
    assert torch.equal(count_firing(features), count_firing(wanted))
    assert float(filled.metrics["active_density"]) == pytest.approx(exact.metrics["active_density"])
    assert gradients.keys() == exact_gradients.keys()
    for name, gradient in exact_gradients.items():
        assert torch.equal(gradients[name], gradient), name
    for name, buffer in exact_sae.named_buffers():
        assert torch.equal(filled_sae.get_buffer(name), buffer), name


def a_step(sae: TrainingSAE, dead: str = "no mask", n_tokens: int = 10) -> TrainStepInput:
    width = sum(getattr(sae, "activation_widths", (D_IN,)))
    x = activations(n_tokens, width, dtype=sae.dtype)
    return TrainStepInput(x, {"l1": 0.7}, DEAD_FEATURES[dead])


@pytest.mark.parametrize(("architecture", "fields"), V5_CASES, ids=str)
def test_the_same_bits_v5(architecture: str, fields: dict[str, Any]) -> None:
    sae = make_training_sae(architecture, **fields)
    assert_same(sae, a_step(sae, "some dead"))


@pytest.mark.parametrize("config", V6_CASES, ids=lambda c: f"{c.architecture}-{V6_CASES.index(c)}")
def test_the_same_bits_v6(config: Any) -> None:
    sae = TrainingSAE(copy.deepcopy(config))
    randomize(sae)
    assert_same(sae, a_step(sae, "some dead"))


@pytest.mark.parametrize("architecture", TRANSCODERS)
def test_the_same_bits_transcoders(architecture: str) -> None:
    sae = make_transcoder(architecture)
    assert_same(sae, a_step(sae, "some dead"))


THRESHOLDED = [c for c in V6_CASES if "topk" not in c.architecture]


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    config=st.sampled_from(THRESHOLDED),
    shift=st.sampled_from((-100.0, -1.0, 0.0, 100.0)),
    n_tokens=st.integers(1, 7),
    spare=st.sampled_from((0, 1, 7, 10_000)),
    seed=st.integers(0, 1000),
)
def test_any_room_that_is_enough_gives_the_same_bits(
    config: Any, shift: float, n_tokens: int, spare: int, seed: int
) -> None:
    """None active, all active, and a room that is exactly full."""
    torch.manual_seed(seed)
    sae = TrainingSAE(copy.deepcopy(config))
    randomize(sae)
    with torch.no_grad():
        for name in ("b_enc", "b_gate"):
            if name in sae._parameters:
                sae._parameters[name].add_(shift)
    step = a_step(sae, n_tokens=n_tokens)
    _, output, _ = one_pass(sae, step, looks=True)
    most = round(output.metrics["active_density"] * n_tokens * D_SAE)
    assert_same(sae, step, room=most + spare)


@pytest.mark.parametrize(
    "config",
    [*THRESHOLDED, *[c for c in V6_CASES if c.architecture == "batchtopk_cross_layer_transcoder"]],
    ids=lambda c: f"{c.architecture}-{V6_CASES.index(c)}",
)
def test_without_enough_room_there_is_no_gradient(config: Any) -> None:
    sae = TrainingSAE(copy.deepcopy(config))
    randomize(sae)
    trained, output, gradients = one_pass(sae, a_step(sae), looks=False, room=3)
    assert output.is_incomplete is not None and bool(output.is_incomplete)
    assert torch.isfinite(output.loss)
    for name, gradient in gradients.items():
        assert not gradient.any(), name
    for name, buffer in sae.named_buffers():
        assert torch.equal(trained.get_buffer(name), buffer), name


def test_a_host_that_looks_knows_of_no_room() -> None:
    sae = make_training_sae()
    _, output, _ = one_pass(sae, a_step(sae), looks=True)
    assert output.is_incomplete is None
    assert isinstance(output.metrics["active_density"], float)


# -- in training ----------------------------------------------------------------------------------


@pytest.fixture
def far_away(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in _MODULES:
        monkeypatch.setattr(f"sae_lens.saes.{module}.may_look_at", lambda _: False)


def trainer_of(config: Any, **fields: Any) -> SAETrainer:
    torch.manual_seed(0)
    sae = TrainingSAE(copy.deepcopy(config))
    randomize(sae)
    width = sum(getattr(sae, "activation_widths", (D_IN,)))
    torch.manual_seed(1)
    batches = list(torch.randn(30, 12, width))
    cfg = SAETrainerConfig(
        total_training_samples=30 * 12,
        train_batch_size_samples=12,
        sparse_kernels="sparse",
        lr=1e-2,
        **fields,
    )
    return SAETrainer(cfg, sae, iter(batches))


IN_TRAINING = [
    next(c for c in V6_CASES if c.architecture == name)
    for name in ("standard", "gated", "jumprelu_crosscoder", "batchtopk_cross_layer_transcoder")
]
ids = [c.architecture for c in IN_TRAINING]


@pytest.mark.parametrize("config", IN_TRAINING, ids=ids)
def test_training_is_the_same(config: Any, request: pytest.FixtureRequest) -> None:
    exact = trainer_of(config).fit().state_dict()
    request.getfixturevalue("far_away")
    trainer = trainer_of(config)
    filled = trainer.fit().state_dict()
    assert trainer.sae._entry_capacities
    for name, value in exact.items():
        assert torch.equal(filled[name], value), name


@pytest.mark.usefixtures("far_away")
@pytest.mark.parametrize("n_together", [1, 3])
def test_a_batch_without_room_is_left_out(
    n_together: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The third batch is; the two after it have room, and are trained on."""
    monkeypatch.setattr("sae_lens.kernels.entry_capacity._LEAST", 1)
    trainer = trainer_of(IN_TRAINING[0], features={"gradient_accumulation_steps": n_together})
    quiet, loud = torch.randn(12, D_IN) * 1e-3, torch.randn(12, D_IN) * 100
    with torch.no_grad():
        trainer.sae.b_enc.fill_(-0.5)
        trainer.sae.b_enc[:2] = 1.0
    before: dict[str, Tensor] = {}
    for step, batch in enumerate([quiet, quiet, loud, quiet, quiet, quiet]):
        if step == 2:
            before = {n: t.clone() for n, t in trainer.sae.state_dict().items()}
        output = trainer._train_step(trainer.sae, batch)
        trainer.n_training_steps += 1
        assert bool(output.is_incomplete) == (step == 2)
        if step == 2 and n_together == 1:
            for name, value in trainer.sae.state_dict().items():
                assert torch.equal(value, before[name]), name
        elif step == 2:  # of the three that count together, two are left
            assert not torch.equal(trainer.sae.W_enc, before["W_enc"])
    assert "A batch was left out" in caplog.text
    assert output.metrics["batches_left_out"] == 1.0


@pytest.mark.usefixtures("far_away")
def test_a_resumed_run_leaves_out_the_same_batches(tmp_path: Any) -> None:
    """Those that found no room are not known of yet at the checkpoint."""

    def batches() -> Iterator[Tensor]:
        for step in range(12):
            scale = 100.0 if step in (5, 6) else 1e-3
            yield torch.randn(12, D_IN, generator=torch.Generator().manual_seed(step)) * scale

    def trainer() -> SAETrainer:
        torch.manual_seed(0)
        sae = make_training_sae("standard")
        with torch.no_grad():
            sae.b_enc.fill_(-0.5)
            sae.b_enc[:2] = 1.0
        cfg = SAETrainerConfig(
            total_training_samples=12 * 12,
            train_batch_size_samples=12,
            sparse_kernels="sparse",
            checkpoint_path=str(tmp_path),
            n_checkpoints=2,
        )
        return SAETrainer(cfg, sae, batches)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sae_lens.kernels.entry_capacity._LEAST", 1)
        whole = trainer()
        whole.fit()
        resumed = trainer()
        resumed.resume(tmp_path / "84")
        assert resumed.n_training_steps == 7
        resumed.fit()
    for one in (whole, resumed):
        assert one.sae._entry_capacities[0].n_left_out == 2
    wanted = whole.sae.state_dict()
    for name, value in resumed.sae.state_dict().items():
        assert torch.equal(value, wanted[name]), name


@pytest.mark.usefixtures("far_away")
@pytest.mark.parametrize("n_steps", [0, 4])
def test_room_goes_into_checkpoints_and_back_with_a_step_that_is_broken_off(
    n_steps: int, tmp_path: Any
) -> None:
    trainer = trainer_of(IN_TRAINING[3])
    for batch in torch.randn(n_steps, 12, D_IN):
        trainer._train_step(trainer.sae, batch)
        trainer.n_training_steps += 1
    capacities = trainer.sae._entry_capacities
    saved = {matrix: capacity.state_dict() for matrix, capacity in capacities.items()}
    assert len(saved) == (2 if n_steps else 0)
    assert all(state["densities"] for state in saved.values())

    other = trainer_of(IN_TRAINING[3])
    restore_weights(other, capture(trainer), tmp_path)
    restored = {m: c.state_dict() for m, c in other.sae._entry_capacities.items()}
    assert restored == saved

    output_of = trainer.sae.training_forward_pass

    def broken_off(*args: Any, **kwargs: Any) -> Any:
        output_of(*args, **kwargs)
        raise KeyboardInterrupt

    trainer.sae.training_forward_pass = broken_off  # type: ignore[method-assign]
    batch = torch.randn(12, D_IN)
    with pytest.raises(KeyboardInterrupt), trainer._put_back_unless_used(batch):
        trainer._train_step(trainer.sae, batch)
    assert {m: c.state_dict() for m, c in capacities.items()} == saved
