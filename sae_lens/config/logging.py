"""What of a run is logged, and where, as one object (the 6.x spelling)."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class LoggingConfig:
    """Weights & Biases settings of a run.

    Attributes:
        log_to_wandb: whether anything is logged there.
        log_activations_store_to_wandb: log the activation store's state with each checkpoint.
        log_optimizer_state_to_wandb: log the optimiser's state with each checkpoint.
        log_weights_to_wandb: log the SAE's weights with each checkpoint.
        wandb_project: project of the run.
        wandb_id: id of the run; a random one when None.
        run_name: name of the run; made from the settings when None.
        wandb_entity: user or team that owns the project.
        wandb_log_frequency: training steps between two logged steps.
        eval_every_n_wandb_logs: logged steps between two evaluations.
        log_to_jsonl: file to which the same numbers are appended as JSON lines.
    """

    log_to_wandb: bool = True
    log_activations_store_to_wandb: bool = False
    log_optimizer_state_to_wandb: bool = False
    log_weights_to_wandb: bool = True
    wandb_project: str = "sae_lens_training"
    wandb_id: str | None = None
    run_name: str | None = None
    wandb_entity: str | None = None
    wandb_log_frequency: int = 10
    eval_every_n_wandb_logs: int = 100
    log_to_jsonl: str | None = None
