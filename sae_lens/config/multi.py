"""`MultiSAETrainingRunnerConfig`: several SAEs on one language model, in one pass over it."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from sae_lens._version import __version__
from sae_lens.config.logging import LoggingConfig
from sae_lens.config.runner import LanguageModelSAERunnerConfig
from sae_lens.config.validation import folder_of_the_run
from sae_lens.saes.config import TrainingSAEConfig
from sae_lens.training.features import TrainingFeatures, features_as_dict
from sae_lens.training.side_by_side import TOGETHER

ONE_MODEL = (
    "MultiSAETrainingRunner trains on one language model, which runs once per batch for all of its "
    "SAEs; train a crosscoder of several models with SAETrainingRunner."
)

_PLAIN_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]*")

# Fields of a single run that have the same name and meaning here.
_SHARED = (
    "model_name", "model_class_name", "dataset_path", "dataset_trust_remote_code", "streaming",
    "context_size", "n_batches_in_buffer", "training_tokens", "store_batch_size_prompts",
    "seqpos_slice", "activations_mixing_fraction", "device", "llm_device", "seed", "dtype",
    "prepend_bos", "autocast", "autocast_lm", "train_batch_size_tokens", "adam_beta1",
    "adam_beta2", "lr", "lr_scheduler_name", "lr_warm_up_steps", "lr_end", "lr_decay_steps",
    "n_restart_cycles", "dead_feature_window", "feature_sampling_window", "dead_feature_threshold",
    "n_eval_batches", "eval_batch_size_prompts", "n_checkpoints", "model_kwargs",
    "model_from_pretrained_kwargs", "sae_lens_version", "sae_lens_training_version",
    "exclude_special_tokens", "n_batches_for_norm_estimate",
)  # fmt: skip


@dataclass
class MultiSAETrainingRunnerConfig:
    """A run that trains several SAEs side by side.

    Fields that are not listed mean what they mean in `LanguageModelSAERunnerConfig`.

    Attributes:
        saes: the training configs of the SAEs, by name. The names become folders.
        hook_names: the hook of each SAE by its name, or one hook for all. It is what a transcoder
            reads; what it writes is the hook_name_out of its config. SAEs whose configs name their
            hooks (those of crosscoders and cross-layer transcoders always do) need none.
        hook_head_indices: one head of it, likewise; not for SAEs over several hooks.
        use_chat_formatting: not supported; must stay False.
        disable_concat_sequences: one text per prompt; texts that are too short are skipped.
        sequence_separator_token: what stands between texts; only "bos" is supported.
        act_store_device: where the shuffling buffer lies, if not on device.
        prefetch_llm_batches: batches of the language model that a thread makes ahead; True for as
            many as a refill of the buffer reads.
        seed: seed of everything random in the run, the same for every SAE.
        features: further training features of each SAE by its name, as a `TrainingFeatures` or the
            dictionary of one.
        evaluator: called as `evaluator(sae, data_provider, scaler)` instead of the usual
            evaluations; returns numbers to log.
        logger: what is logged, and where.
        checkpoint_path: folder under which the run makes a folder of its own, and in that one for
            each SAE.
        save_final_checkpoint: the final checkpoints are always saved, whatever this says.
        output_path: folder for the trained SAEs in their inference form, one in it for each.
        resume_from_checkpoint: go on from here: a run's folder, a folder in its `together`, or
            "latest" for the newest run at checkpoint_path.

    Raises:
        ValueError: when the parts do not fit together.
    """

    saes: Mapping[str, TrainingSAEConfig]
    hook_names: Mapping[str, str] | str = field(default_factory=dict)
    hook_head_indices: Mapping[str, int | None] | int | None = None
    model_name: str = "gelu-2l"
    model_class_name: str = "HookedTransformer"
    dataset_path: str = ""
    dataset_trust_remote_code: bool = True
    streaming: bool = True
    use_chat_formatting: bool = False
    context_size: int = 128
    n_batches_in_buffer: int = 20
    training_tokens: int = 2_000_000
    store_batch_size_prompts: int = 32
    seqpos_slice: tuple[int | None, ...] = (None,)
    disable_concat_sequences: bool = False
    sequence_separator_token: int | str | None = "bos"
    activations_mixing_fraction: float = 0.5
    device: str = "cpu"
    llm_device: str | None = None
    act_store_device: str | None = None
    prefetch_llm_batches: bool | int = False
    seed: int = 42
    dtype: str = "float32"
    prepend_bos: bool = True
    autocast: bool = False
    autocast_lm: bool = False
    compile_llm: bool = False
    llm_compilation_mode: str | None = None
    train_batch_size_tokens: int = 4096
    adam_beta1: float = 0.9
    adam_beta2: float = 0.999
    lr: float = 3e-4
    lr_scheduler_name: str = "constant"
    lr_warm_up_steps: int | float = 0
    lr_end: float | None = None
    lr_decay_steps: int | float = 0
    n_restart_cycles: int = 1
    dead_feature_window: int = 1000
    feature_sampling_window: int = 2000
    dead_feature_threshold: float = 1e-8
    n_eval_batches: int = 10
    eval_batch_size_prompts: int | None = None
    evaluator: Callable[..., dict[str, Any]] | None = None
    logger: LoggingConfig = field(default_factory=LoggingConfig)
    n_checkpoints: int = 0
    checkpoint_path: str = "checkpoints"
    save_final_checkpoint: bool = True
    output_path: str | None = None
    resume_from_checkpoint: str | None = None
    model_kwargs: dict[str, Any] = field(default_factory=dict)
    model_from_pretrained_kwargs: dict[str, Any] | None = None
    sae_lens_version: str = field(default_factory=lambda: __version__)
    sae_lens_training_version: str = field(default_factory=lambda: __version__)
    exclude_special_tokens: bool | list[int] = False
    n_batches_for_norm_estimate: int = 1000
    verbose: bool = field(default=True, kw_only=True)
    features: Mapping[str, TrainingFeatures | dict[str, Any]] | None = field(
        default=None, kw_only=True
    )

    def __post_init__(self) -> None:
        self._refuse_what_is_not_supported()
        self._refuse_bad_names()
        if isinstance(self.logger, dict):
            self.logger = LoggingConfig(**self.logger)
        if self.lr_end is None:
            self.lr_end = self.lr / 10
        self._take_features()
        self.device, self.dtype = str(self.device), str(self.dtype)
        self.seqpos_slice = (None,) if self.seqpos_slice is None else tuple(self.seqpos_slice)
        if self.act_store_device in (None, "with_model"):
            self.act_store_device = self.device
        # As for a single run: with several, nothing is written over.
        if self.resume_from_checkpoint is None or self.logger.wandb_id is not None:
            self.checkpoint_path = folder_of_the_run(self.checkpoint_path, self.logger.wandb_id)
        for name in self.saes:
            self.runner_config(name)  # refuses what a single run refuses

    def _take_features(self) -> None:
        if self.features is None:
            return
        unknown = sorted(self.features.keys() - self.saes.keys())
        if unknown:
            raise ValueError(
                f"features names {', '.join(unknown)}, but there are the SAEs "
                f"{', '.join(self.saes)}: give the training features of each SAE by its name."
            )
        self.features = {
            name: TrainingFeatures.of(value).to_dict() for name, value in self.features.items()
        }

    @property
    def hook_names_per_sae(self) -> dict[str, str]:
        """The hook of each SAE, of several hooks the first."""
        given = self.hook_names
        if isinstance(given, str):
            given = dict.fromkeys(self.saes, given)
        return {
            name: _hook_of(sae) or given.get(name) or sae.hook_name
            for name, sae in self.saes.items()
        }

    @property
    def hook_head_indices_per_sae(self) -> dict[str, int | None]:
        """The head of each SAE's hook; None for all heads."""
        given = self.hook_head_indices
        if given is None or isinstance(given, int):
            given = dict.fromkeys((n for n, sae in self.saes.items() if not _hook_of(sae)), given)
        return {name: given.get(name) for name in self.saes}

    @property
    def total_training_tokens(self) -> int:
        """The same as `training_tokens`."""
        return self.training_tokens

    @property
    def total_training_steps(self) -> int:
        """Whole batches in the total."""
        return self.training_tokens // self.train_batch_size_tokens

    @property
    def prefetch_batches(self) -> int:
        """`prefetch_llm_batches` in training batches, rounded up."""
        n = self.prefetch_llm_batches
        n = self.n_batches_in_buffer // 2 if n is True else int(n)
        rows = len(range(self.context_size)[slice(*self.seqpos_slice)])
        return -(-n * self.store_batch_size_prompts * rows // self.train_batch_size_tokens)

    def runner_config(self, name: str) -> LanguageModelSAERunnerConfig:
        """The config of a run that trains the SAE of that name alone, to the same weights."""
        logging_values = {f.name: getattr(self.logger, f.name) for f in fields(LoggingConfig)}
        logging_values["run_name"] = f"{self.logger.run_name or Path(self.checkpoint_path).name}"
        if self.logger.log_to_jsonl is not None:
            log = Path(self.logger.log_to_jsonl)
            logging_values["log_to_jsonl"] = str(log.with_name(f"{log.stem}-{name}{log.suffix}"))
        config = LanguageModelSAERunnerConfig(
            **{shared: getattr(self, shared) for shared in _SHARED},
            sae=self.saes[name],
            logger=LoggingConfig(**logging_values),
            hook_name=self.hook_names_per_sae[name],
            hook_head_index=self.hook_head_indices_per_sae[name],
            act_store_device=str(self.act_store_device),
            prefetch_batches=self.prefetch_batches,
            output_path=None if self.output_path is None else str(Path(self.output_path) / name),
            checkpoint_path=self.checkpoint_path,
            verbose=False,
            features=features_as_dict((self.features or {}).get(name)),
        )
        config.checkpoint_path = str(Path(self.checkpoint_path) / name)
        return config

    def to_dict(self) -> dict[str, Any]:
        """All fields, in a form that JSON can hold."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        values["saes"] = {name: sae.to_dict() for name, sae in self.saes.items()}
        values["logger"] = dict(vars(self.logger))
        values["evaluator"] = None if self.evaluator is None else repr(self.evaluator)
        return values

    def _refuse_what_is_not_supported(self) -> None:
        if self.use_chat_formatting:
            raise ValueError("use_chat_formatting=True is not supported; format the text before.")
        if self.sequence_separator_token != "bos":
            raise ValueError(
                f"sequence_separator_token is {self.sequence_separator_token!r}; only 'bos' is "
                "supported. Tokenise the data with PretokenizeRunner for another separator."
            )
        if not self.checkpoint_path:
            raise ValueError("checkpoint_path is empty; the final checkpoints are always saved.")

    def _refuse_bad_names(self) -> None:
        if not self.saes:
            raise ValueError("saes is empty: give at least one training config by name.")
        for name in self.saes:
            if name == TOGETHER:
                raise ValueError(
                    f"{name!r} cannot be an SAE's name: it is the folder from which runs go on."
                )
            if _PLAIN_NAME.fullmatch(name) is None:
                raise ValueError(
                    f"{name!r} cannot be the name of an SAE: it names a folder, so use letters, "
                    "digits and any of _ . + - only."
                )
            if len(getattr(self.saes[name], "model_names", ())) > 1:
                raise ValueError(f"{name!r} is of several models. {ONE_MODEL}")
        for what in ("hook_names", "hook_head_indices"):
            given = getattr(self, what)
            if not isinstance(given, Mapping):
                continue
            needed = {
                name for name, sae in self.saes.items() if not (_hook_of(sae) or sae.hook_name)
            }
            missing = sorted(needed - given.keys()) if what == "hook_names" else []
            unknown = sorted(given.keys() - self.saes.keys())
            if missing or unknown:
                raise ValueError(
                    f"{what} must name the SAEs of `saes`: missing are {missing}, unknown "
                    f"{unknown}."
                )
            self._refuse_other_hooks(what, given)

    def _refuse_other_hooks(self, what: str, given: Mapping[str, Any]) -> None:
        for name in given:
            own = _hook_of(self.saes[name])
            if own and given[name] not in (None, own):
                raise ValueError(
                    f"{what} gives {name!r} {given[name]!r}, but its config names its hooks: "
                    f"{[hook for _, hook in getattr(self.saes[name], 'sites', ())]}. Leave it out."
                )


def _hook_of(sae: TrainingSAEConfig) -> str | None:
    """The first hook of an SAE whose config names several; None where the run's has to."""
    sites = getattr(sae, "sites", ())
    return sites[0].hook_name if sites else None
