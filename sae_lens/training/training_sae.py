"""The home of `TrainingSAE` in 5.x: names of `sae_lens.saes` at their older path."""

from sae_lens.constants import SAE_CFG_FILENAME as SAE_CFG_PATH
from sae_lens.constants import SAE_WEIGHTS_FILENAME as SAE_WEIGHTS_PATH
from sae_lens.constants import SPARSITY_FILENAME as SPARSITY_PATH
from sae_lens.saes import TrainingSAE, TrainingSAEConfig, TrainStepOutput
from sae_lens.saes.activation_fns import JumpReLU, Step, rectangle
from sae_lens.saes.losses import topk_aux_acts as _calculate_topk_aux_acts

__all__ = [
    "SAE_CFG_PATH",
    "SAE_WEIGHTS_PATH",
    "SPARSITY_PATH",
    "JumpReLU",
    "Step",
    "TrainStepOutput",
    "TrainingSAE",
    "TrainingSAEConfig",
    "_calculate_topk_aux_acts",
    "rectangle",
]
