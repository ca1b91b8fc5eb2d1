"""Whole training runs: `runner_worker.py FAMILY`, with options from the standard input.

A unit is one run from config to saved SAE, on a model of GPT-2-small's shape up to the hooked
layer, with random weights and tokens: data, model, buffer, training, final checkpoint.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from activations_worker import OPTIONS, hooked_model, server, token_rows

LAYER, CONTEXT, PROMPTS, BUFFER, DEVICE = (
    OPTIONS[name] for name in ("layer", "context", "prompts", "buffer", "device")
)


def make_config(folder: str) -> Any:
    """A run that trains a topk SAE."""
    from sae_lens import LanguageModelSAERunnerConfig

    size = {"d_in": 768, "d_sae": OPTIONS["d_sae"]}
    common: dict[str, Any] = {
        "hook_name": f"blocks.{LAYER}.hook_resid_pre", "training_tokens": OPTIONS["tokens"],
        "train_batch_size_tokens": OPTIONS["batch"], "context_size": CONTEXT, "lr": 3e-4,
        "store_batch_size_prompts": PROMPTS, "prepend_bos": False, "device": DEVICE,
        "checkpoint_path": folder, "n_batches_in_buffer": BUFFER, "seed": 0, "verbose": False,
        "dataset_path": "", "model_name": "gpt2", "streaming": False,
    }  # fmt: skip
    if OPTIONS["family"] == "sae_lens-6":
        import sae_lens

        sae = sae_lens.TopKTrainingSAEConfig(k=OPTIONS["l0"], **size)
        logger = sae_lens.LoggingConfig(log_to_wandb=False)
        common["n_batches_in_buffer"] = BUFFER * PROMPTS
        return LanguageModelSAERunnerConfig(
            sae=sae, logger=logger, save_final_checkpoint=True, output_path=None, **common
        )
    return LanguageModelSAERunnerConfig(
        architecture="topk", activation_fn_kwargs={"k": OPTIONS["l0"]}, hook_layer=LAYER,
        log_to_wandb=False, normalize_sae_decoder=False, b_dec_init_method="zeros",
        adam_beta1=0.9, **size, **common,
    )  # fmt: skip


def main() -> None:
    """One run at each request."""
    import sae_lens

    runner_class = getattr(sae_lens, "LanguageModelSAETrainingRunner", sae_lens.SAETrainingRunner)
    model, dataset = hooked_model(LAYER + 1), token_rows(4096)
    server.final_values = lambda: {"version": sae_lens.__version__}
    values: dict[str, Any] = {}
    while True:
        server.wait_for_request(**values)
        with tempfile.TemporaryDirectory() as folder:
            runner_class(make_config(folder), override_dataset=dataset, override_model=model).run()
        values["tokens"] = OPTIONS["tokens"]


if __name__ == "__main__":
    main()
