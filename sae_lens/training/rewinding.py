"""Going back to the last checkpoint when the loss is not finite, and on with other data."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from sae_lens.training.nonfinite import NonFiniteLossError
from sae_lens.training.resumption import restore_weights
from sae_lens.training.run_folder import open_checkpoint

logger = logging.getLogger(__name__)

MOST_REWINDS_TO_ONE_CHECKPOINT = 3


def rewind(trainer: Any, error: NonFiniteLossError) -> None:
    """Bring SAE, optimiser, schedules and counters of `trainer` back to its last checkpoint.

    The data are not rewound, so the batch that made the loss blow up is not met again.

    Raises:
        NonFiniteLossError: `error`, when there is no checkpoint yet, or the way from the same one
            has failed too often.
    """
    try:
        checkpoint = open_checkpoint(Path(trainer.cfg.checkpoint_path))
    except (OSError, TypeError) as no_checkpoint:
        logger.error("There is no checkpoint to go back to: %s", no_checkpoint)
        raise error from no_checkpoint
    before = trainer.rewinds
    n_same = before.get("n", 0) if before.get("to") == checkpoint.folder.name else 0
    if n_same >= MOST_REWINDS_TO_ONE_CHECKPOINT:
        logger.error("Training failed %d times after checkpoint %s.", n_same + 1, before["to"])
        raise error
    logger.warning("%s Going back to checkpoint %s.", error, checkpoint.folder.name)
    loggers = trainer.logger.state_dict()
    restore_weights(trainer, checkpoint.state, checkpoint.folder)
    trainer.logger.load_state_dict(loggers)
    trainer.rewinds = {"to": checkpoint.folder.name, "n": n_same + 1}
