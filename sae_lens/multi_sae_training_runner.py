"""`MultiSAETrainingRunner`: several SAEs on one language model, which runs once per batch.

Each SAE has its own hooks, architecture, width, optimiser, logs and checkpoints, and comes out as
if it had been trained alone with the same seed: the activations are mixed alike (see
`activations/multi_hook.py`), and each SAE draws its random numbers from a stream of its own.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from sae_lens.activations.compilation import compile_model
from sae_lens.activations.halving import HalvingRunner
from sae_lens.activations.model_loading import load_model
from sae_lens.activations.multi_hook import HookView, MultiHookStore
from sae_lens.activations.reading import reading_of
from sae_lens.activations.store_settings import settings_from_runner_config
from sae_lens.config.multi import ONE_MODEL, MultiSAETrainingRunnerConfig
from sae_lens.config.resuming import find_checkpoint
from sae_lens.config.runner import LanguageModelSAERunnerConfig
from sae_lens.sae_training_runner import (
    SAETrainingRunner,
    _seed_everything,
)
from sae_lens.saes.training import TrainingSAE
from sae_lens.training.checkpoints import ensure_writable
from sae_lens.training.loggers import (
    JsonLinesLogger,
    MetricLogger,
    NullLogger,
    SeveralLoggers,
    WandbLogger,
)
from sae_lens.training.prefixed_logger import PrefixedLogger
from sae_lens.training.random_states import random_state, set_random_state
from sae_lens.training.resume_files import ResumableCheckpoint
from sae_lens.training.side_by_side import TOGETHER, SideBySide
from sae_lens.training.source_statistics import prepare_together
from sae_lens.training.sources import StoreSource
from sae_lens.training.trainer import SAETrainer
from sae_lens.training.trainer_parts import source_settings

logger = logging.getLogger(__name__)


class MultiSAETrainingRunner:
    """Trains several SAEs on the activations of one language model, in one pass over the data.

    Args:
        cfg: the run's config.
        override_dataset: data to use instead of `cfg.dataset_path`.
        override_model: a model to use instead of loading `cfg.model_name`.
        override_saes: training SAEs to use instead of making them, by name; not all need be there.

    Raises:
        ValueError: when the parts do not fit together, as for `SAETrainingRunner`.
        RuntimeError: when a hook's width is not the `d_in` of its SAE.

    Attributes:
        cfg: the config.
        model: the language model.
        activations_store: where the activations of all hooks come from.
        saes: the SAEs by name, trained once `run` has returned.
    """

    def __init__(
        self,
        cfg: MultiSAETrainingRunnerConfig,
        override_dataset: Any = None,
        override_model: Any = None,
        override_saes: dict[str, TrainingSAE] | None = None,
    ) -> None:
        overrides = override_saes or {}
        if isinstance(override_model, (list, tuple)):
            raise ValueError(ONE_MODEL)
        unknown = sorted(overrides.keys() - cfg.saes.keys())
        if unknown:
            raise ValueError(f"override_saes names {unknown}, which cfg.saes does not.")
        self.cfg: MultiSAETrainingRunnerConfig = cfg
        self._resumed: ResumableCheckpoint | None = None
        if cfg.resume_from_checkpoint is not None:
            self.cfg, self._resumed = find_checkpoint(cfg, TOGETHER)
        cfg = self.cfg
        ensure_writable(cfg.checkpoint_path)
        if cfg.output_path is not None:
            ensure_writable(cfg.output_path)
        self._random_state_before = random_state()
        _seed_everything(cfg.seed)
        try:
            self.model: Any = override_model
            if override_model is None:
                self.model = load_model(
                    cfg.model_class_name,
                    cfg.model_name,
                    device=cfg.llm_device or cfg.device,
                    model_from_pretrained_kwargs=cfg.model_from_pretrained_kwargs,
                )
            self._configs = {name: cfg.runner_config(name) for name in cfg.saes}
            self.activations_store = self._make_store(override_dataset)
            self._make_saes(overrides)
        finally:
            set_random_state(self._random_state_before)

    @property
    def saes(self) -> dict[str, TrainingSAE]:
        """The SAEs by name."""
        return {name: single.sae for name, single in self._singles.items()}

    def run(self) -> dict[str, TrainingSAE]:
        """Train the SAEs side by side, save them, and return them by name.

        Raises:
            InterruptedException: on SIGINT or SIGTERM, after a checkpoint of every SAE, and one
                from which the run can go on.
            NonFiniteLossError: when a loss stops being finite, likewise.
        """
        self._random_state_before = random_state()
        shared = self._make_wandb_logger()
        loggers = {name: self._make_logger(name, shared) for name in self._singles}
        if self._resumed is not None:
            shared.load_state_dict(self._resumed.state["other"])
            for name, one in loggers.items():
                one.load_state_dict(self._resumed.state["trainers"][name]["trainer"]["logger"])
        shared.start(self.cfg.to_dict())
        error: BaseException | None = None
        try:
            if self.cfg.compile_llm:
                self.model = compile_model(self.model, self.cfg.llm_compilation_mode)
                self.activations_store.model = self.model
            for name, one in loggers.items():
                one.start(self._configs[name].to_dict())
            trainers = {
                name: single.make_trainer(self.model, loggers[name], self.cfg.evaluator)
                for name, single in self._singles.items()
            }
            together = SideBySide(
                trainers,
                self._random_states,
                self.activations_store,
                Path(self.cfg.checkpoint_path) / TOGETHER,
                self.cfg.to_dict(),
                shared,
            )
            if self._resumed is not None:
                together.restore(self._resumed)
                logger.info("Going on from %s.", self._resumed.folder)
                self._resumed = None
            with self._progress_bar() as bar:
                together.train(bar)
            for name, single in self._singles.items():
                single._save_output(trainers[name])
        except BaseException as raised:
            error = raised
            raise
        finally:
            self.activations_store.pause_prefetching()
            for one in loggers.values():
                one.finish(error)
            shared.finish(error)
            # Seeding was for the run alone; the caller's random numbers go on as they were.
            set_random_state(self._random_state_before)
        return self.saes

    # -- the parts --------------------------------------------------------------------------------

    def _make_store(self, override_dataset: Any) -> MultiHookStore:
        first = next(iter(self._configs.values()))
        settings = settings_from_runner_config(self.model, first, override_dataset)
        settings["disable_concat_sequences"] = self.cfg.disable_concat_sequences
        store = MultiHookStore(
            self.model, [reading_of(config) for config in self._configs.values()], **settings
        )
        if first.auto_batch:
            store.halving = HalvingRunner()
        store.check_model()
        return store

    def _make_saes(self, overrides: dict[str, TrainingSAE]) -> None:
        """Make every SAE from the random numbers that a run of its own would start it with."""
        sources: dict[str, StoreSource] = {}
        for name, config in self._configs.items():
            reading = reading_of(config)
            view = HookView(self.activations_store, reading, config.normalize_activations)
            sources[name] = StoreSource(view, source_settings(config, view))
            sources[name].is_alone = False
        # While no batch is drawn, the data can be rewound after the estimates.
        if self._resumed is None:
            prepare_together(list(sources.values()), self.activations_store)
        start = random_state()
        self._singles: dict[str, _OneOfSeveral] = {}
        self._random_states: dict[str, dict[str, Any]] = {}
        for name, config in self._configs.items():
            set_random_state(start)
            self._singles[name] = _OneOfSeveral(
                config, self.model, sources[name], overrides.get(name), self._resumed
            )
            self._random_states[name] = random_state()

    def _make_wandb_logger(self) -> MetricLogger:
        cfg = self.cfg.logger
        if not cfg.log_to_wandb:
            return NullLogger()
        run_name = cfg.run_name or Path(self.cfg.checkpoint_path).name
        return WandbLogger(cfg.wandb_project, cfg.wandb_entity, run_name, cfg.wandb_id)

    def _make_logger(self, name: str, shared: MetricLogger) -> MetricLogger:
        """W&B has one run for all, in which each SAE has its prefix; JSON lines a file for each."""
        loggers: list[MetricLogger] = [PrefixedLogger(name, shared)] if shared.is_active else []
        path = self._configs[name].log_to_jsonl
        if path is not None:
            loggers.append(JsonLinesLogger(path))
        return SeveralLoggers(loggers)

    def _progress_bar(self) -> tqdm:
        n = len(self._singles)
        return tqdm(
            total=self.cfg.training_tokens,
            desc=f"Training {n} SAE{'s' if n > 1 else ''}",
            disable=not self.cfg.verbose,
        )


class _OneOfSeveral(SAETrainingRunner):
    """One SAE of the run: made, evaluated and saved as a run of its own does it."""

    def __init__(
        self,
        cfg: LanguageModelSAERunnerConfig,
        model: Any,
        source: StoreSource,
        override_sae: TrainingSAE | None,
        resumed: ResumableCheckpoint | None,
    ) -> None:
        self.cfg, self.model, self._resumed = cfg, model, resumed
        self.source, self.activations_store = source, source.store
        ensure_writable(cfg.checkpoint_path)
        self.sae = self._make_sae(override_sae)

    def make_trainer(self, model: Any, run_logger: MetricLogger, evaluator: Any) -> SAETrainer:
        """The trainer of this SAE, on its view of the shared activations."""
        self.model = model
        if evaluator is None and run_logger.is_active:
            evaluator = self._make_evaluator()
        return SAETrainer(
            model=model,
            sae=self.sae,
            activation_store=self.activations_store,
            save_checkpoint_fn=self.save_checkpoint,
            cfg=self.cfg,
            evaluator=evaluator,
            logger=run_logger,
            source=self.source,
        )


__all__ = ["MultiSAETrainingRunner", "MultiSAETrainingRunnerConfig"]
