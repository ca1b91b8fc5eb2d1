"""`SAETrainingRunner`: from a config to a trained SAE.

A composition root: it loads the model, opens the data, makes the SAE, and gives the parts to a
`SAETrainer`. `python -m sae_lens.sae_training_runner --field value ...` runs one from the command
line.
"""

from __future__ import annotations

import argparse
import logging
import random
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sae_lens.activations.compilation import compile_model
from sae_lens.activations.halving import HalvingRunner
from sae_lens.activations.model_loading import load_model
from sae_lens.activations.store import ActivationsStore
from sae_lens.activations.stores import model_for, store_class_for
from sae_lens.atomic_files import atomic_write_json
from sae_lens.config.arguments import (
    add_config_arguments,
    config_from_values,
    config_values,
    read_config_file,
)
from sae_lens.config.resuming import find_checkpoint
from sae_lens.config.runner import LanguageModelSAERunnerConfig
from sae_lens.constants import RUNNER_CFG_FILENAME
from sae_lens.preflight import PreflightReport, preflight
from sae_lens.saes.files import jsonable
from sae_lens.saes.training import TrainingSAE
from sae_lens.training.checkpoints import ensure_writable
from sae_lens.training.evaluation import InModelEvaluator
from sae_lens.training.features import TrainingFeatures
from sae_lens.training.folding import bring_into_source_space
from sae_lens.training.geometric_median import compute_geometric_median
from sae_lens.training.initialization import InitialWeights, draw_weights, fit_weights
from sae_lens.training.interruptions import InterruptedException, stopping_on_signals
from sae_lens.training.loggers import make_logger
from sae_lens.training.random_states import random_state, set_random_state
from sae_lens.training.resume_files import ResumableCheckpoint
from sae_lens.training.resumption import restore
from sae_lens.training.sources import StoreSource
from sae_lens.training.trainer import SAETrainer
from sae_lens.training.trainer_checkpoints import save_after_error, save_trainer
from sae_lens.training.trainer_parts import source_settings

logger = logging.getLogger(__name__)


def interrupt_callback(sig_num: Any, stack_frame: Any) -> None:
    """A signal handler that raises `InterruptedException`."""
    del stack_frame
    raise InterruptedException(f"interrupted by signal {sig_num}")


class SAETrainingRunner:
    """Trains an SAE on the activations of a language model, as a config says.

    Args:
        cfg: the run's config.
        override_dataset: data to use instead of `cfg.dataset_path`.
        override_model: a model to use instead of loading `cfg.model_name`; for an SAE of several
            models, a list of them.
        override_sae: a training SAE to use instead of making one.

    Raises:
        ValueError: when the parts do not fit together: no such hook in the model, a context longer
            than the model's, no usable data, a checkpoint folder that cannot be written.
        RuntimeError: when the hook's width is not `cfg.d_in`.

    Attributes:
        cfg: the config.
        model: the language model.
        activations_store: where the activations come from.
        sae: the SAE, trained once `run` has returned.
    """

    cfg: LanguageModelSAERunnerConfig
    model: Any
    activations_store: ActivationsStore
    sae: TrainingSAE
    source: StoreSource
    _resumed: ResumableCheckpoint | None
    _random_state_before: dict[str, Any]

    def __init__(
        self,
        cfg: LanguageModelSAERunnerConfig,
        override_dataset: Any = None,
        override_model: Any = None,
        override_sae: TrainingSAE | None = None,
    ) -> None:
        for what, override in (("dataset", override_dataset), ("model", override_model)):
            if override is not None:
                logger.warning(
                    "You passed a %s of your own. The config does not describe it, so the run "
                    "cannot be reproduced from its config alone.",
                    what,
                )
        self.cfg, self._resumed = cfg, None
        if cfg.resume_from_checkpoint is not None:
            self.cfg, self._resumed = find_checkpoint(cfg)
        cfg = self.cfg
        ensure_writable(cfg.checkpoint_path)
        if cfg.output_path is not None:
            ensure_writable(cfg.output_path)
        self._random_state_before = random_state()
        _seed_everything(cfg.seed)
        try:
            self._load_parts(override_dataset, override_model, override_sae)
        except BaseException:
            set_random_state(self._random_state_before)
            raise

    def _load_parts(
        self, override_dataset: Any, override_model: Any, override_sae: TrainingSAE | None
    ) -> None:
        cfg = self.cfg
        self.model = model_for(cfg, override_model, self._load_model)
        self.activations_store = store_class_for(cfg.sae).from_config(
            self.model, cfg, override_dataset=override_dataset
        )
        if cfg.auto_batch:
            self.activations_store.halving = HalvingRunner()
        if not cfg.use_cached_activations:
            self.activations_store.check_model()
        self.source = StoreSource(
            self.activations_store, source_settings(cfg, self.activations_store)
        )
        self.sae = self._make_sae(override_sae)

    def _load_model(self, name: str) -> Any:
        return load_model(
            self.cfg.model_class_name,
            name,
            device=self.cfg.llm_device or self.cfg.device,
            model_from_pretrained_kwargs=self.cfg.model_from_pretrained_kwargs,
        )

    def run(self) -> TrainingSAE:
        """Train the SAE, save it, and return it.

        Raises:
            InterruptedException: on SIGINT or SIGTERM, after a checkpoint.
            NonFiniteLossError: when the loss stops being finite, after a checkpoint.
        """
        run_logger = make_logger(self.cfg)
        if self._resumed is not None:
            run_logger.load_state_dict(self._resumed.state["trainer"]["logger"])
        run_logger.start(self.cfg.to_dict())
        error: BaseException | None = None
        try:
            self._compile_if_needed()
            needs_evaluator = run_logger.is_active or self.cfg.keep_best_metric is not None
            trainer = SAETrainer(
                model=self.model,
                sae=self.sae,
                activation_store=self.activations_store,
                save_checkpoint_fn=self.save_checkpoint,
                cfg=self.cfg,
                evaluator=self._make_evaluator() if needs_evaluator else None,
                logger=run_logger,
                source=self.source,
            )
            if self._resumed is not None:
                restore(trainer, self._resumed)
                logger.info("Going on from %s.", self._resumed.folder)
                self._resumed = None  # it holds as much as the SAE and its optimiser
            sae = self.run_trainer_with_interruption_handling(trainer)
            self._save_output(trainer)
        except BaseException as raised:
            error = raised
            raise
        finally:
            self.activations_store.pause_prefetching()
            # A compiled pass on the instance would keep the SAE from being pickled.
            vars(self.sae).pop("training_forward_pass", None)
            run_logger.finish(error)
            # Seeding was for the run alone; the caller's random numbers go on as they were.
            set_random_state(self._random_state_before)
        return sae

    def preflight(self) -> PreflightReport:
        """What the run will need; the data are left where they are.

        Raises:
            PreflightError: when it cannot work, with every reason.
        """
        report = preflight(self.cfg, self.model, self.activations_store)
        report.raise_problems()
        return report

    # -- the parts --------------------------------------------------------------------------------

    def _make_sae(self, override_sae: TrainingSAE | None) -> TrainingSAE:
        trained = override_sae
        path = self.cfg.from_pretrained_path
        if trained is None and path is not None:
            trained = self._load_sae(path)
        if trained is not None:
            if trained.cfg.d_in != self.cfg.d_in:
                what = "that was passed" if override_sae is not None else f"in {path}"
                raise ValueError(
                    f"The SAE {what} has d_in={trained.cfg.d_in}, the config "
                    f"d_in={self.cfg.d_in}; make them equal."
                )
            if self._initial_weights is not None and self._resumed is None:
                raise ValueError(
                    "features.initial_weights are for a new SAE; this run starts from a trained "
                    "one. Leave them out."
                )
            return trained
        self.sae = TrainingSAE(self.cfg.training_sae_config())
        if self._resumed is None:
            self._initialize()
        return self.sae

    @property
    def _initial_weights(self) -> InitialWeights | None:
        return TrainingFeatures.of(self.cfg.features).initial_weights

    def _initialize(self) -> None:
        """First weights and decoder bias, as the config asks."""
        rules = self._initial_weights
        if rules is None:
            self._init_sae_group_b_decs()
            return
        sample = self.source.sample()[: self.cfg.train_batch_size_tokens]
        sample = sample.to(self.sae.device, self.sae.dtype)
        maps = self.source.whitening
        draw_weights(self.sae, rules, sample, self.model, None if maps is None else maps[-1])
        self._init_sae_group_b_decs()
        norm = fit_weights(self.sae, rules, sample)
        if norm is not None:
            logger.info("Decoder rows start with a norm of %.3f.", norm)

    def _load_sae(self, path: str) -> TrainingSAE:
        """A trained SAE, brought from raw activations to those that the run trains on."""
        sae = TrainingSAE.load_from_pretrained(path, self.cfg.device)
        if self._resumed is None:  # else the checkpoint has the weights, and the statistics
            self.source.prepare()
        bring_into_source_space(sae, self.source, self.cfg.normalize_activations)
        return sae

    @torch.no_grad()
    def _init_sae_group_b_decs(self) -> None:
        """Start the decoder bias at the median or mean of the first activations.

        The bias lives in the space of the SAE's processed input, so the sample is scaled or
        whitened (by the source) or normalised (by the SAE) first.
        """
        if self.cfg.b_dec_init_method == "zeros":
            return
        sample = self.sae.as_decoded(self.source.sample())
        if self.cfg.b_dec_init_method == "geometric_median":
            found = compute_geometric_median(sample, maxiter=100, verbose=self.cfg.verbose)
            self.sae.initialize_b_dec_with_precalculated(found.median)
        elif self.cfg.b_dec_init_method == "mean":
            self.sae.initialize_b_dec_with_mean(sample.cpu())

    def _make_evaluator(self) -> InModelEvaluator:
        evaluator = InModelEvaluator(self.model, self.cfg)
        evaluator.prepare(self.activations_store)
        return evaluator

    def _compile_if_needed(self) -> None:
        """Compile model and SAE as the config asks, before anything is built on them."""
        if self.cfg.compile_llm:
            self.model = compile_model(self.model, self.cfg.llm_compilation_mode)
            self.activations_store.model = self.model
        if self.cfg.compile_sae:
            backend = "aot_eager" if self.sae.device.type == "mps" else "inductor"
            self.sae.training_forward_pass = torch.compile(  # type: ignore[method-assign]
                self.sae.training_forward_pass, mode=self.cfg.sae_compilation_mode, backend=backend
            )

    # -- interruptions, checkpoints, output -------------------------------------------------------

    def run_trainer_with_interruption_handling(self, trainer: SAETrainer) -> TrainingSAE:
        """Run `trainer.fit()`; on SIGINT or SIGTERM, or an error, save a checkpoint and raise.

        A signal that arrives during a training step takes effect when the step is complete; while
        activations are gathered, at once. If it comes again later than a second after, it breaks
        off whatever is done, and there is a checkpoint only if that was between two steps. SIGUSR1
        makes a checkpoint without stopping. Handlers that were there before are restored. Outside
        the main thread, where Python allows no handlers, none are installed.
        """
        with stopping_on_signals(trainer):
            try:
                return trainer.fit()
            except (Exception, KeyboardInterrupt) as error:
                save_after_error(trainer, error, self.save_checkpoint)
                raise

    @staticmethod
    def save_checkpoint(
        trainer: SAETrainer, checkpoint_name: str, wandb_aliases: list[str] | None = None
    ) -> None:
        """Write the checkpoint `{cfg.checkpoint_path}/{checkpoint_name}`, whole or not at all."""
        save_trainer(trainer, Path(trainer.cfg.checkpoint_path) / checkpoint_name, wandb_aliases)

    def _save_output(self, trainer: SAETrainer) -> None:
        if self.cfg.output_path is None:
            return
        output = Path(self.cfg.output_path)
        self.sae.save_inference_model(output, sparsity=trainer.log_feature_sparsity)
        atomic_write_json(output / RUNNER_CFG_FILENAME, jsonable(self.cfg.to_dict()), indent=2)


LanguageModelSAETrainingRunner = SAETrainingRunner


def _seed_everything(seed: int | None) -> None:
    """Seed the generators of torch, numpy and Python: the SAE's first weights, noise, shuffling."""
    if seed is None:
        return
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def _parse_cfg_args(args: Sequence[str]) -> LanguageModelSAERunnerConfig:
    """The config that command-line arguments ask for; without any, the help text is printed."""
    parser = argparse.ArgumentParser(
        prog="python -m sae_lens.sae_training_runner",
        description="Train an SAE on the activations of a language model.",
        allow_abbrev=False,
    )
    parser.add_argument("--config", metavar="FILE", help="a YAML or JSON file with fields")
    add_config_arguments(parser, LanguageModelSAERunnerConfig)
    parsed = parser.parse_args(list(args) or ["--help"])
    values = read_config_file(parsed.config) if parsed.config else {}
    values.update(config_values(LanguageModelSAERunnerConfig, parsed))
    return config_from_values(LanguageModelSAERunnerConfig, values, parsed.config or "")


def _run_cli(args: Sequence[str]) -> None:
    SAETrainingRunner(_parse_cfg_args(args)).run()


if __name__ == "__main__":
    _run_cli(sys.argv[1:])
