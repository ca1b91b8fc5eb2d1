"""How many dense encoder products ("floors") one training step costs.

    python benchmarks/bench_step.py --architectures standard topk --modes sparse dense

A step is what the trainer does with a batch: forward, firing statistics, backward, clipping, Adam.
The floor is `x @ W_enc` alone, measured between the steps of the same process, so that other load
on the machine touches both alike; the figure is the median of the steps over that of the floors.
`--clock cpu` counts processor time instead of wall time, which on a busy machine, with one thread
(`OMP_NUM_THREADS=1`), is the steadier of the two. Prints one JSON line per case.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sae_lens.saes import TrainingSAE, TrainingSAEConfig
from sae_lens.saes.training_step import reported_features
from sae_lens.training.optim import clip_and_step, gradient_norm, make_optimizer
from sae_lens.training.statistics import FiringStatistics

# So small that about as many features stay active as at first.
LEARNING_RATE = 1e-7
ARCHITECTURES = ("standard", "gated", "jumprelu", "topk")


def make_batches(d_in: int, batch: int, device: str, n_batches: int = 4) -> list[Tensor]:
    """Sparse combinations of 2048 random directions, of mean norm sqrt(d_in)."""
    generator = torch.Generator().manual_seed(1)
    directions = torch.randn(2048, d_in, generator=generator)
    directions = torch.nn.functional.normalize(directions, dim=1)
    batches = []
    for _ in range(n_batches):
        chosen = torch.randint(0, 2048, (batch, 32), generator=generator)
        strengths = torch.rand(batch, 32, 1, generator=generator)
        x = (directions[chosen] * strengths).sum(1)
        batches.append((x * (d_in**0.5 / x.norm(dim=-1).mean())).to(device))
    return batches


def make_sae(options: argparse.Namespace, architecture: str, x: Tensor) -> TrainingSAE:
    """An SAE whose threshold lets about `--l0` features of each token through."""
    config = TrainingSAEConfig(
        architecture=architecture,  # type: ignore[arg-type]
        d_in=options.d_in,
        d_sae=options.d_sae,
        activation_fn_str="topk" if architecture == "topk" else "relu",
        activation_fn_kwargs={"k": options.l0} if architecture == "topk" else {},
        apply_b_dec_to_input=True,
        finetuning_scaling_factor=False,
        context_size=128,
        model_name="benchmark",
        hook_name="blocks.0.hook_resid_pre",
        hook_layer=0,
        hook_head_index=None,
        prepend_bos=True,
        dataset_path="",
        dataset_trust_remote_code=False,
        normalize_activations="none",
        dtype="float32",
        device=options.device,
        sae_lens_training_version=None,
        normalize_sae_decoder=False,
        init_encoder_as_decoder_transpose=True,
    )
    sae = TrainingSAE(config)
    with torch.no_grad():
        rows = torch.nn.functional.normalize(torch.randn_like(sae.W_dec), dim=1)
        sae.W_dec.copy_(rows)
        sae.W_enc.copy_(rows.T)
        columns = rows[torch.randperm(len(rows))[:1024]]
        border = (x @ columns.T).flatten()[:1_000_000].quantile(1 - options.l0 / options.d_sae)
        if architecture == "standard":
            sae.b_enc.fill_(-border)
        elif architecture == "gated":
            sae.b_gate.fill_(-border)
        elif architecture == "jumprelu":
            sae.log_threshold.fill_(border.log())
    return sae


class Steps:
    """Training steps of one architecture, and encoder products beside them."""

    def __init__(self, options: argparse.Namespace, architecture: str, mode: str) -> None:
        torch.manual_seed(0)
        self.batches = make_batches(options.d_in, options.batch, options.device)
        self.sae = make_sae(options, architecture, self.batches[0]).train()
        self.sae.sparse_kernels = mode  # type: ignore[assignment]
        self.optimizer = make_optimizer(
            self.sae.parameters(), lr=LEARNING_RATE, beta1=0.9, beta2=0.999
        )
        self.firing = FiringStatistics(options.d_sae, self.sae.device)
        self.autocast = torch.autocast(
            self.sae.device.type, dtype=torch.bfloat16, enabled=options.autocast
        )
        self.nobody_is_dead = torch.zeros(options.d_sae, dtype=torch.bool, device=self.sae.device)

    def take(self, number: int) -> Any:
        """One step; returns the output of its training pass."""
        sae = self.sae
        with self.autocast:
            x = self.batches[number % len(self.batches)]
            output = sae.training_forward_pass(x, 1e-3, self.nobody_is_dead)
        self.firing.update(reported_features(output))
        output.loss.backward()
        clip_and_step(self.optimizer, sae.parameters(), gradient_norm(sae.parameters()))
        sae.recycle_gradients()
        self.optimizer.zero_grad()
        return output

    def take_floor(self, number: int) -> Tensor:
        """The encoder's product alone."""
        return self.batches[number % len(self.batches)] @ self.sae.W_enc.data


def measure(options: argparse.Namespace, architecture: str, mode: str) -> dict[str, Any]:
    """Time steps of one architecture in one mode."""
    taken = Steps(options, architecture, mode)
    sae = taken.sae

    def timed(work: Callable[[int], Any], number: int) -> tuple[float, Any]:
        clock = time.process_time if options.clock == "cpu" else time.perf_counter
        synchronize()
        start = clock()
        result = work(number)
        synchronize()
        return clock() - start, result

    def synchronize() -> None:
        if sae.device.type == "cuda":
            torch.cuda.synchronize()

    steps, floors, output = [], [], None
    for number in range(options.warmup + options.steps):
        step_time, output = timed(taken.take, number)
        floor_time, _ = timed(taken.take_floor, number)
        if number >= options.warmup:
            steps.append(step_time)
            floors.append(floor_time)
    assert output is not None
    feature_acts = reported_features(output)
    active = feature_acts._nnz() if feature_acts.is_sparse else int(feature_acts.count_nonzero())
    return {
        "architecture": architecture,
        "mode": mode,
        "sparse": output.metrics.get("sparse_kernels"),
        "d_in": options.d_in,
        "d_sae": options.d_sae,
        "batch": options.batch,
        "l0": round(active / options.batch, 1),
        "floors": round(statistics.median(steps) / statistics.median(floors), 2),
        "step_s": round(statistics.median(steps), 5),
        "floor_s": round(statistics.median(floors), 5),
        "threads": torch.get_num_threads(),
        "clock": options.clock,
        "peak_memory_gb": round(peak_memory(sae.device) / 1e9, 2),
    }


def peak_memory(device: torch.device) -> int:
    """Peak of the process so far (CPU) or of the device's allocations, in bytes."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def add_options(parser: argparse.ArgumentParser) -> None:
    """Sizes, and how to measure."""
    parser.add_argument("--d-in", type=int, default=768)
    parser.add_argument("--d-sae", type=int, default=12288)
    parser.add_argument("--batch", type=int, default=1024)
    parser.add_argument("--l0", type=int, default=64)
    parser.add_argument("--steps", type=int, default=9)
    parser.add_argument("--warmup", type=int, default=3)
    parser.add_argument("--autocast", action="store_true", help="bfloat16 autocast")
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--architectures", nargs="+", default=ARCHITECTURES)
    parser.add_argument("--modes", nargs="+", default=["auto"], help="auto, dense, sparse")
    add_options(parser)
    options = parser.parse_args()
    for architecture in options.architectures:
        for mode in options.modes:
            print(json.dumps(measure(options, architecture, mode)), flush=True)


if __name__ == "__main__":
    main()
