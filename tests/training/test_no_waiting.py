"""A step away from the CPU never waits for the device: shown on the meta device.

There, tensors have no values, and whoever asks for one (`.item()`, `bool`, `nonzero`, a mask as an
index, a copy to the host) gets an error. Tensors made on the host from numbers would be another way
to wait; a dispatch mode watches for their copies. Numbers that are on their way to the host are
made up; that they are asked for when they must have arrived is tested beside their users.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from sae_lens.config import SAETrainerConfig
from sae_lens.kernels import autograd, entry_products, sparse_decode, weight_gradient
from sae_lens.saes import TrainingSAE
from sae_lens.saes.matching_pursuit import MatchingPursuitTrainingSAEConfig
from sae_lens.training.dead_feature_bound import DeadFeatureBound
from sae_lens.training.sae_trainer import SAETrainer
from tests.helpers import ARCHITECTURES, D_IN, D_SAE, make_training_sae
from tests.saes.test_sparse_training import V6_CASES
from tests.saes.test_transcoder_training import ARCHITECTURES as TRANSCODERS
from tests.saes.test_transcoder_training import make as make_transcoder

N_TOKENS = 12


class NoCopiesFromTheHost(TorchDispatchMode):
    """Refuses copies of host tensors to another device."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.ops.aten._to_copy.default:
            source, target = args[0], kwargs.get("device")
            assert source.device.type != "cpu" or target is None or target.type == "cpu", (
                "a tensor of the host is copied to the device"
            )
        return func(*args, **kwargs)


class MadeUpNumber:
    """Stands in for a `LateNumber`."""

    def __init__(self, scalar: Tensor) -> None:
        assert scalar.device.type == "meta" and scalar.ndim == 0

    def value(self) -> float:
        return 7.0


@pytest.fixture(autouse=True)
def numbers_arrive(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("kernels.entry_capacity", "saes.matching_pursuit", "training.l0_controller"):
        monkeypatch.setattr(f"sae_lens.{module}.LateNumber", MadeUpNumber)


def trainer_of(sae: TrainingSAE, mode: str, most_dead: int, **fields: Any) -> SAETrainer:
    sae = sae.to(device="meta")
    cfg = SAETrainerConfig(
        total_training_samples=100 * N_TOKENS,
        train_batch_size_samples=N_TOKENS,
        sparse_kernels=mode,
        device="meta",
        **fields,
    )
    trainer = SAETrainer(cfg, sae, iter([]))
    trainer._most_dead = lambda: most_dead  # type: ignore[method-assign]
    return trainer


def take_steps(trainer: SAETrainer) -> None:
    width = sum(getattr(trainer.sae, "activation_widths", (D_IN,)))
    batch = torch.empty(N_TOKENS, width, device="meta")
    for _ in range(3):
        with NoCopiesFromTheHost():
            output = trainer._train_step(trainer.sae, batch)
        trainer.n_training_steps += 1
        assert output.loss.device.type == "meta"
    assert trainer.n_training_steps == 3


@pytest.fixture
def sparse_on_any_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Dense references stand in for the products, which have a CPU and a CUDA form."""
    monkeypatch.setattr("sae_lens.saes.sparse_training.has_sparse_kernels", lambda *_: True)
    for module in (sparse_decode, entry_products, weight_gradient):
        name = module.__name__.rsplit(".", 1)[-1]
        monkeypatch.setattr(autograd, name, module.reference)


@pytest.mark.parametrize("most_dead", [0, 5])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_dense_steps_v5(architecture: str, most_dead: int) -> None:
    fields = {"use_ghost_grads": True} if architecture == "standard" else {}
    take_steps(trainer_of(make_training_sae(architecture, **fields), "dense", most_dead))


@pytest.mark.parametrize("most_dead", [0, 5])
@pytest.mark.parametrize("config", V6_CASES, ids=lambda c: f"{c.architecture}-{V6_CASES.index(c)}")
def test_dense_steps_v6(config: Any, most_dead: int) -> None:
    take_steps(trainer_of(TrainingSAE(copy.deepcopy(config)), "dense", most_dead))


@pytest.mark.parametrize("most_dead", [0, 5])
@pytest.mark.parametrize("config", V6_CASES, ids=lambda c: f"{c.architecture}-{V6_CASES.index(c)}")
def test_sparse_steps(config: Any, most_dead: int, sparse_on_any_device: None) -> None:
    trainer = trainer_of(TrainingSAE(copy.deepcopy(config)), "sparse", most_dead)
    take_steps(trainer)
    # the numbers of entries that are not known beforehand are those that are on their way
    n_matrices = 1 if "topk" not in config.architecture else 0
    if "cross_layer" in config.architecture and not config.architecture.startswith("topk"):
        n_matrices = len(config.hook_names)
    assert len(trainer.sae._entry_capacities) == n_matrices


@pytest.mark.parametrize("mode", ["dense", "sparse"])
@pytest.mark.parametrize("most_dead", [0, 5])
@pytest.mark.parametrize("architecture", TRANSCODERS)
def test_transcoders(
    architecture: str, most_dead: int, mode: str, sparse_on_any_device: None
) -> None:
    take_steps(trainer_of(make_transcoder(architecture), mode, most_dead))


def test_matching_pursuit() -> None:
    config = MatchingPursuitTrainingSAEConfig(d_in=D_IN, d_sae=D_SAE)
    take_steps(trainer_of(TrainingSAE(config), "dense", 0))


FEATURES: dict[str, dict[str, Any]] = {
    "aux-k": {"aux_k": {}},
    "ghost gradients": {"ghost_gradients": True},
    "average": {"weight_average": {}},
    "accumulation": {"gradient_accumulation_steps": 2},
    "no clipping": {"max_gradient_norm": None},
    "weight schedule": {"weight_schedules": {"sparsity": {"start": 0.1}}},
    "tokens of silence": {"dead_after_tokens": 1000},
    "p schedule": {"p_schedule": {"end": 0.5}},
    "target L0": {"target_l0": {"target": 4}},
    "sparse Adam": {"optimizer": {"path": "sae_lens.training.sparse_adam.SparseAdam"}},
    "low precision Adam": {
        "optimizer": {"path": "sae_lens.training.low_precision_adam.LowPrecisionAdam"}
    },
    "an optimiser that cannot skip": {"optimizer": {"path": "torch.optim.SGD"}},
}


@pytest.mark.parametrize("name", FEATURES)
@pytest.mark.parametrize("most_dead", [0, 5])
def test_training_features(name: str, most_dead: int) -> None:
    sae = make_training_sae("standard")
    take_steps(trainer_of(sae, "dense", most_dead, features=FEATURES[name]))


@pytest.mark.parametrize("mode", ["dense", "sparse"])
@pytest.mark.parametrize("name", ["aux-k", "ghost gradients"])
@pytest.mark.parametrize("most_dead", [5, D_SAE])
def test_dead_features_of_several_layers(
    name: str, most_dead: int, mode: str, sparse_on_any_device: None
) -> None:
    config = next(c for c in V6_CASES if c.architecture == "cross_layer_transcoder")
    sae = TrainingSAE(copy.deepcopy(config))
    take_steps(trainer_of(sae, mode, most_dead, features=FEATURES[name]))


def test_low_precision_adam_in_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    """The meta device has no random generator; noise is made up."""
    module = "sae_lens.training.low_precision_adam"
    monkeypatch.setattr(f"{module}._generator", lambda *_: True)
    monkeypatch.setattr(
        f"{module}._sixteen_random_bits",
        lambda n, _: torch.empty(n, dtype=torch.int32, device="meta"),
    )
    sae = make_training_sae("topk", dtype="bfloat16")
    take_steps(trainer_of(sae, "dense", 0, features=FEATURES["low precision Adam"]))


def test_the_bound_holds_and_needs_one_look_in_many_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """On the CPU, told that it were another device; the bound is compared at every step."""
    sae = make_training_sae("topk")
    cfg = SAETrainerConfig(
        total_training_samples=10_000 * N_TOKENS,
        train_batch_size_samples=N_TOKENS,
        dead_feature_window=30,
    )
    trainer = SAETrainer(cfg, sae, iter([]))
    looks: list[int] = []
    bound = DeadFeatureBound(may_look=False)
    monkeypatch.setattr(bound, "_take_count", _counting(bound._take_count, looks))
    generator = torch.Generator().manual_seed(0)
    slack, n_dead = [], []
    for step in range(400):
        if step == 250:  # as after a rewind, with counts that have nothing to do with those before
            trainer.statistics.steps_since_fired = torch.full((sae.cfg.d_sae,), 31.0)
        most = bound.of_step(trainer.statistics.steps_since_fired, trainer._dead_within)
        assert most is not None
        n_dead.append(int(trainer.dead_neurons.sum()))
        slack.append(most - n_dead[-1])
        # features fire ever more rarely, the higher their number
        rates = torch.logspace(0, -3, sae.cfg.d_sae)
        fires = torch.rand(1, sae.cfg.d_sae, generator=generator) < rates
        trainer.statistics.update(fires.float())
    assert min(slack) >= 0
    assert 0 in n_dead and max(n_dead) > 10
    assert sum(most == 0 for most in slack) > 20  # and it is not merely large
    assert len(looks) <= 400 / 10 + 3


def _counting(method: Any, calls: list[int]) -> Any:
    def counted() -> None:
        calls.append(1)
        method()

    return counted


def test_the_host_itself_is_not_told_a_bound() -> None:
    cfg = SAETrainerConfig(total_training_samples=1, train_batch_size_samples=1)
    assert SAETrainer(cfg, make_training_sae("topk"), iter([]))._most_dead() is None
