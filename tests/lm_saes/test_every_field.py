"""Every field of `TrainerConfig` does what it says, in a run of the trainer."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from torch import Tensor

from sae_lens.lm_saes import SAEAdapter, Trainer, TrainerConfig
from sae_lens.training.loss_schedules import LearningRateFactor, LearningRateName
from sae_lens.training.sparse_adam import SparseAdam
from tests.lm_saes.helpers import HOOK, N_TOKENS, Recorder, batches, config, tiny_sae


class Run:
    """A short training and what can be seen of it."""

    def __init__(self, n_steps: int = 8, architecture: str = "standard", **fields: Any) -> None:
        self.sae = tiny_sae(architecture)
        self.log = Recorder()
        self.evaluations = 0
        self.trainer = Trainer(config(n_steps, **fields))
        self.given: list[dict[str, Any]] = []
        self.rates: list[list[float]] = []
        self.ks: list[int | None] = []
        self.autocasts: list[Any] = []
        self.n_updates = 0
        real = SAEAdapter.compute_loss

        def spy(adapter: SAEAdapter, batch: Any, **kwargs: Any) -> Any:
            self.given.append(kwargs)
            self.rates.append([group["lr"] for group in self.trainer.optimizer.param_groups])
            self.ks.append(adapter.current_k)
            enabled = torch.is_autocast_enabled("cpu")
            self.autocasts.append(torch.get_autocast_dtype("cpu") if enabled else None)
            return real(adapter, batch, **kwargs)

        stream = batches(n_steps)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(SAEAdapter, "compute_loss", spy)
            self.trainer.fit(self.sae, stream, self._evaluate, self.log)

    def _evaluate(self, sae: Any) -> None:
        self.evaluations += 1

    def seen(self, name: str) -> list[Any]:
        """An argument of the loss at every step."""
        return [kwargs[name] for kwargs in self.given]

    @property
    def weights(self) -> Tensor:
        """The trained decoder."""
        return self.sae.W_dec.detach()


def _l1() -> None:
    assert Run(l1_coefficient=0.3).seen("l1_coefficient") == [0.3] * 8
    assert Run(l1_coefficient=None, l1_coefficient_warmup_steps=4).seen("l1_coefficient") == [1] * 8


def _l1_warm_up() -> None:
    want = [0, 0.005, 0.01, 0.01]
    for steps in (2, 0.25):
        assert Run(l1_coefficient_warmup_steps=steps).seen("l1_coefficient")[:4] == want


def _loss_argument(name: str, value: Any, architecture: str = "standard") -> Callable[[], None]:
    def check() -> None:
        assert Run(architecture=architecture, **{name: value}).seen(name) == [value] * 8
        assert not torch.equal(
            Run(architecture=architecture, **{name: value, **_ALONG.get(name, {})}).weights,
            Run(architecture=architecture, **_ALONG.get(name, {})).weights,
        )

    return check


# What a field needs beside it to make a difference.
_ALONG: dict[str, dict[str, Any]] = {
    "tanh_stretch_coefficient": {"sparsity_loss_type": "tanh"},
    "frequency_scale": {"sparsity_loss_type": "tanh-quad"},
    "k_aux": {"auxk_coefficient": 0.5, "dead_threshold": 1},
    "auxk_coefficient": {"dead_threshold": 1},
}


def _amp_dtype() -> None:
    assert Run(amp_dtype="bfloat16").autocasts == [torch.bfloat16] * 8
    assert Run(amp_dtype=None).autocasts == [None] * 8
    assert "amp_dtype" not in TrainerConfig().model_dump()


def _initial_k() -> None:
    assert Run(architecture="topk", initial_k=12, k_warmup_steps=4).ks == [12, 10, 8, 6, *[4] * 4]
    assert Run(architecture="topk").ks == [4] * 8


def _k_warm_up() -> None:
    assert Run(architecture="topk", initial_k=12, k_warmup_steps=0.25).ks[:4] == [12, 8, 4, 4]
    assert Run(architecture="topk", initial_k=12, k_warmup_steps=0).ks == [4] * 8


def _k_cold() -> None:
    fields = {"architecture": "topk", "initial_k": 12, "k_warmup_steps": 2}
    assert Run(**fields, k_cold_booting_steps=3).ks == [12, 12, 12, 12, 8, 4, 4, 4]
    assert Run(**fields, k_cold_booting_steps=0.25).ks == [12, 12, 12, 8, 4, 4, 4, 4]


def _k_shape() -> None:
    fields = {"architecture": "topk", "initial_k": 40, "k_warmup_steps": 8}
    for factor in (3.0, 1.5):
        ks = Run(**fields, k_schedule_type="exponential", k_exponential_factor=factor).ks
        done = [(1 - math.exp(-factor * s / 8)) / (1 - math.exp(-factor)) for s in range(8)]
        assert ks == [max(4, math.ceil(40 - 36 * share - 1e-9)) for share in done]


def _dead_threshold() -> None:
    fields = {"architecture": "topk", "auxk_coefficient": 0.5}
    assert Run(**fields, dead_threshold=1).trainer.is_dead.any()
    assert not Run(**fields, dead_threshold=8 * N_TOKENS + 1).trainer.is_dead.any()


def _skip_metrics() -> None:
    assert Run(skip_metrics_calculation=True).log.logged == []


def _accumulation() -> None:
    run = Run(gradient_accumulation_steps=4, optimizer_foreach=False)
    state = run.trainer.optimizer.state[run.sae.W_dec]
    assert int(state["step"]) == 2


def _lr() -> None:
    assert Run(lr=0.5).rates == [[0.5]] * 8
    assert (
        Run(architecture="jumprelu", lr={"others": 0.5, "jumprelu": 0.1}).rates == [[0.5, 0.1]] * 8
    )


def _betas() -> None:
    assert Run(betas=(0.5, 0.6)).trainer.optimizer.param_groups[0]["betas"] == (0.5, 0.6)
    sparse = Run(betas=(0.5, 0.6), optimizer_class="sparseadam").trainer.optimizer
    assert sparse.param_groups[0]["betas"] == (0.5, 0.6)


def _optimizer_class() -> None:
    assert type(Run(optimizer_class="sparseadam").trainer.optimizer) is SparseAdam
    assert type(Run().trainer.optimizer) is torch.optim.Adam


def _foreach() -> None:
    for value in (True, False):
        run = Run(optimizer_foreach=value)
        assert run.trainer.optimizer.param_groups[0]["foreach"] is value


def _schedules() -> None:
    for name in get_args(LearningRateName):
        run = Run(
            12,
            lr_scheduler_name=name,
            lr=2.0,
            lr_warm_up_steps=3,
            lr_cool_down_steps=0.25,
            lr_end_ratio=0.1,
        )
        factor = LearningRateFactor(name, 12, 3, 3, 0.1)
        assert [rate for (rate,) in run.rates] == pytest.approx([2 * factor(s) for s in range(12)])


def _end_ratio() -> None:
    for name in ("cosineannealing", "constantwithwarmup", "exponentialwarmup"):
        fields = {"lr_scheduler_name": name, "lr_cool_down_steps": 8}
        low, high = (Run(**fields, lr=1.0, lr_end_ratio=r).rates[-1][0] for r in (0.01, 0.9))
        assert low < 0.2 < 0.9 <= high


def _warm_up() -> None:
    for steps in (4, 0.5):
        assert Run(lr=1.0, lr_warm_up_steps=steps).rates[:4] == [[0.25], [0.5], [0.75], [1.0]]
    assert Run(lr=1.0, lr_warm_up_steps=0).rates[0] == [1.0]


def _cool_down() -> None:
    for steps in (4, 0.5):
        rates = Run(lr=1.0, lr_cool_down_steps=steps, lr_end_ratio=0.0).rates
        assert rates == [[1.0]] * 5 + [[0.75], [0.5], [0.25]]


def _jumprelu_factor() -> None:
    assert Run(architecture="jumprelu", lr=1.0, jumprelu_lr_factor=0.25).rates == [[1.0, 0.25]] * 8


def _clip() -> None:
    name = "metrics/gradient_norm_per_param"
    free, clipped = Run(clip_grad_norm=0.0), Run(clip_grad_norm=1e-5)
    assert free.log.logged[0][1][name] > 1e-4
    assert clipped.log.logged[0][1][name] == pytest.approx(1e-5)


def _window() -> None:
    assert torch.equal(Run(feature_sampling_window=2).weights, Run().weights)


def _tokens() -> None:
    run = Run(total_training_tokens=5 * N_TOKENS + 7)
    assert run.trainer.total_training_steps == run.trainer.cur_step == 5


def _log_frequency() -> None:
    assert [step for step, _ in Run(log_frequency=3).log.logged] == [3, 6]


def _eval_frequency() -> None:
    assert Run(eval_frequency=3).evaluations == 2


def _checkpoints(tmp_path: Path, **fields: Any) -> list[int]:
    Run(16, exp_result_path=str(tmp_path), **fields)
    return sorted(int(path.stem) for path in (tmp_path / "checkpoints").iterdir())


CHECKS: dict[str, Callable[..., None]] = {
    "l1_coefficient": _l1,
    "l1_coefficient_warmup_steps": _l1_warm_up,
    "lp_coefficient": _loss_argument("lp_coefficient", 0.4, "jumprelu"),
    "auxk_coefficient": _loss_argument("auxk_coefficient", 0.4, "topk"),
    "amp_dtype": _amp_dtype,
    "sparsity_loss_type": _loss_argument("sparsity_loss_type", "tanh-quad"),
    "tanh_stretch_coefficient": _loss_argument("tanh_stretch_coefficient", 0.5),
    "frequency_scale": _loss_argument("frequency_scale", 0.5),
    "p": _loss_argument("p", 2),
    "initial_k": _initial_k,
    "k_warmup_steps": _k_warm_up,
    "k_cold_booting_steps": _k_cold,
    "k_schedule_type": _k_shape,
    "k_exponential_factor": _k_shape,
    "k_aux": _loss_argument("k_aux", 1, "topk"),
    "dead_threshold": _dead_threshold,
    "skip_metrics_calculation": _skip_metrics,
    "gradient_accumulation_steps": _accumulation,
    "lr": _lr,
    "betas": _betas,
    "optimizer_class": _optimizer_class,
    "optimizer_foreach": _foreach,
    "lr_scheduler_name": _schedules,
    "lr_end_ratio": _end_ratio,
    "lr_warm_up_steps": _warm_up,
    "lr_cool_down_steps": _cool_down,
    "jumprelu_lr_factor": _jumprelu_factor,
    "clip_grad_norm": _clip,
    "feature_sampling_window": _window,
    "total_training_tokens": _tokens,
    "log_frequency": _log_frequency,
    "eval_frequency": _eval_frequency,
}
# These need a folder; see the tests below.
WITH_FOLDERS = {"n_checkpoints", "check_point_save_mode", "from_pretrained_path", "exp_result_path"}


def test_no_field_is_left_out():
    assert CHECKS.keys() | WITH_FOLDERS == TrainerConfig.model_fields.keys()


@pytest.mark.parametrize("field", CHECKS)
def test_a_field_does_what_it_says(field: str):
    CHECKS[field]()


def test_fields_about_folders(tmp_path: Path):
    log, linear = {"check_point_save_mode": "log"}, {"check_point_save_mode": "linear"}
    assert _checkpoints(tmp_path / "a", n_checkpoints=4, **log) == [2, 4, 8]
    assert _checkpoints(tmp_path / "b", n_checkpoints=4, **linear) == [4, 8, 12]
    assert _checkpoints(tmp_path / "c", n_checkpoints=2, **linear) == [8]
    run = Run(4)
    folder = run.trainer.save_checkpoint(run.sae, tmp_path / "d")
    assert TrainerConfig(from_pretrained_path=str(folder)).from_pretrained_path == str(folder)
    resumed = Trainer.from_checkpoint(run.sae, folder)
    assert resumed.cfg.from_pretrained_path == str(folder)
    with pytest.raises(ValueError, match="does not exist"):
        TrainerConfig(from_pretrained_path=str(tmp_path / "nothing"))


def test_batches_are_dicts_with_activations_by_hook():
    assert set(batches(1)[0]) == {"tokens", HOOK}
