"""Training steps of one contender: `step_worker.py FAMILY`, with options from the standard input.

A step is everything that the contender's own trainer does between taking one batch and asking for
the next, without logging. Contenders whose trainer needs a language model are driven the way it
drives them. The encoder begins where training settles, at about `l0` active features a token, and
the learning rate is so small that it stays there.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from serving import Server

server = Server()

import torch  # noqa: E402
from torch import Tensor  # noqa: E402

FAMILY = sys.argv[1]
if FAMILY in ("ours-5", "ours-6", "sae_lens-5", "sae_lens-6"):
    for module in ("sae_lens", "sae_lens.config", "sae_lens.training.sae_trainer"):
        importlib.import_module(module)

OPTIONS: dict[str, Any] = server.next_case()
ARCHITECTURE, DEVICE = OPTIONS["architecture"], OPTIONS["device"]
D_IN, D_SAE, BATCH, L0 = (OPTIONS[name] for name in ("d_in", "d_sae", "batch", "l0"))
AUTOCAST = OPTIONS["precision"] == "bfloat16"
LEARNING_RATE = 1e-7
MANY = 10**9


class Batches:
    """A few batches over and over; a request is awaited before each of them is handed out."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(1)
        directions = torch.randn(2048, D_IN, generator=generator)
        directions = torch.nn.functional.normalize(directions, dim=1)
        self.batches = []
        for _ in range(4):
            chosen = torch.randint(0, 2048, (BATCH, 32), generator=generator)
            strengths = torch.rand(BATCH, 32, 1, generator=generator)
            x = (directions[chosen] * strengths).sum(1)
            self.batches.append((x * (D_IN**0.5 / x.norm(dim=-1).mean())).to(DEVICE))
        self.given = 0

    def __next__(self) -> Tensor:
        server.wait_for_request()
        self.given += 1
        return self.batches[self.given % len(self.batches)]

    def __iter__(self) -> Batches:
        return self


class Store(Batches):
    """The same as an activation store of 5.x: with a hook axis, [batch, 1, d_in]."""

    estimated_norm_scaling_factor = None

    def __init__(self) -> None:
        super().__init__()
        self.batches = [x[:, None, :] for x in self.batches]

    def next_batch(self) -> Tensor:
        """The next batch."""
        return next(self)

    def set_norm_scaling_factor_if_needed(self) -> None:
        """Nothing to scale."""


def unit_directions() -> Tensor:
    """Random unit rows, [d_sae, d_in]; the same for every contender."""
    generator = torch.Generator().manual_seed(2)
    rows = torch.randn(D_SAE, D_IN, generator=generator)
    return torch.nn.functional.normalize(rows, dim=1).to(DEVICE)


@torch.no_grad()
def settle(sae: Any, x: Tensor) -> None:
    """Give a sae_lens SAE an encoder with about `L0` active features a token."""
    rows = unit_directions()
    sae.W_enc.data.copy_(rows.T)
    sae.W_dec.data.copy_(rows)
    some = x @ rows[torch.randperm(D_SAE, device=rows.device)[:1024]].T
    border = float(some.flatten()[:1_000_000].quantile(1 - L0 / D_SAE))
    if ARCHITECTURE == "standard":
        sae.b_enc.data.fill_(-border)
    elif ARCHITECTURE == "gated":
        sae.b_gate.data.fill_(-border)
    elif ARCHITECTURE == "jumprelu":
        if hasattr(sae, "log_threshold"):
            sae.log_threshold.data.fill_(float(torch.tensor(border).log()))
        else:
            sae.threshold.data.fill_(border)


def trainer_of_6() -> tuple[Any, Any, Batches]:
    """Trainer, SAE and batches by the 6.x interface (the original's and ours)."""
    import sae_lens
    from sae_lens.config import LoggingConfig, SAETrainerConfig
    from sae_lens.training.sae_trainer import SAETrainer

    size = {"d_in": D_IN, "d_sae": D_SAE, "device": DEVICE}
    if ARCHITECTURE == "standard":
        config = sae_lens.StandardTrainingSAEConfig(l1_coefficient=1.0, **size)
        sae: Any = sae_lens.StandardTrainingSAE(config)
    elif ARCHITECTURE == "gated":
        config = sae_lens.GatedTrainingSAEConfig(l1_coefficient=1.0, **size)
        sae = sae_lens.GatedTrainingSAE(config)
    elif ARCHITECTURE == "jumprelu":
        config = sae_lens.JumpReLUTrainingSAEConfig(l0_coefficient=1e-3, **size)
        sae = sae_lens.JumpReLUTrainingSAE(config)
    else:
        sae = sae_lens.TopKTrainingSAE(sae_lens.TopKTrainingSAEConfig(k=L0, **size))
    extra = {"sparse_kernels": OPTIONS["form"]} if FAMILY == "ours-6" else {}
    trainer_config = SAETrainerConfig(
        total_training_samples=MANY * BATCH, train_batch_size_samples=BATCH,
        n_checkpoints=0, checkpoint_path=None, save_final_checkpoint=False, device=DEVICE,
        autocast=AUTOCAST, lr=LEARNING_RATE, lr_end=LEARNING_RATE / 10, lr_warm_up_steps=0,
        lr_scheduler_name="constant", lr_decay_steps=0, n_restart_cycles=1,
        adam_beta1=0.9, adam_beta2=0.999, dead_feature_window=1000, feature_sampling_window=2000,
        logger=LoggingConfig(log_to_wandb=False), **extra,
    )  # fmt: skip
    batches = Batches()
    return SAETrainer(cfg=trainer_config, sae=sae, data_provider=batches), sae, batches


def trainer_of_5() -> tuple[Any, Any, Batches]:
    """Trainer, SAE and batches by the 5.x interface (the original's and ours)."""
    from sae_lens import LanguageModelSAERunnerConfig, TrainingSAE, TrainingSAEConfig
    from sae_lens.training.sae_trainer import SAETrainer

    extra = {"sparse_kernels": OPTIONS["form"]} if FAMILY == "ours-5" else {}
    config = LanguageModelSAERunnerConfig(
        architecture=ARCHITECTURE, d_in=D_IN, d_sae=D_SAE, train_batch_size_tokens=BATCH,
        training_tokens=MANY * BATCH, log_to_wandb=False, device=DEVICE, l1_coefficient=1e-3,
        normalize_sae_decoder=False, b_dec_init_method="zeros", adam_beta1=0.9, lr=LEARNING_RATE,
        verbose=False, autocast=AUTOCAST, init_encoder_as_decoder_transpose=True,
        activation_fn_kwargs={"k": L0} if ARCHITECTURE == "topk" else {}, **extra,
    )  # fmt: skip
    sae = TrainingSAE(TrainingSAEConfig.from_dict(config.get_training_sae_cfg_dict()))
    batches = Store()
    trainer = SAETrainer(
        model=None, sae=sae, activation_store=batches, save_checkpoint_fn=_save_nothing, cfg=config
    )
    return trainer, sae, batches


def _save_nothing(*_: Any, **__: Any) -> None:
    pass


def run_sae_lens() -> None:
    """`fit` of the trainer; it ends with the requests."""
    import sae_lens

    trainer, sae, batches = trainer_of_6() if FAMILY.endswith("-6") else trainer_of_5()
    x = batches.batches[0].flatten(0, -2)
    settle(sae, x)

    def final_values() -> dict[str, Any]:
        with torch.no_grad():
            active = (sae.encode(x) != 0).sum() / len(x)
        return {
            "version": sae_lens.__version__,
            "l0": round(float(active), 1),
            "is_sparse": bool(getattr(getattr(sae, "_sparse_choice", None), "is_sparse", False)),
            **device_memory(),
        }

    server.final_values = final_values
    trainer.fit()


def import_part(package: str, module: str) -> Any:
    """A module of a package, without running the package's own `__init__`.

    That one imports what training on a language model needs, which is not installed here.
    """
    found = importlib.util.find_spec(package)
    assert found is not None
    bare = types.ModuleType(package)
    bare.__path__ = found.submodule_search_locations  # type: ignore[assignment]
    sys.modules[package] = bare
    return importlib.import_module(f"{package}.{module}")


def run_sparsify() -> None:
    """As its trainer: forward, backward of the FVU, decoder kept at unit norm, torch's Adam."""
    config_class = import_part("sparsify", "config").SparseCoderConfig
    coder_class = importlib.import_module("sparsify.sparse_coder").SparseCoder
    coder = coder_class(D_IN, config_class(num_latents=D_SAE, k=L0), device=DEVICE)
    with torch.no_grad():
        coder.encoder.weight.copy_(unit_directions())
        coder.W_dec.copy_(unit_directions())
    optimizer = torch.optim.Adam(coder.parameters(), lr=LEARNING_RATE)
    since_fired = torch.zeros(D_SAE, dtype=torch.long, device=DEVICE)
    fired = torch.zeros(D_SAE, dtype=torch.bool, device=DEVICE)

    def step(x: Tensor) -> None:
        coder.set_decoder_norm_to_unit_norm()
        with torch.autocast(torch.device(DEVICE).type, torch.bfloat16, enabled=AUTOCAST):
            output = coder(x, dead_mask=since_fired > 10_000_000)
        output.fvu.backward()
        fired[output.latent_indices.flatten()] = True
        coder.remove_gradient_parallel_to_decoder_directions()
        optimizer.step()
        optimizer.zero_grad()
        since_fired.add_(len(x))
        since_fired[fired] = 0
        fired.zero_()

    run_steps(step, "sparsify")


def run_dictionary_learning() -> None:
    """Its own top-k trainer's `update`."""
    top_k = import_part("dictionary_learning", "trainers.top_k")
    trainer = top_k.TopKTrainer(
        steps=MANY, activation_dim=D_IN, dict_size=D_SAE, k=L0, layer=0, lm_name="none",
        lr=LEARNING_RATE, warmup_steps=0, device=DEVICE, seed=0,
    )  # fmt: skip
    with torch.no_grad():
        trainer.ae.encoder.weight.copy_(unit_directions())
        trainer.ae.decoder.weight.copy_(unit_directions().T)
    taken = [0]

    def step(x: Tensor) -> None:
        taken[0] += 1  # not step 0, in which it estimates a median
        with torch.autocast(torch.device(DEVICE).type, torch.bfloat16, enabled=AUTOCAST):
            trainer.update(taken[0], x)

    run_steps(step, "dictionary_learning")


def run_floor() -> None:
    """The encoder's product alone, and what the machine does at best."""
    W = unit_directions().T.contiguous()
    if AUTOCAST:
        W = W.bfloat16()
    run_steps(lambda x: x.to(W.dtype) @ W, None)


def run_steps(step: Callable[[Tensor], Any], module: str | None) -> None:
    """One step for each request."""
    names = {"sparsify": "eai-sparsify", "dictionary_learning": "dictionary-learning"}
    version = importlib.metadata.version(names[module]) if module else torch.__version__
    server.final_values = lambda: {"version": version, "l0": L0, **device_memory()}
    for x in Batches():
        step(x)


def device_memory() -> dict[str, Any]:
    """Peak of the device's allocations, where there is a device."""
    if torch.device(DEVICE).type != "cuda":
        return {}
    return {"peak_memory_gb": round(torch.cuda.max_memory_allocated() / 1e9, 3)}


def main() -> None:
    """Run the contender named in the options."""
    torch.manual_seed(0)
    if torch.device(DEVICE).type == "cuda":
        server.synchronize = torch.cuda.synchronize
        torch.backends.cuda.matmul.allow_tf32 = OPTIONS["precision"] == "tf32"
    runs = {
        "sparsify": run_sparsify,
        "dictionary_learning": run_dictionary_learning,
        "ours-floor": run_floor,
    }
    runs.get(FAMILY, run_sae_lens)()


if __name__ == "__main__":
    main()
