"""`Trainer`: its loop, losses, schedules, statistics, logs and checkpoints."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from sae_lens.lm_saes import SAEAdapter, Trainer, fold_dataset_norm
from sae_lens.saes import BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig, TrainingSAE
from tests.helpers import D_IN, D_SAE, activations, assert_close, randomize
from tests.lm_saes.helpers import HOOK, N_TOKENS, Recorder, batches, config, tiny_sae


def weights(sae: TrainingSAE) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in sae.state_dict().items()}


def test_attributes_at_the_start():
    trainer = Trainer(config())
    zeros = (
        "total_training_steps", "lr_warm_up_steps", "lr_cool_down_steps", "k_warmup_steps",
        "k_cold_booting_steps", "l1_coefficient_warmup_steps", "cur_step", "cur_tokens",
    )  # fmt: skip
    assert [getattr(trainer, name) for name in zeros] == [0] * len(zeros)
    for name in (
        "optimizer",
        "scheduler",
        "wandb_logger",
        "tokens_since_last_activation",
        "is_dead",
    ):
        assert getattr(trainer, name) is None
    assert trainer.checkpoint_thresholds == trainer.metrics == []


# -- the loop -------------------------------------------------------------------------------------


def test_the_budget_ends_training_without_another_batch():
    def stream():
        yield from batches(4)
        raise AssertionError("asked for a batch too many")

    trainer = Trainer(config(4))
    assert trainer.fit(tiny_sae(), stream()) is None
    assert (trainer.cur_step, trainer.cur_tokens) == (4, 4 * N_TOKENS)
    assert trainer.fit(tiny_sae(), stream()) is None


def test_a_stream_that_ends_first_gives_true_and_no_batch_is_lost():
    trainer = Trainer(config(10))
    assert trainer.fit(tiny_sae(), iter(batches(3))) is True
    assert trainer.cur_step == 3
    assert Trainer(config()).fit(tiny_sae(), []) is True


def test_masked_tokens_do_not_count():
    mask = torch.arange(N_TOKENS) % 4 != 0
    masked, dropped = tiny_sae(), tiny_sae()
    full = batches(5)
    a = Trainer(config(5, auxk_coefficient=0.1, dead_threshold=1))
    a.fit(masked, [{**batch, "mask": mask} for batch in full])
    short = [{"tokens": torch.zeros(N_TOKENS), HOOK: batch[HOOK][mask]} for batch in full]
    b = Trainer(config(5, auxk_coefficient=0.1, dead_threshold=1))
    b.fit(dropped, short)
    assert a.cur_tokens == b.cur_tokens == 5 * int(mask.sum())
    for name, value in weights(masked).items():
        assert_close(value, dropped.state_dict()[name])


def test_prompts_of_tokens_are_the_same_as_rows():
    rows, prompts = tiny_sae(), tiny_sae()
    Trainer(config(3)).fit(rows, batches(3))
    shaped = [
        {"tokens": b["tokens"].view(4, 8), HOOK: b[HOOK].view(4, 8, D_IN)} for b in batches(3)
    ]
    Trainer(config(3)).fit(prompts, shaped)
    assert torch.equal(rows.W_enc, prompts.W_enc)


def test_what_is_missing_is_named():
    with pytest.raises(ValueError, match=f"no activations of '{HOOK}'"):
        Trainer(config()).fit(tiny_sae(), [{"tokens": torch.zeros(4)}])
    with pytest.raises(ValueError, match="less than the 32 tokens of the first batch"):
        Trainer(config(total_training_tokens=31)).fit(tiny_sae(), batches(1))
    from tests.helpers import make_training_sae

    with pytest.raises(ValueError, match="'gated' cannot be trained here"):
        Trainer(config()).fit(make_training_sae("gated"), batches(1))


def test_evaluations_see_the_sae_in_evaluation_mode():
    modes = []
    sae = tiny_sae()
    Trainer(config(6, eval_frequency=2)).fit(sae, batches(6), lambda s: modes.append(s.training))
    assert modes == [False] * 3
    assert sae.training


def test_autocast_is_the_configured_dtype():
    seen = []
    sae = tiny_sae()
    sae.add_hook("hook_sae_acts_pre", lambda value, hook: seen.append(value.dtype))
    Trainer(config(1, amp_dtype="bfloat16")).fit(sae, batches(1))
    Trainer(config(1)).fit(sae, batches(1))
    # bias addition promotes, the product before it does not
    assert torch.is_autocast_enabled("cpu") is False
    assert len(seen) == 2


# -- losses ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["power", "tanh", "tanh-quad", None])
def test_the_sparsity_term(kind: Any):
    sae = tiny_sae(dtype="float64")
    randomize(sae)
    batch = {HOOK: activations(dtype=torch.float64)}
    parts = SAEAdapter(sae).compute_loss(
        batch, l1_coefficient=0.3, sparsity_loss_type=kind, p=2, frequency_scale=0.2
    )
    f = torch.relu((batch[HOOK] - sae.b_dec) @ sae.W_enc + sae.b_enc)
    s = f * sae.W_dec.norm(dim=-1)
    q = torch.tanh(4 * s).mean(0)
    want = {
        "power": s.norm(dim=-1).mean(),
        "tanh": torch.tanh(4 * s).sum(-1).mean(),
        "tanh-quad": (q * (1 + q / 0.2)).sum(),
    }
    rec = (f @ sae.W_dec + sae.b_dec - batch[HOOK]).pow(2).sum(-1).mean()
    assert_close(parts.l_rec, rec)
    if kind is None:
        assert parts.l_s is None
        assert_close(parts.loss, rec)
    else:
        assert_close(parts.l_s, 0.3 * want[kind])
        assert_close(parts.loss, rec + 0.3 * want[kind])


def test_a_term_of_the_l0_is_for_jumprelu_and_needs_a_target_to_lead_to():
    with pytest.raises(ValueError, match="trains thresholds, which a 'standard' SAE has not"):
        Trainer(config(sparsity_loss_type="step")).fit(tiny_sae(), batches(1))
    with pytest.raises(ValueError, match="leads to the target_l0 of the SAE's config"):
        Trainer(config(sparsity_loss_type="quadratic")).fit(tiny_sae("jumprelu"), batches(1))


def test_the_lp_term_is_for_jumprelu():
    sae = tiny_sae("jumprelu")
    randomize(sae)
    x = activations()
    parts = SAEAdapter(sae).compute_loss({HOOK: x}, lp_coefficient=0.5)
    hidden = (x - sae.b_dec) @ sae.W_enc + sae.b_enc
    want = (torch.relu(sae.threshold - hidden) * sae.W_dec.norm(dim=-1)).sum(-1).mean()
    assert_close(parts.l_p, 0.5 * want)
    assert SAEAdapter(tiny_sae()).compute_loss({HOOK: x}, lp_coefficient=0.5).l_p is None


@pytest.mark.parametrize("architecture", ["standard", "topk", "jumprelu"])
def test_only_dead_features_learn_from_aux_k(architecture: str):
    sae = tiny_sae(architecture, dtype="float64")
    randomize(sae)
    x, dead = activations(dtype=torch.float64), torch.arange(D_SAE) % 3 == 0
    adapter = SAEAdapter(sae)
    parts = adapter.compute_loss({HOOK: x}, auxk_coefficient=0.5, k_aux=5, is_dead=dead)
    hidden = (x - sae.b_dec) @ sae.W_enc + sae.b_enc
    rank = (hidden * sae.W_dec.norm(dim=-1)).masked_fill(~dead, -torch.inf)
    kept = rank >= rank.topk(5, dim=-1).values[:, -1:]
    recons = (torch.relu(hidden) * kept) @ sae.W_dec
    residual = (x - parts.reconstruction).detach()
    want = 0.5 * (residual - recons).pow(2).sum(-1).mean()
    assert_close(parts.l_aux, want)
    parameters = [sae.W_enc, sae.W_dec, sae.b_enc, sae.b_dec]
    exact = torch.autograd.grad(want, parameters, retain_graph=True)
    for mine, theirs in zip(torch.autograd.grad(parts.l_aux, parameters), exact, strict=True):
        assert_close(mine, theirs)
    for by_feature in (exact[0].T, exact[1], exact[2]):
        assert by_feature[dead].any()
        assert not by_feature[~dead].any()
    none = adapter.compute_loss({HOOK: x}, auxk_coefficient=0.5, is_dead=torch.zeros_like(dead))
    assert none.l_aux == 0


def test_batchtopk_moves_its_threshold():
    cfg = BatchTopKTrainingSAEConfig(d_in=D_IN, d_sae=D_SAE, hook_name=HOOK, k=4)
    sae = BatchTopKTrainingSAE(cfg)
    Trainer(config(3)).fit(sae, batches(3))
    assert sae.topk_threshold > 0


# -- schedules ------------------------------------------------------------------------------------


def test_the_coefficient_warms_up_from_zero():
    trainer = Trainer(config(10, l1_coefficient_warmup_steps=0.4))
    seen = []
    real = trainer._training_step
    trainer._training_step = lambda *a: seen.append(trainer.current_l1_coefficient) or real(*a)  # type: ignore[method-assign]
    trainer.fit(tiny_sae(), batches(10))
    assert seen == pytest.approx([0, 0.0025, 0.005, 0.0075] + [0.01] * 6)
    for fields in ({"l1_coefficient_warmup_steps": 0}, {"l1_coefficient": None}):
        trainer = Trainer(config(**fields))
        assert trainer.current_l1_coefficient == (0.01 if "l1_coefficient" not in fields else 1.0)


def test_k_falls_to_that_of_the_sae():
    sae, seen = tiny_sae("topk"), []
    cfg = config(8, initial_k=12, k_warmup_steps=0.5, k_cold_booting_steps=2)
    trainer = Trainer(cfg)
    sae.add_hook(
        "hook_sae_acts_post", lambda value, hook: seen.append(int((value != 0).sum(-1).max()))
    )
    trainer.fit(sae, batches(8))
    assert seen == [12, 12, 12, 10, 8, 6, 4, 4]
    assert sae.activation_fn.k == 4
    with pytest.raises(ValueError, match="initial_k is 2; it must lie between the SAE's k, 4,"):
        Trainer(config(initial_k=2)).fit(tiny_sae("topk"), batches(1))


def test_learning_rates_of_the_two_groups():
    sae = tiny_sae("jumprelu")
    cfg = config(8, lr=0.1, jumprelu_lr_factor=0.5, lr_warm_up_steps=4, lr_cool_down_steps=2)
    trainer, log = Trainer(cfg), Recorder()
    trainer.fit(sae, batches(4), wandb_logger=log)
    groups = {group["name"]: group for group in trainer.optimizer.param_groups}
    assert [len(group["params"]) for group in groups.values()] == [4, 1]
    assert groups["jumprelu"]["lr"] == pytest.approx(0.5 * groups["others"]["lr"])
    rates = [values["details/current_learning_rate"] for _, values in log.logged]
    assert rates == pytest.approx([0.05, 0.1])


# -- gradients ------------------------------------------------------------------------------------


def test_clipping_is_by_the_norm_per_root_of_entries_and_leaves_thresholds_out():
    sae = tiny_sae("jumprelu")
    trainer = Trainer(config(clip_grad_norm=0.5))
    adapter = SAEAdapter(sae)
    for parameter in sae.parameters():
        parameter.grad = torch.full_like(parameter, 3.0)
    sae.W_dec.grad[1:] = 0
    assert float(trainer._clip_if_due(adapter)) == pytest.approx(3.0)
    assert_close(sae.W_enc.grad, torch.full_like(sae.W_enc, 0.5), atol=1e-4)
    assert (sae.threshold.grad == 3).all()
    assert float(trainer._clip_if_due(adapter)) == pytest.approx(0.5, rel=1e-3)


def test_accumulated_batches_are_one_larger_batch():
    one, four = tiny_sae(), tiny_sae()
    parts = batches(4)
    whole = {"tokens": torch.zeros(4 * N_TOKENS), HOOK: torch.cat([b[HOOK] for b in parts])}
    Trainer(config(4)).fit(one, [whole])
    Trainer(config(4, gradient_accumulation_steps=4)).fit(four, parts)
    for name, value in weights(one).items():
        assert_close(four.state_dict()[name], value)
    assert not torch.equal(tiny_sae().W_enc, four.W_enc)


def test_batches_left_over_from_an_accumulation_count():
    sae = tiny_sae()
    before = sae.W_enc.detach().clone()
    Trainer(config(8, gradient_accumulation_steps=4)).fit(sae, batches(2))
    assert not torch.equal(before, sae.W_enc)
    assert sae.W_enc.grad is None


def test_sparse_adam_is_used():
    trainer = Trainer(config(2, optimizer_class="sparseadam"))
    trainer.fit(tiny_sae("topk"), batches(2))
    assert type(trainer.optimizer).__name__ == "SparseAdam"


# -- dead features --------------------------------------------------------------------------------


def test_dead_statistics_by_hand():
    trainer = Trainer(config(auxk_coefficient=0.1, dead_threshold=5))
    with pytest.raises(ValueError, match="not initialised"):
        trainer.update_dead_statistics(torch.zeros(2, 3), None, ("batch", "sae"))
    trainer.tokens_since_last_activation = torch.zeros(3, dtype=torch.int64)
    trainer.is_dead = torch.zeros(3, dtype=torch.bool)
    acts = torch.tensor([[1.0, 0, 0], [0, 2.0, 0]])
    dead = trainer.update_dead_statistics(acts, torch.tensor([1, 0]), ("batch", "sae"))
    assert trainer.tokens_since_last_activation.tolist() == [0, 1, 1]
    assert not dead.any()
    prompts = torch.stack([acts, acts, acts])
    dead = trainer.update_dead_statistics(prompts, None, ("batch", "context", "sae"))
    assert trainer.tokens_since_last_activation.tolist() == [0, 0, 7]
    assert dead.tolist() == [False, False, True]
    assert trainer.is_dead is dead
    with pytest.raises(ValueError, match="must name each"):
        trainer.update_dead_statistics(acts, None, ("batch", "context", "sae"))


def test_dead_statistics_are_kept_with_aux_k_only():
    trainer = Trainer(config(2, auxk_coefficient=0.1, dead_threshold=N_TOKENS))
    trainer.fit(tiny_sae("topk", k=1), batches(2))
    assert trainer.tokens_since_last_activation.dtype == torch.int64
    assert trainer.is_dead.any()
    trainer = Trainer(config(2))
    trainer.fit(tiny_sae("topk"), batches(2))
    assert trainer.is_dead is None


# -- logs -----------------------------------------------------------------------------------------

LOGGED = {
    "losses/overall_loss", "losses/mse_loss", "losses/sparsity_loss", "losses/lp_loss",
    "losses/aux_loss", "sparsity/above_1e-1", "sparsity/above_1e-2", "sparsity/below_1e-5",
    "sparsity/below_1e-6", "sparsity/below_1e-7", "metrics/mean_feature_act",
    "metrics/explained_variance", "metrics/explained_variance_legacy", "metrics/l0",
    "metrics/l2_norm_error", "metrics/l2_norm_error_ratio", "metrics/gradient_norm_per_param",
    "metrics/gradient_norm_before_clipping", "metrics/encoder_norm", "metrics/decoder_norm",
    "metrics/decoder_bias_norm", "metrics/mean_jumprelu_threshold",
    "details/current_learning_rate", "details/n_training_tokens", "details/l1_coefficient",
    "details/lp_coefficient", "details/auxk_coefficient",
}  # fmt: skip


def test_names_and_steps_of_what_is_logged():
    log = Recorder()
    cfg = config(6, lp_coefficient=0.1, auxk_coefficient=0.1, clip_grad_norm=1e-4)
    Trainer(cfg).fit(tiny_sae("jumprelu"), batches(6), wandb_logger=log)
    assert [step for step, _ in log.logged] == [2, 4, 6]
    values = log.logged[0][1]
    assert set(values) == LOGGED
    assert values["details/n_training_tokens"] == N_TOKENS
    assert values["metrics/gradient_norm_per_param"] == pytest.approx(1e-4)
    assert values["metrics/gradient_norm_before_clipping"] > 1e-4
    log = Recorder()
    Trainer(config(2)).fit(tiny_sae("topk"), batches(2), wandb_logger=log)
    assert log.logged[0][1]["sparsity/k"] == 4
    assert log.logged[0][1]["metrics/l0"] == pytest.approx(4)
    assert "losses/lp_loss" not in log.logged[0][1]


def test_logged_values_are_means_over_the_steps_since_the_last_log():
    log, sae = Recorder(), tiny_sae()
    data = batches(4)
    with torch.no_grad():
        recs = []
        for batch in data[2:]:
            recs.append(SAEAdapter(sae).compute_loss(batch).l_rec.item())
        error = [(sae(b[HOOK]) - b[HOOK]).pow(2).sum(-1) for b in data[2:]]
        spread = [(b[HOOK] - b[HOOK].mean(0)).pow(2).sum(-1) for b in data[2:]]
    Trainer(config(4, lr=0.0)).fit(sae, data, wandb_logger=log)
    values = log.logged[1][1]
    assert values["losses/mse_loss"] == pytest.approx(sum(recs) / 2, rel=1e-4)
    want = 1 - torch.cat(error).mean() / torch.cat(spread).mean()
    assert values["metrics/explained_variance"] == pytest.approx(float(want), rel=1e-4)
    legacy = (1 - torch.cat(error) / torch.cat(spread)).mean()
    assert values["metrics/explained_variance_legacy"] == pytest.approx(float(legacy), rel=1e-4)


def test_metrics_may_be_skipped_and_go_to_the_log_without_a_run(caplog: Any):
    log = Recorder()
    Trainer(config(4, skip_metrics_calculation=True)).fit(tiny_sae(), batches(4), wandb_logger=log)
    assert log.logged == []
    with caplog.at_level("INFO", logger="sae_lens.lm_saes.trainer_reports"):
        Trainer(config(2)).fit(tiny_sae(), batches(2))
    assert "losses/overall_loss" in caplog.text


# -- checkpoints ----------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["log", "linear"])
def test_checkpoints_along_the_way_work_on_raw_activations(mode: Any, tmp_path: Path):
    sae = tiny_sae(normalize_activations="expected_average_only_in")
    SAEAdapter(sae).set_dataset_average_activation_norm({HOOK: 2.0})
    cfg = config(
        16, n_checkpoints=4, check_point_save_mode=mode, exp_result_path=str(tmp_path / "r")
    )
    Trainer(cfg).fit(sae, batches(8))
    names = sorted(int(path.stem) for path in (tmp_path / "r" / "checkpoints").iterdir())
    assert names == {"log": [2, 4, 8], "linear": [4, 8]}[mode]
    folded = fold_dataset_norm(sae)
    saved = load_file(tmp_path / "r" / "checkpoints" / "8.safetensors")
    for name, value in folded.state_dict().items():
        assert_close(saved[name], value)
    x, factor = activations(), D_IN**0.5 / 2.0
    assert_close(folded(x), sae(x * factor) / factor)


@pytest.mark.parametrize("architecture", ["standard", "topk", "jumprelu"])
@pytest.mark.parametrize("optimizer", ["adam", "sparseadam"])
def test_a_run_goes_on_from_a_checkpoint_as_if_nothing_happened(
    architecture: str, optimizer: Any, tmp_path: Path
):
    fields: dict[str, Any] = {
        "optimizer_class": optimizer,
        "auxk_coefficient": 0.1,
        "dead_threshold": 3 * N_TOKENS,
        "lr_warm_up_steps": 0.5,
        "lr_cool_down_steps": 3,
        "l1_coefficient_warmup_steps": 0.7,
        "lr": {"others": 1e-2, "jumprelu": 1e-3},
        "amp_dtype": "bfloat16" if architecture == "standard" else None,
    }
    if architecture == "topk":
        fields |= {"initial_k": 9, "k_warmup_steps": 0.8}
    data = batches(10)
    whole = tiny_sae(architecture)
    Trainer(config(10, **fields)).fit(whole, data)

    first = tiny_sae(architecture)
    trainer = Trainer(config(10, **fields))
    trainer.fit(first, data[:5], wandb_logger=Recorder())
    folder = trainer.save_checkpoint(first, tmp_path)
    assert folder == tmp_path / "checkpoints" / "step_5"
    assert sorted(path.name for path in folder.iterdir()) == [
        "config.json", "optimizer.pt", "sae_weights.safetensors", "scheduler.pt", "trainer.pt",
        "wandb_run_id.json",
    ]  # fmt: skip
    assert json.loads((folder / "wandb_run_id.json").read_text()) == {"wandb_run_id": "run-7"}

    again = tiny_sae(architecture, seed=5)
    resumed = Trainer.from_checkpoint(again, folder, load_weights=True)
    assert (resumed.cur_step, resumed.cur_tokens) == (5, 5 * N_TOKENS)
    assert resumed.cfg.from_pretrained_path == str(folder)
    assert resumed.cfg.amp_dtype == trainer.cfg.amp_dtype
    assert torch.equal(resumed.is_dead, trainer.is_dead)
    assert resumed.fit(again, data[5:]) is None
    for name, value in weights(whole).items():
        assert torch.equal(again.state_dict()[name], value), name


def test_checkpoints_are_plain_data(tmp_path: Path):
    sae = tiny_sae()
    trainer = Trainer(config(2))
    trainer.fit(sae, batches(1))
    folder = trainer.save_checkpoint(sae, tmp_path)
    assert not (folder / "wandb_run_id.json").exists()
    for name in ("trainer.pt", "optimizer.pt", "scheduler.pt"):
        torch.load(folder / name, weights_only=True)
    state = torch.load(folder / "trainer.pt", weights_only=True)
    assert state["cfg"]["total_training_tokens"] == 2 * N_TOKENS
    with pytest.raises(ValueError, match=r"no trainer\.pt"):
        Trainer.from_checkpoint(sae, tmp_path)
    torch.save({"cur_step": 1}, folder / "trainer.pt")
    with pytest.raises(ValueError, match="holds no config"):
        Trainer.from_checkpoint(sae, folder)
