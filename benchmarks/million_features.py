"""Training steps of a topk SAE with a million features: time and peak memory, as a JSON line.

    python -m benchmarks.million_features --dtype bfloat16 --steps 3

In bfloat16, weights and moments are bfloat16, rounded stochastically (`LowPrecisionAdam`); in
float32 the optimiser is the usual Adam. The peak is that of the whole process, making the SAE
included.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from itertools import pairwise

import torch
from torch import Tensor

from benchmarks.serving import peak_memory
from sae_lens.config import SAETrainerConfig
from sae_lens.saes.topk import TopKTrainingSAE, TopKTrainingSAEConfig
from sae_lens.training.sae_trainer import SAETrainer

LOW_PRECISION = {"path": "sae_lens.training.low_precision_adam.LowPrecisionAdam"}


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="bfloat16")
    parser.add_argument("--d-in", type=int, default=512)
    parser.add_argument("--d-sae", type=int, default=1 << 20)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--k", type=int, default=32)
    parser.add_argument("--steps", type=int, default=3)
    options = parser.parse_args()

    began, peak_before = time.perf_counter(), peak_memory()
    sae = TopKTrainingSAE(
        TopKTrainingSAEConfig(
            d_in=options.d_in,
            d_sae=options.d_sae,
            k=options.k,
            dtype=options.dtype,
            rescale_acts_by_decoder_norm=False,
        )
    )
    made, peak_of_making = time.perf_counter() - began, peak_memory()
    times: list[float] = []

    def batches() -> Iterator[Tensor]:
        generator = torch.Generator().manual_seed(0)
        for _ in range(options.steps):
            x = torch.randn(options.batch, options.d_in, generator=generator)
            times.append(time.perf_counter())
            yield x
        times.append(time.perf_counter())

    config = SAETrainerConfig(
        total_training_samples=options.steps * options.batch,
        train_batch_size_samples=options.batch,
        features={"optimizer": LOW_PRECISION} if options.dtype == "bfloat16" else None,
    )
    trainer = SAETrainer(config, sae, batches())
    trainer.fit()
    times.append(time.perf_counter())
    steps = [later - earlier for earlier, later in pairwise(times)]
    result = {
        **vars(options),
        "threads": torch.get_num_threads(),
        "is_sparse": sae._sparse_choice.is_sparse,
        "making_s": round(made, 1),
        "step_s": [round(seconds, 1) for seconds in steps[: options.steps]],
        "peak_before_gb": round(peak_before / 1e9, 2),
        "peak_of_making_gb": round(peak_of_making / 1e9, 2),
        "peak_gb": round(peak_memory() / 1e9, 2),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
