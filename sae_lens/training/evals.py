"""Early path of the evaluations; their home is `sae_lens.evals`."""

from sae_lens.evals import get_recons_loss, run_evals

__all__ = ["get_recons_loss", "run_evals"]
