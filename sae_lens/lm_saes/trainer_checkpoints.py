"""When a `Trainer` saves, what, and how one goes on from what was saved."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxtyping import Bool, Int
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from sae_lens.atomic_files import atomic_save_safetensors, atomic_write_json
from sae_lens.lm_saes.adapter import SAEAdapter, as_adapter, fold_dataset_norm
from sae_lens.lm_saes.checkpoints import (
    OPTIMIZER_FILENAME,
    SCHEDULER_FILENAME,
    TRAINER_FILENAME,
    WANDB_FILENAME,
    config_as_dict,
    config_of_dict,
    load_plain,
    load_sae_weights,
    save_plain,
    save_sae,
)
from sae_lens.lm_saes.config import TrainerConfig
from sae_lens.lm_saes.features import TrainerFeatures
from sae_lens.saes import TrainingSAE
from sae_lens.training.features import TrainingFeatures

if TYPE_CHECKING:
    from typing_extensions import Self

# Counters that a checkpoint stores under their own names.
_COUNTERS = (
    "cur_step",
    "cur_tokens",
    "total_training_steps",
    "lr_warm_up_steps",
    "lr_cool_down_steps",
    "k_warmup_steps",
    "k_cold_booting_steps",
    "l1_coefficient_warmup_steps",
    "checkpoint_thresholds",
)


class TrainerCheckpoints:
    """The part of a trainer that saves it and brings it back."""

    cfg: TrainerConfig
    features: TrainingFeatures
    cur_step: int
    checkpoint_thresholds: list[int]
    optimizer: Optimizer | None
    scheduler: LambdaLR | None
    wandb_logger: Any
    tokens_since_last_activation: Int[Tensor, " d_sae"] | None
    is_dead: Bool[Tensor, " d_sae"] | None
    _active: TrainerFeatures | None

    def _make_optimizer(self, adapter: SAEAdapter) -> None:
        raise NotImplementedError

    def _checkpoint_if_due(self, sae: TrainingSAE) -> None:
        """`{exp_result_path}/checkpoints/{cur_step}.safetensors`, for raw activations."""
        if not self.checkpoint_thresholds or self.cur_step < self.checkpoint_thresholds[0]:
            return
        self.checkpoint_thresholds.pop(0)
        path = Path(self.cfg.exp_result_path) / "checkpoints" / f"{self.cur_step}.safetensors"
        assert self._active is not None
        averager = self._active.averager
        saved = copy.deepcopy(sae) if averager.averages else sae
        averager.copy_into(saved)
        atomic_save_safetensors(dict(fold_dataset_norm(saved).state_dict()), path)

    def save_checkpoint(self, sae: TrainingSAE, checkpoint_path: str | Path) -> Path:
        """Write `{checkpoint_path}/checkpoints/step_{cur_step}`, from which training can go on.

        The weights in it are those that the optimiser moves; averages are in `trainer.pt`.
        """
        sae = as_adapter(sae).sae
        folder = Path(checkpoint_path) / "checkpoints" / f"step_{self.cur_step}"
        folder.mkdir(parents=True, exist_ok=True)
        save_sae(sae, folder)
        state: dict[str, Any] = {name: getattr(self, name) for name in _COUNTERS}
        state["cfg"] = config_as_dict(self.cfg)
        state["tokens_since_last_activation"] = self.tokens_since_last_activation
        state["is_dead"] = self.is_dead
        state["features"] = self.features.to_dict()
        state["features_state"] = None if self._active is None else self._active.state_dict()
        if self.optimizer is not None:
            save_plain(self.optimizer.state_dict(), folder / OPTIMIZER_FILENAME)
        if self.scheduler is not None:
            save_plain(self.scheduler.state_dict(), folder / SCHEDULER_FILENAME)
        run_id = getattr(self.wandb_logger, "id", None)
        if run_id is not None:
            atomic_write_json(folder / WANDB_FILENAME, {"wandb_run_id": str(run_id)})
        save_plain(state, folder / TRAINER_FILENAME)
        return folder

    @classmethod
    def from_checkpoint(
        cls, sae: TrainingSAE, checkpoint_path: str | Path, load_weights: bool = False
    ) -> Self:
        """A trainer that goes on where a checkpoint was made.

        Args:
            sae: the SAE, holding the checkpoint's weights already unless `load_weights`.
            checkpoint_path: the folder `step_N`.
            load_weights: give `sae` the checkpoint's weights.

        Raises:
            ValueError: when the folder has no `trainer.pt`, or that no config.
        """
        folder = Path(checkpoint_path)
        if not (folder / TRAINER_FILENAME).exists():
            raise ValueError(f"There is no {TRAINER_FILENAME} in {folder}.")
        adapter = as_adapter(sae)
        state = load_plain(folder / TRAINER_FILENAME, adapter.sae.device)
        if not state.get("cfg"):
            raise ValueError(f"{folder / TRAINER_FILENAME} holds no config.")
        if load_weights:
            load_sae_weights(adapter.sae, folder)
        trainer = cls(config_of_dict(state["cfg"]), state.get("features"))  # type: ignore[call-arg]
        trainer.cfg.from_pretrained_path = str(checkpoint_path)
        for name in (*_COUNTERS, "tokens_since_last_activation", "is_dead"):
            setattr(trainer, name, state.get(name, getattr(trainer, name)))
        trainer._make_optimizer(adapter)
        assert trainer.optimizer is not None and trainer.scheduler is not None
        if state.get("features_state") is not None:
            assert trainer._active is not None
            trainer._active.load_state_dict(state["features_state"])
        for name, part in (
            (OPTIMIZER_FILENAME, trainer.optimizer),
            (SCHEDULER_FILENAME, trainer.scheduler),
        ):
            if (folder / name).exists():
                part.load_state_dict(load_plain(folder / name, adapter.sae.device))
        return trainer
