"""`LanguageModelSAERunnerConfig`: everything about a run that trains an SAE on a language model."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from sae_lens._version import __version__
from sae_lens.config.fields import dict_field
from sae_lens.config.logging import LoggingConfig
from sae_lens.config.named_fields import named_fields, remember_named_fields
from sae_lens.config.nested import take_nested
from sae_lens.config.newer_architectures import make_own_sae_config, take_output_hook
from sae_lens.config.run_files import RunFiles
from sae_lens.config.run_parts import RunParts
from sae_lens.config.validation import derive_and_validate
from sae_lens.saes.config import TrainingSAEConfig
from sae_lens.training.features import features_as_dict


@remember_named_fields
@dataclass
class LanguageModelSAERunnerConfig(RunParts, RunFiles):
    """A run: which language model, hook, data and SAE, how to train, what to log, where to save.

    Attributes:
        model_name: the language model, by its name in TransformerLens or on the hub.
        model_class_name: HookedTransformer, HookedMamba or AutoModelForCausalLM.
        hook_name: the hook whose activations are learned.
        hook_eval: unused; kept so that older configurations still work.
        hook_layer: forward passes stop after this layer; read from hook_name when not given.
        hook_head_index: train on this head alone.
        dataset_path: the text or tokens: a name on the hub or a folder.
        dataset_trust_remote_code: allow the data set's own loading code where it needs it.
        streaming: read the data set while training instead of loading it first.
        is_dataset_tokenized: unused; whether the data are tokens is seen from the data.
        context_size: tokens per prompt.
        use_cached_activations: train on activations that were written to disk before.
        cached_activations_path: the folder with them; derived from data, model and hook.
        architecture: standard, gated, jumprelu, topk, or another registered architecture.
        d_in: width of the activations.
        d_sae: number of features; d_in times expansion_factor when not given.
        b_dec_init_method: geometric_median or mean of the first activations, or zeros.
        expansion_factor: features per dimension; 4 when neither it nor d_sae is given.
        activation_fn: relu, tanh-relu or topk; topk for topk SAEs, else relu.
        activation_fn_kwargs: its arguments; {"k": 100} for topk.
        normalize_sae_decoder: keep decoder rows at unit norm.
        noise_scale: standard deviation of noise added to pre-activations while training.
        from_pretrained_path: start from the trained SAE in this folder.
        apply_b_dec_to_input: subtract the decoder bias before encoding.
        decoder_orthogonal_init: start with an orthogonal decoder.
        decoder_heuristic_init: start with random decoder rows of one norm.
        init_encoder_as_decoder_transpose: start with the encoder as the decoder's transpose.
        n_batches_in_buffer: prompt batches that the shuffling buffer holds.
        training_tokens: tokens to train on.
        finetuning_tokens: tokens of the phase after that, in which only some parameters learn.
        store_batch_size_prompts: prompts per forward pass of the language model.
        train_batch_size_tokens: activations per training step.
        normalize_activations: none, expected_average_only_in, constant_norm_rescale, layer_norm or
            whitening.
        seqpos_slice: positions of a prompt that are used: arguments of slice().
        device: where the SAE is trained and the language model runs.
        act_store_device: where the shuffling buffer lives; with_model means device.
        seed: seed of everything random in the run.
        dtype: dtype of weights and activations.
        prepend_bos: begin prompts with a beginning-of-sequence token.
        jumprelu_init_threshold: threshold of a jumprelu SAE at the start.
        jumprelu_bandwidth: width of the window of its pseudo-gradient.
        autocast: train in bfloat16 where that is safe.
        autocast_lm: run the language model in bfloat16 where that is safe.
        compile_llm: compile the blocks of a TransformerLens model that run before the hook (any
            other model is compiled too, but gathers no faster; a warning says so).
        llm_compilation_mode: mode of that compilation.
        compile_sae: compile the training pass of the SAE.
        sae_compilation_mode: mode of that compilation.
        adam_beta1: Adam's decay of the gradient's mean.
        adam_beta2: Adam's decay of the gradient's square.
        mse_loss_normalization: None or dense_batch.
        l1_coefficient: weight of the sparsity term (of the L0 term for jumprelu).
        lp_norm: p of the p-norm in the sparsity term.
        scale_sparsity_penalty_by_decoder_norm: weigh features by their decoder norm in it.
        l1_warm_up_steps: steps over which the sparsity term grows to its full weight; of all steps,
            a float in [0, 1] is a share.
        lr: learning rate.
        lr_scheduler_name: constant, cosineannealing or cosineannealingwarmrestarts.
        lr_warm_up_steps: steps of linear warm-up of the learning rate, or a share likewise.
        lr_end: learning rate at the end of the cosine schedules; lr / 10 when not given.
        lr_decay_steps: last steps, in which the learning rate falls linearly to zero, or a share.
        n_restart_cycles: cycles of cosineannealingwarmrestarts.
        finetuning_method: what learns in that phase: scale, decoder or unrotated_decoder.
        use_ghost_grads: ghost gradients for dead features of a standard SAE.
        feature_sampling_window: steps over which firing densities are measured.
        dead_feature_window: steps of silence after which a feature counts as dead.
        dead_feature_threshold: firing density below which a feature is counted in the logs.
        n_eval_batches: batches per evaluation.
        eval_batch_size_prompts: prompts per evaluation batch; store_batch_size_prompts when None.
        log_to_wandb: log to Weights & Biases.
        log_activations_store_to_wandb: log the store's state with each checkpoint.
        log_optimizer_state_to_wandb: log the optimiser's state with each checkpoint.
        wandb_project: project of the run.
        wandb_id: id of the run, also the name of its checkpoint folder; random when None.
        run_name: name of the run; made from the settings when None.
        wandb_entity: user or team that owns the project.
        wandb_log_frequency: training steps between two logged steps.
        eval_every_n_wandb_logs: logged steps between two evaluations.
        resume: must stay False; see resume_from_checkpoint.
        n_checkpoints: checkpoints along the way, besides the final one.
        checkpoint_path: folder under which the run makes a folder of its own.
        verbose: log what the settings amount to, and show progress bars.
        model_kwargs: arguments of the language model's forward pass.
        model_from_pretrained_kwargs: arguments for loading the language model.
        sae_lens_version: version of the library that made the config.
        sae_lens_training_version: version of the library that trains.
        decoder_heuristic_init_norm: norm of the rows of decoder_heuristic_init.
        exclude_special_tokens: leave out activations of special tokens (true), or of these ids.
        hook_name_out: for transcoders: the hook whose activations are modelled from those of
            hook_name, such as blocks.0.hook_mlp_out.
        d_out: its width; that of hook_name when not given.
        sae: the SAE's config as one object, instead of the flat fields about it.
        logger: the logging settings as one object, instead of the flat fields about them.
        output_path: folder for the trained SAE in its inference form, with runner_cfg.json.
        save_final_checkpoint: the final checkpoint is always saved, whatever this says.
        resume_from_checkpoint: go on from this checkpoint folder, from the newest checkpoint of
            this run's folder, or from the "latest" under checkpoint_path (a new run begins when
            there is none).
        n_batches_for_norm_estimate: batches from which the mean norm of activations is estimated.
        activations_mixing_fraction: share of the buffer that stays for mixing; 0.5.
        llm_device: where the language model runs, if not on device.
        log_weights_to_wandb: log the SAE's weights with each checkpoint.
        log_to_jsonl: file to which everything logged is appended as JSON lines.
        sparse_kernels: training steps over active features only ("sparse"), over all ("dense"), or
            by the measured density ("auto"); the numbers are the same.
        prefetch_batches: training batches that a thread makes ahead; for a language model on a
            device of its own, or a GPU with room to spare. 0 makes each when it is needed.
        checkpoint_every_minutes: a checkpoint after so many minutes without one.
        keep_last: how many checkpoints along the way are kept, the newest; all when None.
        keep_best_metric: keep a checkpoint "best" of the evaluation in which this metric was best,
            such as model_performance_preservation/ce_loss_score.
        keep_best_mode: max or min, whichever is best.
        eval_dataset_path: other data for the evaluations during training, tokenised once. Without
            them and without eval_held_out_rows, evaluations read the training data from the start.
        eval_dataset_split: which split of it.
        eval_held_out_rows: so many rows at the dataset's start are kept from training and serve
            these evaluations instead.
        on_nan: when a loss is not finite: stop after a checkpoint, skip_batch, or rewind to the
            last checkpoint and go on with other data.
        loss_spike_factor: treat a loss above this many times its running mean likewise.
        auto_batch: when the language model runs out of memory, run its batches in halves; the
            batches that the SAE sees stay the same.
        features: further training features, as a `TrainingFeatures` or the dictionary of one.
    """

    model_name: str = "gelu-2l"
    model_class_name: str = "HookedTransformer"
    hook_name: str = "blocks.0.hook_mlp_out"
    hook_eval: str = "NOT_IN_USE"
    hook_layer: int = 0
    hook_head_index: int | None = None
    dataset_path: str = ""
    dataset_trust_remote_code: bool = True
    streaming: bool = True
    is_dataset_tokenized: bool = True
    context_size: int = 128
    use_cached_activations: bool = False
    cached_activations_path: str | None = None

    architecture: Literal["standard", "gated", "jumprelu", "topk"] | str = "standard"
    d_in: int = 512
    d_sae: int | None = None
    b_dec_init_method: str = "geometric_median"
    expansion_factor: int | None = None
    activation_fn: str = None  # type: ignore[assignment]
    activation_fn_kwargs: dict[str, Any] = None  # type: ignore[assignment]
    normalize_sae_decoder: bool = True
    noise_scale: float = 0.0
    from_pretrained_path: str | None = None
    apply_b_dec_to_input: bool = True
    decoder_orthogonal_init: bool = False
    decoder_heuristic_init: bool = False
    init_encoder_as_decoder_transpose: bool = False

    n_batches_in_buffer: int = 20
    training_tokens: int = 2_000_000
    finetuning_tokens: int = 0
    store_batch_size_prompts: int = 32
    train_batch_size_tokens: int = 4096
    normalize_activations: str = "none"
    seqpos_slice: tuple[int | None, ...] = (None,)

    device: str = "cpu"
    act_store_device: str = "with_model"
    seed: int = 42
    dtype: str = "float32"
    prepend_bos: bool = True

    jumprelu_init_threshold: float = 0.001
    jumprelu_bandwidth: float = 0.001

    autocast: bool = False
    autocast_lm: bool = False
    compile_llm: bool = False
    llm_compilation_mode: str | None = None
    compile_sae: bool = False
    sae_compilation_mode: str | None = None

    adam_beta1: float = 0
    adam_beta2: float = 0.999
    mse_loss_normalization: str | None = None
    l1_coefficient: float = 1e-3
    lp_norm: float = 1
    scale_sparsity_penalty_by_decoder_norm: bool = False
    l1_warm_up_steps: int | float = 0

    lr: float = 3e-4
    lr_scheduler_name: str = "constant"
    lr_warm_up_steps: int | float = 0
    lr_end: float | None = None
    lr_decay_steps: int | float = 0
    n_restart_cycles: int = 1

    finetuning_method: str | None = None
    use_ghost_grads: bool = False
    feature_sampling_window: int = 2000
    dead_feature_window: int = 1000
    dead_feature_threshold: float = 1e-8

    n_eval_batches: int = 10
    eval_batch_size_prompts: int | None = None

    log_to_wandb: bool = True
    log_activations_store_to_wandb: bool = False
    log_optimizer_state_to_wandb: bool = False
    wandb_project: str = "mats_sae_training_language_model"
    wandb_id: str | None = None
    run_name: str | None = None
    wandb_entity: str | None = None
    wandb_log_frequency: int = 10
    eval_every_n_wandb_logs: int = 100

    resume: bool = False
    n_checkpoints: int = 0
    checkpoint_path: str = "checkpoints"
    verbose: bool = True
    model_kwargs: dict[str, Any] = field(default_factory=dict)
    model_from_pretrained_kwargs: dict[str, Any] | None = None
    sae_lens_version: str = field(default_factory=lambda: __version__)
    sae_lens_training_version: str = field(default_factory=lambda: __version__)
    decoder_heuristic_init_norm: float = 0.1
    exclude_special_tokens: bool | list[int] = False

    hook_name_out: str | None = field(default=None, kw_only=True)
    d_out: int | None = field(default=None, kw_only=True)
    sae: TrainingSAEConfig | None = field(default=None, kw_only=True)
    logger: LoggingConfig | None = field(default=None, kw_only=True)
    output_path: str | None = field(default=None, kw_only=True)
    save_final_checkpoint: bool = field(default=True, kw_only=True)
    resume_from_checkpoint: str | None = field(default=None, kw_only=True)
    n_batches_for_norm_estimate: int = field(default=1000, kw_only=True)
    activations_mixing_fraction: float = field(default=0.5, kw_only=True)
    llm_device: str | None = field(default=None, kw_only=True)
    log_weights_to_wandb: bool = field(default=True, kw_only=True)
    log_to_jsonl: str | None = field(default=None, kw_only=True)
    sparse_kernels: str = field(default="auto", kw_only=True)
    prefetch_batches: int = field(default=0, kw_only=True)
    checkpoint_every_minutes: float | None = field(default=None, kw_only=True)
    keep_last: int | None = field(default=None, kw_only=True)
    keep_best_metric: str | None = field(default=None, kw_only=True)
    keep_best_mode: str = field(default="max", kw_only=True)
    eval_dataset_path: str | None = field(default=None, kw_only=True)
    eval_dataset_split: str = field(default="train", kw_only=True)
    eval_held_out_rows: int = field(default=0, kw_only=True)
    on_nan: str = field(default="stop", kw_only=True)
    loss_spike_factor: float | None = field(default=None, kw_only=True)
    auto_batch: bool = field(default=False, kw_only=True)
    features: dict[str, Any] | None = dict_field(None, kw_only=True)  # noqa: RUF009

    def __post_init__(self) -> None:
        named = named_fields(self)
        make_own_sae_config(self, named)
        take_nested(self, named)
        take_output_hook(self, named)
        self.features = features_as_dict(self.features)
        derive_and_validate(self, named)

    @property
    def total_training_tokens(self) -> int:
        """Tokens of training and fine-tuning."""
        return self.training_tokens + self.finetuning_tokens

    @property
    def total_training_steps(self) -> int:
        """Whole batches in the total."""
        return self.total_training_tokens // self.train_batch_size_tokens
