"""Evaluations: reference numbers, closed-form cases, masks, kinds of hooks and models, files."""

import argparse
import json
import math
import subprocess
from dataclasses import asdict, fields, replace
from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from transformer_lens import HookedTransformerConfig

from sae_lens import evals
from sae_lens.activations.datasets_loading import split_held_out
from sae_lens.activations.model_loading import HookedProxyLM
from sae_lens.activations.store import ActivationsStore
from sae_lens.analysis import eval_config, interventions, targets
from sae_lens.analysis.hooked_sae_transformer import HookedSAETransformer
from sae_lens.evals import (
    EvalConfig,
    evaluate_sae,
    get_downstream_reconstruction_metrics,
    get_eval_everything_config,
    get_featurewise_weight_based_metrics,
    get_recons_loss,
    get_saes_from_regex,
    get_sparsity_and_variance_metrics,
    multiple_evals,
    process_results,
    replace_nans_with_negative_one,
    run_evals,
    run_evaluations,
)
from sae_lens.held_out_evaluation import HeldOutEvaluator
from sae_lens.saes import SAE, SAEConfig
from tests.helpers import (
    ARCHITECTURES,
    D_IN,
    golden_cases,
    load_golden,
    make_sae,
    make_training_sae,
    tensors_under,
    tiny_model,
)

CONTEXT = 8
RESID = "blocks.1.hook_resid_pre"
SWITCHES = [f.name for f in fields(EvalConfig) if f.name.startswith("compute_")]


@pytest.fixture(scope="module")
def model():
    return tiny_model()


def token_rows(n_rows=12, context=CONTEXT, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(2, 32, (n_rows, context), generator=generator)


def make_store(model, sae, rows=None, **kwargs):
    rows = token_rows() if rows is None else rows
    settings = {"context_size": rows.shape[1], "streaming": False, "store_batch_size_prompts": 3}
    return ActivationsStore.from_sae(
        model, sae, dataset=Dataset.from_dict({"tokens": rows.tolist()}), **{**settings, **kwargs}
    )


def special_sae(kind, mean=None, hook_name=RESID, d_in=D_IN, **fields):
    """An SAE that reconstructs perfectly, as zero, or as a given mean."""
    sae = make_sae(hook_name=hook_name, d_in=d_in, d_sae=2 * d_in, **fields)
    eye = torch.eye(d_in)
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter.zero_()
        sae.W_enc.copy_(torch.cat([eye, -eye], dim=1))
        if kind == "perfect":
            sae.W_dec.copy_(torch.cat([eye, -eye]))
        elif kind == "mean":
            sae.b_dec.copy_(mean)
            sae.cfg.apply_b_dec_to_input = False
    return sae


def everything(**kwargs):
    return replace(
        get_eval_everything_config(
            batch_size_prompts=3,
            n_eval_reconstruction_batches=4,
            n_eval_sparsity_variance_batches=4,
        ),
        **kwargs,
    )


@pytest.mark.parametrize("path", golden_cases("evals"), ids=lambda p: p.stem)
def test_goldens(path):
    case, tensors = load_golden(path)
    model = HookedSAETransformer(HookedTransformerConfig(**case["model"])).eval()
    model.load_state_dict(tensors_under(tensors, "model/"), strict=False)
    sae = SAE(SAEConfig.from_dict(case["sae"])).eval()
    sae.load_state_dict(tensors_under(tensors, "w/"))
    store = make_store(model, sae, tensors["in/rows"])
    n = case["n_batches"]
    metrics, features = run_evals(
        sae, store, model, get_eval_everything_config(case["batch_size_prompts"], n, n)
    )
    # the reference did not rewind between its two parts: only the first part and the weights agree
    for group in ("model_behavior_preservation", "model_performance_preservation"):
        for name, value in case["metrics"][group].items():
            assert metrics[group][name] == pytest.approx(value, rel=2e-3, abs=1e-4), name
    assert metrics["token_stats"] == case["metrics"]["token_stats"]
    for name in ("encoder_bias", "encoder_norm", "encoder_decoder_cosine_sim"):
        if name in case.get("feature_metrics", {}):
            assert features[name] == pytest.approx(
                case["feature_metrics"][name], rel=1e-3, abs=1e-4
            )
    for group, values in case["metrics"].items():
        assert values.keys() <= metrics[group].keys()


def test_a_perfect_reconstruction_changes_nothing(model):
    sae = special_sae("perfect")
    metrics, _ = run_evals(sae, make_store(model, sae), model, everything())
    behaviour, performance = (
        metrics["model_behavior_preservation"],
        metrics["model_performance_preservation"],
    )
    assert behaviour["kl_div_with_sae"] == pytest.approx(0, abs=1e-9)
    assert behaviour["kl_div_with_ablation"] > 1e-4
    assert behaviour["kl_div_score"] == pytest.approx(1.0)
    assert performance["ce_loss_with_sae"] == pytest.approx(performance["ce_loss_without_sae"])
    assert performance["ce_loss_score"] == pytest.approx(1.0, abs=1e-3)
    quality = metrics["reconstruction_quality"]
    assert quality["explained_variance"] == pytest.approx(1.0)
    assert quality["explained_variance_legacy"] == pytest.approx(1.0)
    assert quality["mse_per_token"] == pytest.approx(0.0, abs=1e-9)
    assert quality["cossim"] == pytest.approx(1.0)
    assert metrics["shrinkage"]["l2_ratio"] == pytest.approx(1.0)
    assert metrics["shrinkage"]["relative_reconstruction_bias"] == pytest.approx(1.0)
    assert metrics["sparsity"]["l0"] == pytest.approx(D_IN)


def test_a_zero_reconstruction_is_as_bad_as_zeroing(model):
    sae = special_sae("zero")
    metrics, _ = run_evals(sae, make_store(model, sae), model, everything())
    assert metrics["model_behavior_preservation"]["kl_div_score"] == pytest.approx(0.0)
    assert metrics["model_performance_preservation"]["ce_loss_score"] == pytest.approx(0.0)
    assert metrics["shrinkage"]["l2_norm_out"] == 0.0
    assert metrics["reconstruction_quality"]["cossim"] == 0.0


def test_a_mean_reconstruction_explains_nothing(model):
    rows = token_rows()
    with torch.no_grad():
        _, cache = model.run_with_cache(rows)
    sae = special_sae("mean", cache[RESID].mean(dim=(0, 1)))
    metrics, _ = run_evals(sae, make_store(model, sae, rows), model, everything())
    assert metrics["reconstruction_quality"]["explained_variance"] == pytest.approx(0, abs=1e-5)
    assert metrics["model_behavior_preservation"]["kl_div_score"] < 1


def direct_losses(model, rows, fwd_hooks):
    with torch.no_grad():
        logits, loss = model.run_with_hooks(
            rows, return_type="both", loss_per_token=True, fwd_hooks=fwd_hooks
        )
    return logits.log_softmax(-1), loss


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_reconstruction_losses_against_whole_forward_passes(model, architecture, monkeypatch):
    sae = make_sae(architecture, hook_name=RESID)
    rows = token_rows(4)
    monkeypatch.setattr("sae_lens.analysis.metrics.LOGITS_BLOCK_ELEMENTS", 100)
    losses = get_recons_loss(sae, model, rows, make_store(model, sae), True, True)

    plain, plain_loss = direct_losses(model, rows, [])
    with_sae, sae_loss = direct_losses(model, rows, [(RESID, lambda x, hook: sae(x))])
    zeroed, zero_loss = direct_losses(model, rows, [(RESID, lambda x, hook: x * 0)])
    close = torch.testing.assert_close
    close(losses["ce_loss_without_sae"], plain_loss)
    close(losses["ce_loss_with_sae"], sae_loss)
    close(losses["ce_loss_with_ablation"], zero_loss)
    for name, other in (("with_sae", with_sae), ("with_ablation", zeroed)):
        expected = (plain.exp() * (plain - other)).sum(-1)
        close(losses[f"kl_div_{name}"], expected, atol=1e-5, rtol=1e-3)


def test_only_what_is_asked_for_is_computed(model):
    sae = make_sae(hook_name=RESID)
    store = make_store(model, sae)
    assert set(get_recons_loss(sae, model, token_rows(2), store, True, False)) == {
        "kl_div_with_sae",
        "kl_div_with_ablation",
    }
    result = run_evals(sae, store, model)
    assert result.metrics == {
        "token_stats": {
            "total_tokens_eval_reconstruction": CONTEXT * 3 * 10,
            "total_tokens_eval_sparsity_variance": CONTEXT * 3,
        }
    }
    assert result.feature_metrics == {}
    metrics, features = run_evals(sae, store, model, EvalConfig(compute_sparsity_metrics=True))
    assert set(metrics) == {"sparsity", "token_stats"}
    assert set(metrics["sparsity"]) == {"l0", "l1"}
    assert features == {}


def test_everything_switches_everything_on(model):
    config = get_eval_everything_config(batch_size_prompts=5)
    assert all(getattr(config, name) for name in SWITCHES)
    assert (config.batch_size_prompts, config.n_eval_reconstruction_batches) == (5, 10)
    sae = make_sae(hook_name=RESID)
    metrics, features = run_evals(sae, make_store(model, sae), model, everything())
    assert set(metrics) == {
        "model_behavior_preservation",
        "model_performance_preservation",
        "reconstruction_quality",
        "shrinkage",
        "sparsity",
        "token_stats",
    }
    assert set(features) == {
        "feature_density",
        "consistent_activation_heuristic",
        "encoder_bias",
        "encoder_norm",
        "encoder_decoder_cosine_sim",
    }
    assert all(len(values) == 48 for values in features.values())


def test_densities_alone_are_computed(model):
    sae = make_sae(hook_name=RESID)
    config = EvalConfig(compute_featurewise_density_statistics=True)
    metrics, features = run_evals(sae, make_store(model, sae), model, config)
    assert set(metrics) == {"token_stats"}
    with torch.no_grad():
        _, cache = model.run_with_cache(token_rows()[:3])
        fired = sae.encode(cache[RESID]) > 0
    assert features["feature_density"] == pytest.approx(fired.double().mean(dim=(0, 1)).tolist())
    expected = fired.sum(1).sum(0) / fired.any(1).sum(0)
    assert features["consistent_activation_heuristic"] == pytest.approx(
        expected.tolist(), nan_ok=True
    )


def test_misc_metrics(model):
    sae = make_sae(hook_name=RESID)
    config = EvalConfig(include_misc_metrics=True)
    metrics, features = run_evals(sae, make_store(model, sae), model, config)
    assert set(metrics["misc_metrics"]) == {
        "frac_alive",
        "freq_over_1_percent",
        "freq_over_10_percent",
        "normalized_freq_over_1_percent",
        "normalized_freq_over_10_percent",
        "average_max_decoder_cosine_sim",
        "average_max_encoder_cosine_sim",
    }
    assert set(features) == {"max_decoder_cosine_sim", "max_encoder_cosine_sim"}
    unit = sae.W_dec / sae.W_dec.norm(dim=-1, keepdim=True)
    similarity = unit @ unit.T - 3 * torch.eye(48)
    assert metrics["misc_metrics"]["average_max_decoder_cosine_sim"] == pytest.approx(
        similarity.max(-1).values.mean().item(), rel=1e-5
    )


@pytest.mark.parametrize("part", ["reconstruction", "sparsity_variance"])
@pytest.mark.parametrize("n_batches", [0, -1])
def test_a_requested_part_needs_batches(model, part, n_batches):
    sae = make_sae(hook_name=RESID)
    config = replace(
        EvalConfig(compute_kl=True, compute_l2_norms=True), **{f"n_eval_{part}_batches": n_batches}
    )
    for error in (ValueError, AssertionError):
        with pytest.raises(error, match=f"n_eval_{part}_batches is {n_batches}"):
            run_evals(sae, make_store(model, sae), model, config)


def test_an_evaluation_over_zero_tokens_is_an_error(model):
    sae = make_sae(hook_name=RESID)
    for config in (EvalConfig(compute_ce_loss=True), EvalConfig(compute_sparsity_metrics=True)):
        with pytest.raises(ValueError, match="zero tokens"):
            run_evals(sae, make_store(model, sae), model, config, ignore_tokens=set(range(32)))


def test_a_batch_larger_than_the_dataset_is_an_error(model):
    sae = make_sae(hook_name=RESID)
    store = make_store(model, sae, token_rows(4))
    with pytest.raises(ValueError, match=r"5 prompts.*only 4 rows"):
        run_evals(sae, store, model, EvalConfig(batch_size_prompts=5, compute_l2_norms=True))


# Each row holds different tokens, so a mask that slips by one position is noticed.
@settings(max_examples=8, deadline=None)
@given(
    first=st.integers(1, 12),
    second=st.integers(1, 12),
    ignored=st.sets(st.integers(0, 31), max_size=9),
)
def test_results_do_not_depend_on_batch_size(first, second, ignored):
    model, rows = tiny_model(), token_rows(12)
    sae = make_sae("topk", hook_name=RESID)
    config = replace(get_eval_everything_config(), include_misc_metrics=True)

    def evaluate(batch_size):
        evaluator = HeldOutEvaluator(
            rows, model, config, batch_size_prompts=batch_size, ignore_tokens=ignored
        )
        return evaluator.evaluate(sae)

    (metrics_a, features_a), (metrics_b, features_b) = evaluate(first), evaluate(second)
    for group, values in metrics_a.items():
        for name, value in values.items():
            if name in ("mse", "explained_variance_legacy"):
                continue  # defined by the batch
            assert value == pytest.approx(metrics_b[group][name], rel=2e-4, nan_ok=True), name
    for name, values in features_a.items():
        assert values == pytest.approx(features_b[name], rel=1e-5, nan_ok=True), name


def test_ignored_tokens_keep_their_activation_and_do_not_count(model):
    rows = token_rows(3)
    rows[:, 2] = 1
    sae = special_sae("zero")
    store = make_store(model, sae, rows)
    losses = get_recons_loss(sae, model, rows, store, True, True, ignore_tokens={1, None})
    kept = rows != 1

    def zero_kept(x, hook):
        return torch.where(kept[..., None], torch.zeros_like(x), x)

    plain, _ = direct_losses(model, rows, [])
    changed, changed_loss = direct_losses(model, rows, [(RESID, zero_kept)])
    torch.testing.assert_close(losses["ce_loss_with_sae"], changed_loss)
    # the baseline of the scores spares no token
    _, zeroed_loss = direct_losses(model, rows, [(RESID, lambda x, hook: torch.zeros_like(x))])
    torch.testing.assert_close(losses["ce_loss_with_ablation"], zeroed_loss)

    downstream = get_downstream_reconstruction_metrics(
        sae, model, store, True, True, 1, 3, ignore_tokens={1, None}
    )
    expected = (plain.exp() * (plain - changed)).sum(-1)[kept].mean().item()
    assert downstream["kl_div_with_sae"] == pytest.approx(expected, rel=1e-3)
    assert downstream["ce_loss_with_sae"] == pytest.approx(
        changed_loss[kept[:, :-1]].mean().item(), rel=1e-5
    )

    numbers, features = get_sparsity_and_variance_metrics(
        special_sae("perfect"), model, make_store(model, sae, rows), 1,
        True, True, True, True, 3, {}, ignore_tokens={1, None},
    )  # fmt: skip
    with torch.no_grad():
        _, cache = model.run_with_cache(rows)
    x = cache[RESID][kept]
    assert numbers["l2_norm_in"] == pytest.approx(x.norm(dim=-1).mean().item(), rel=1e-5)
    assert features["feature_density"][:D_IN] == pytest.approx(
        (x > 0).double().mean(0).tolist(), rel=1e-6
    )


@pytest.mark.parametrize("source", ["store", "metadata list", "metadata true"])
def test_tokens_the_sae_was_trained_without_are_left_out(model, source, monkeypatch):
    rows = token_rows(3)
    sae = make_sae(hook_name=RESID)
    reference = make_store(model, sae, rows)
    config = EvalConfig(compute_ce_loss=True, compute_variance_metrics=True,
                        n_eval_reconstruction_batches=1)  # fmt: skip
    ids = {int(rows[0, 0]), int(rows[1, 3])}
    expected, _ = run_evals(sae, reference, model, config, ignore_tokens=ids)
    everything, _ = run_evals(sae, reference, model, config)
    assert expected != everything

    store = make_store(model, sae, rows)
    if source == "store":
        store.exclude_special_tokens = torch.tensor(sorted(ids))
    elif source == "metadata list":
        sae.cfg.metadata.exclude_special_tokens = sorted(ids)
    else:
        sae.cfg.metadata.exclude_special_tokens = True
        monkeypatch.setattr("sae_lens.analysis.eval_tokens.special_token_ids", lambda t: ids)
        monkeypatch.setattr(model, "tokenizer", SimpleNamespace(padding_side="right"))
    assert run_evals(sae, store, model, config).metrics == expected


def test_positions_outside_of_the_slice_are_left_alone(model):
    rows = token_rows(3)
    sae = make_sae(hook_name=RESID, seqpos_slice=(2, 5))
    store = make_store(model, sae, rows)
    numbers, _ = get_sparsity_and_variance_metrics(
        sae, model, store, 1, True, True, True, True, 3, {}
    )
    with torch.no_grad():
        _, cache = model.run_with_cache(rows)
        x = cache[RESID][:, 2:5]
        assert numbers["l0"] == pytest.approx((sae.encode(x) > 0).sum(-1).double().mean().item())
    assert numbers["l2_norm_in"] == pytest.approx(x.norm(dim=-1).mean().item(), rel=1e-5)
    losses = get_recons_loss(sae, model, rows, store, True, False)
    assert losses["kl_div_with_sae"][:, :2].abs().max() < 1e-9
    assert losses["kl_div_with_sae"][:, 2:].abs().min() > 1e-9


HEAD_HOOKS = [f"blocks.1.attn.hook_{kind}" for kind in "qkvz"]


@pytest.mark.parametrize("hook_name", HEAD_HOOKS)
def test_flattened_heads(model, hook_name):
    sae = make_sae(hook_name=hook_name)
    rows = token_rows(3)
    losses = get_recons_loss(sae, model, rows, make_store(model, sae, rows), False, True)

    def replace_heads(x, hook):
        return sae(x.flatten(2)).reshape(x.shape)

    _, expected = direct_losses(model, rows, [(hook_name, replace_heads)])
    torch.testing.assert_close(losses["ce_loss_with_sae"], expected)
    _, zeroed = direct_losses(model, rows, [(hook_name, lambda x, hook: x * 0)])
    torch.testing.assert_close(losses["ce_loss_with_ablation"], zeroed)
    numbers, _ = get_sparsity_and_variance_metrics(
        sae, model, make_store(model, sae, rows), 1, True, True, True, False, 3, {}
    )
    with torch.no_grad():
        _, cache = model.run_with_cache(rows)
    expected_norm = cache[hook_name].flatten(2).norm(dim=-1).mean().item()
    assert numbers["l2_norm_in"] == pytest.approx(expected_norm, rel=1e-5)


@pytest.mark.parametrize("hook_name", HEAD_HOOKS)
def test_single_heads(model, hook_name):
    sae = special_sae("zero", hook_name=hook_name, d_in=8, hook_head_index=1)
    rows = token_rows(3)
    rows[0, 0] = 1
    losses = get_recons_loss(
        sae, model, rows, make_store(model, sae, rows), False, True, ignore_tokens={1}
    )

    def zero_head(where):
        def hook_fn(x, hook):
            x = x.clone()
            x[:, :, 1] = torch.where(where[..., None], torch.zeros_like(x[:, :, 1]), x[:, :, 1])
            return x

        return [(hook_name, hook_fn)]

    _, expected = direct_losses(model, rows, zero_head(rows != 1))
    torch.testing.assert_close(losses["ce_loss_with_sae"], expected)
    _, zeroed = direct_losses(model, rows, zero_head(rows >= 0))
    torch.testing.assert_close(losses["ce_loss_with_ablation"], zeroed)
    numbers, _ = get_sparsity_and_variance_metrics(
        sae, model, make_store(model, sae, rows), 1, True, True, True, False, 3, {}
    )
    with torch.no_grad():
        _, cache = model.run_with_cache(rows)
    expected_norm = cache[hook_name][:, :, 1].norm(dim=-1).mean().item()
    assert numbers["l2_norm_in"] == pytest.approx(expected_norm, rel=1e-5)


def test_a_head_needs_a_hook_with_heads(model):
    sae = make_sae(hook_name=RESID, hook_head_index=1)
    with pytest.raises(ValueError, match="head 1.*no heads"):
        get_recons_loss(sae, model, token_rows(2), make_store(model, sae), True, False)


def test_a_missing_hook_is_named(model):
    sae = make_sae(hook_name="blocks.1.hook_resid_per")
    store = make_store(model, make_sae(hook_name=RESID))
    with pytest.raises(ValueError, match="blocks.1.hook_resid_per"):
        run_evals(sae, store, model, EvalConfig(compute_l2_norms=True))


def transcoder(model):
    """From what the second MLP reads to what it writes; skip connection included."""
    from sae_lens.saes.transcoder import SkipTranscoder, SkipTranscoderConfig

    torch.manual_seed(0)
    sae = SkipTranscoder(SkipTranscoderConfig(d_in=D_IN, d_out=D_IN, d_sae=24)).eval()
    torch.nn.init.normal_(sae.W_skip, std=0.2)
    sae.cfg.hook_name = "blocks.1.ln2.hook_normalized"
    sae.cfg.metadata.hook_name_out = "blocks.1.hook_mlp_out"
    return sae


@pytest.mark.filterwarnings("ignore:The result of SAE.from_pretrained is a tuple")
def test_what_from_pretrained_returns_is_judged_as_the_sae_in_it(model):
    from sae_lens.saes.pretrained import PretrainedSAE

    sae, rows = transcoder(model), token_rows(3)
    config = everything(n_eval_reconstruction_batches=1, n_eval_sparsity_variance_batches=1)
    alone, features = run_evals(sae, make_store(model, sae, rows), model, config)
    loaded = PretrainedSAE(sae, {}, None)
    in_tuple = run_evals(loaded, make_store(model, sae, rows), model, config)
    assert in_tuple.metrics == alone
    assert in_tuple.feature_metrics.keys() == features.keys()
    assert in_tuple.feature_metrics["encoder_norm"] == features["encoder_norm"]


def test_transcoders_are_judged_at_their_output(model):
    sae, rows = transcoder(model), token_rows(3)
    store = make_store(model, sae, rows)
    seen = {}

    def remember(x, hook):
        seen["x"] = x

    hooks = [
        ("blocks.1.ln2.hook_normalized", remember),
        ("blocks.1.hook_mlp_out", lambda y, hook: sae(seen["x"])),
    ]
    _, expected = direct_losses(model, rows, hooks)
    _, zeroed = direct_losses(model, rows, [("blocks.1.hook_mlp_out", lambda y, hook: y * 0)])
    losses = get_recons_loss(sae, model, rows, store, False, True)
    torch.testing.assert_close(losses["ce_loss_with_sae"], expected)
    torch.testing.assert_close(losses["ce_loss_with_ablation"], zeroed)

    metrics, _ = run_evals(
        sae, make_store(model, sae, rows), model,
        everything(n_eval_reconstruction_batches=1, n_eval_sparsity_variance_batches=1,
                   include_misc_metrics=True),
    )  # fmt: skip
    with torch.no_grad():
        _, cache = model.run_with_cache(rows)
        target = cache["blocks.1.hook_mlp_out"].flatten(0, 1).double()
        output = sae(cache["blocks.1.ln2.hook_normalized"]).flatten(0, 1).double()
    explained = 1 - (target - output).square().sum() / (target - target.mean(0)).square().sum()
    assert metrics["reconstruction_quality"]["explained_variance"] == pytest.approx(
        explained.item(), rel=1e-5
    )
    assert metrics["shrinkage"]["l2_norm_in"] == pytest.approx(
        target.norm(dim=-1).mean().item(), rel=1e-5
    )


def huggingface_model():
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(vocab_size=32, n_positions=16, n_embd=D_IN, n_layer=2, n_head=2)
    return HookedProxyLM(GPT2LMHeadModel(config).eval(), None)


def test_huggingface_models(monkeypatch):
    model, rows = huggingface_model(), token_rows(4)
    sae = make_sae(hook_name="transformer.h.0")
    losses = get_recons_loss(sae, model, rows, make_store(model, sae, rows), True, True)

    plain = model(rows).log_softmax(-1)
    changed = model.run_with_hooks(
        rows, return_type="logits", fwd_hooks=[("transformer.h.0", lambda x, hook: sae(x))]
    ).log_softmax(-1)
    torch.testing.assert_close(
        losses["kl_div_with_sae"], (plain.exp() * (plain - changed)).sum(-1), atol=1e-5, rtol=1e-3
    )
    expected = -changed[:, :-1].gather(-1, rows[:, 1:, None])[..., 0]
    torch.testing.assert_close(losses["ce_loss_with_sae"], expected)

    # logits come as a whole here, so the prompts are run in groups that fit
    seen = []
    monkeypatch.setattr(interventions, "WHOLE_LOGITS_ELEMENTS", 2 * CONTEXT * 32)
    monkeypatch.setattr(model, "run_with_hooks", spy(model.run_with_hooks, seen))
    again = get_recons_loss(sae, model, rows, make_store(model, sae, rows), True, True)
    for name, values in losses.items():
        torch.testing.assert_close(again[name], values)
    assert [len(tokens) for tokens in seen] == [2] * 6
    metrics, _ = run_evals(sae, make_store(model, sae, rows), model, everything())
    assert math.isfinite(metrics["reconstruction_quality"]["explained_variance"])


def spy(function, seen):
    def wrapper(tokens, **kwargs):
        seen.append(tokens)
        return function(tokens, **kwargs)

    return wrapper


def test_huggingface_hook_names_of_a_released_sae():
    model, rows = huggingface_model(), token_rows(4)
    expected = make_sae(hook_name="transformer.h.0")
    released = make_sae(hook_name="blocks.0.hook_resid_post")
    released.cfg.metadata.hf_hook_name = "transformer.h.0"
    store = make_store(model, expected, rows)
    config = EvalConfig(compute_variance_metrics=True)
    assert run_evals(released, store, model, config).metrics == (
        run_evals(expected, make_store(model, expected, rows), model, config).metrics
    )


def test_a_large_vocabulary_never_has_all_its_logits_at_once(monkeypatch):
    config = HookedTransformerConfig(
        n_layers=1, d_model=D_IN, d_head=8, n_heads=2, n_ctx=16, d_vocab=50_000, act_fn="relu",
        seed=0, device="cpu", attn_only=True,
    )  # fmt: skip
    model = HookedSAETransformer(config).eval()
    sae = make_sae(hook_name="blocks.0.hook_resid_pre")
    monkeypatch.setattr("sae_lens.analysis.metrics.LOGITS_BLOCK_ELEMENTS", 4 * 50_000)
    largest = []
    unembed = model.unembed.forward

    def watch(x):
        largest.append(x.shape[0] * x.shape[1])
        return unembed(x)

    monkeypatch.setattr(model.unembed, "forward", watch)
    rows = token_rows(2)
    losses = get_recons_loss(sae, model, rows, make_store(model, sae, rows), True, True)
    assert max(largest) <= 4
    monkeypatch.undo()
    _, expected = direct_losses(model, rows, [("blocks.0.hook_resid_pre", lambda x, hook: sae(x))])
    torch.testing.assert_close(losses["ce_loss_with_sae"], expected)


def test_a_soft_cap_on_logits_is_kept(model, monkeypatch):
    monkeypatch.setattr(model.cfg, "output_logits_soft_cap", 0.05)
    sae, rows = make_sae(hook_name=RESID), token_rows(2)
    losses = get_recons_loss(sae, model, rows, make_store(model, sae, rows), False, True)
    _, expected = direct_losses(model, rows, [])
    torch.testing.assert_close(losses["ce_loss_without_sae"], expected)


def test_wide_saes_are_run_in_blocks_of_whole_prompts(model, monkeypatch):
    sae, rows = make_sae(hook_name=RESID), token_rows(5)
    config = everything(batch_size_prompts=5, n_eval_reconstruction_batches=1,
                        n_eval_sparsity_variance_batches=1)  # fmt: skip
    expected = run_evals(sae, make_store(model, sae, rows), model, config)
    shapes = []
    encode = sae.encode

    def watch(x):
        shapes.append(tuple(x.shape[:2]))
        return encode(x)

    monkeypatch.setattr(interventions, "FEATURE_BLOCK_ELEMENTS", 2 * CONTEXT * 48)
    monkeypatch.setattr(sae, "encode", watch)
    result = run_evals(sae, make_store(model, sae, rows), model, config)
    assert set(shapes) == {(2, CONTEXT), (1, CONTEXT)}
    for group, values in expected.metrics.items():
        assert result.metrics[group] == pytest.approx(values, rel=1e-5)


def test_scaled_saes_are_compared_in_the_space_of_the_model(model):
    rows = token_rows(3)
    sae = make_sae(hook_name=RESID, normalize_activations="expected_average_only_in")
    folded = make_sae(hook_name=RESID)
    folded.fold_activation_norm_scaling_factor(2.5)
    config = everything(n_eval_reconstruction_batches=1, n_eval_sparsity_variance_batches=1)
    store = make_store(model, sae, rows)
    with pytest.raises(ValueError, match="scaling factor"):
        run_evals(sae, store, model, config)
    store.estimated_norm_scaling_factor = 2.5
    scaled, _ = run_evals(sae, store, model, config)
    expected, _ = run_evals(folded, make_store(model, folded, rows), model, config)
    for group, values in expected.items():
        if group == "sparsity":
            continue
        assert scaled[group] == pytest.approx(values, rel=1e-4, abs=1e-6), group

    # after training the factor is folded and the store has none any more
    store.estimated_norm_scaling_factor = None
    assert run_evals(folded, store, model, config).metrics == expected


def test_modes_come_back_also_after_an_error(model):
    sae = make_training_sae(hook_name="blocks.1.attn.hook_z", noise_scale=0.5)
    sae.turn_on_forward_pass_hook_z_reshaping()
    store = make_store(model, sae)
    first = run_evals(sae, store, model, everything())
    assert sae.training
    assert sae.hook_z_reshaping_mode
    store.reset_input_dataset()
    assert run_evals(sae, store, model, everything()).metrics == first.metrics
    with pytest.raises(ValueError, match="zero tokens"):
        run_evals(sae, store, model, everything(), ignore_tokens=set(range(32)))
    assert sae.training
    assert sae.hook_z_reshaping_mode
    flat = make_sae(hook_name="blocks.1.attn.hook_z")
    flat.turn_off_forward_pass_hook_z_reshaping()
    run_evals(flat, make_store(model, flat), model, everything())
    assert not flat.hook_z_reshaping_mode


def test_model_kwargs_reach_every_forward_pass(model, monkeypatch):
    sae = make_sae(hook_name=RESID)
    seen = []
    original = type(model).forward

    def forward(self, *args, **kwargs):
        seen.append(kwargs.get("padding_side"))
        return original(self, *args, **kwargs)

    monkeypatch.setattr(interventions, "computes_logits_in_blocks", lambda m: True)
    monkeypatch.setattr(type(model), "forward", forward)
    config = everything(n_eval_reconstruction_batches=1, n_eval_sparsity_variance_batches=1)
    run_evals(sae, make_store(model, sae), model, config, model_kwargs={"padding_side": "right"})
    assert seen == ["right"] * 4


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_models_of_another_dtype(model, dtype):
    other = tiny_model().to(dtype)
    sae, rows = make_sae(hook_name=RESID), token_rows(3)
    config = everything(n_eval_reconstruction_batches=1, n_eval_sparsity_variance_batches=1)
    expected = run_evals(sae, make_store(model, sae, rows), model, config).metrics
    metrics = run_evals(sae, make_store(other, sae, rows), other, config).metrics
    tolerance = {"rel": 0.05, "abs": 0.05} if dtype == torch.bfloat16 else {"rel": 1e-3}
    for group in ("shrinkage", "sparsity"):
        assert metrics[group]["l0" if group == "sparsity" else "l2_norm_in"] == pytest.approx(
            expected[group]["l0" if group == "sparsity" else "l2_norm_in"], **tolerance
        )
    loss = "ce_loss_with_sae"
    assert metrics["model_performance_preservation"][loss] == pytest.approx(
        expected["model_performance_preservation"][loss], rel=1e-2
    )


@pytest.mark.gpu
def test_model_on_the_gpu_and_sae_on_the_cpu(model):
    rows = token_rows(6)
    sae = make_sae(hook_name=RESID)
    config = replace(get_eval_everything_config(), include_misc_metrics=True)
    expected, _ = HeldOutEvaluator(rows, model, config).evaluate(sae, 2.0)
    on_gpu = tiny_model().to("cuda")
    for device in ("cpu", "cuda"):
        found, _ = HeldOutEvaluator(rows, on_gpu, config).evaluate(sae.to(device), 2.0)
        for group, values in expected.items():
            assert found[group] == pytest.approx(values, rel=1e-2, abs=1e-4), group


def test_inputs_are_not_changed(model):
    sae, ignored, kwargs = make_sae(hook_name=RESID), {1}, {}
    config = everything()
    before = asdict(config)
    run_evals(sae, make_store(model, sae), model, config, kwargs, ignored)
    assert (ignored, kwargs, asdict(config)) == ({1}, {}, before)


def test_an_attached_sae_in_the_way_is_named():
    plain = tiny_model()
    model = HookedSAETransformer(plain.cfg).eval()
    sae = make_sae(hook_name=RESID)
    store = make_store(plain, sae)
    with model.saes(sae), pytest.raises(ValueError, match="reset_saes"):
        run_evals(sae, store, model, EvalConfig(compute_l2_norms=True))


def test_gated_weight_metrics_use_the_gate():
    sae = make_sae("gated")
    result = get_featurewise_weight_based_metrics(sae)
    assert result["encoder_bias"] == pytest.approx(sae.b_gate.tolist())


def test_sparse_features_are_accepted(model, monkeypatch):
    sae, rows = make_sae("topk", hook_name=RESID), token_rows(3)
    config = everything(n_eval_reconstruction_batches=1, n_eval_sparsity_variance_batches=1)
    expected = run_evals(sae, make_store(model, sae, rows), model, config).metrics
    encode = sae.encode
    monkeypatch.setattr(sae, "encode", lambda x: encode(x).to_sparse())
    assert run_evals(sae, make_store(model, sae, rows), model, config).metrics == expected


# -- held-out evaluation ---------------------------------------------------------------------------


def test_held_out_evaluation_gives_the_same_numbers_whenever_it_runs(model):
    rows = token_rows(7)
    sae = make_sae(hook_name=RESID)
    evaluator = HeldOutEvaluator(rows, model, batch_size_prompts=3)
    first = evaluator(sae)
    assert first["token_stats"] == {
        "total_tokens_eval_reconstruction": 7 * CONTEXT,
        "total_tokens_eval_sparsity_variance": 7 * CONTEXT,
    }
    evaluator(make_sae("gated", seed=3, hook_name=RESID))
    torch.manual_seed(99)
    rows.zero_()
    assert evaluator(sae) == first
    expected, _ = run_evals(
        sae, make_store(model, sae, token_rows(7)), model,
        EvalConfig(7, 1, compute_ce_loss=True, compute_sparsity_metrics=True),
    )  # fmt: skip
    assert first["sparsity"] == pytest.approx(expected["sparsity"])
    group = "model_performance_preservation"
    assert first[group] == pytest.approx(expected[group], rel=1e-5)


def test_held_out_evaluation_scales_as_the_trainer_says(model):
    class Scaler:
        scaling_factor = 2.5

    rows = token_rows(4)
    sae = make_sae(hook_name=RESID, normalize_activations="expected_average_only_in")
    folded = make_sae(hook_name=RESID)
    folded.fold_activation_norm_scaling_factor(2.5)
    evaluator = HeldOutEvaluator(rows, model)
    scaled = evaluator(sae, None, Scaler())
    expected = evaluator(folded)
    group = "reconstruction_quality"
    assert scaled[group] == pytest.approx(expected[group], rel=1e-4, abs=1e-6)
    assert scaled["sparsity"]["l0"] != pytest.approx(evaluator(sae)["sparsity"]["l0"])


def test_held_out_tokens_come_from_the_start_of_a_dataset(model, caplog):
    rows = token_rows(6)
    dataset = Dataset.from_dict({"tokens": rows.tolist()})
    evaluator = HeldOutEvaluator.from_dataset(model, dataset, CONTEXT, 4, batch_size_prompts=2)
    assert torch.equal(evaluator.tokens, rows[:4])
    assert not caplog.records
    everything_there_is = HeldOutEvaluator.from_dataset(model, dataset, CONTEXT, 9)
    assert torch.equal(everything_there_is.tokens, rows)
    assert "6 prompts, not the 9" in caplog.text


def test_bad_held_out_tokens_are_refused(model):
    with pytest.raises(ValueError, match=r"shape \(0, 8\)"):
        HeldOutEvaluator(token_rows(0), model)
    with pytest.raises(ValueError, match="vocabulary is 0 to 31"):
        HeldOutEvaluator(token_rows() + 10, model)
    one_word = Dataset.from_dict({"text": ["short"]})
    tokenizer = SimpleNamespace(to_tokens=lambda text, **kwargs: torch.zeros(1, 1).long())
    with (
        pytest.warns(UserWarning, match="not tokenized"),
        pytest.raises(ValueError, match="no prompt of 8 tokens"),
    ):
        HeldOutEvaluator.from_dataset(tokenizer, one_word, CONTEXT, 4, prepend_bos=False)


@pytest.mark.parametrize("iterable", [False, True])
def test_held_out_rows_are_not_trained_on(iterable):
    rows = token_rows(10)
    dataset = Dataset.from_dict({"tokens": rows.tolist()})
    train, held_out = split_held_out(dataset.to_iterable_dataset() if iterable else dataset, 3)
    assert [row["tokens"] for row in held_out] == rows[:3].tolist()
    assert [row["tokens"] for row in train] == rows[3:].tolist()


def test_impossible_splits_are_refused():
    dataset = Dataset.from_dict({"tokens": token_rows(4).tolist()})
    with pytest.raises(ValueError, match="4 of 4 rows"):
        split_held_out(dataset, 4)
    with pytest.raises(ValueError, match="at least one"):
        split_held_out(dataset, 0)


# -- sweeps, files, command line -------------------------------------------------------------------

LOADABLE = [
    ("a-res", "layer_0", 0.9, 20.0),
    ("a-res", "layer_1", 0.9, 20.0),
    ("b", "layer_0", 1, 0),
]


def test_patterns_match_whole_names(monkeypatch):
    monkeypatch.setattr(evals, "all_loadable_saes", lambda: LOADABLE)
    assert get_saes_from_regex("a-.*", "layer_0") == LOADABLE[:1]
    assert get_saes_from_regex(".*", ".*") == LOADABLE
    assert get_saes_from_regex("a", "layer_0") == []
    with pytest.raises(ValueError, match="No SAEs matched.*'zzz'"):
        multiple_evals("zzz", ".*", 1, 1)


def test_every_released_sae_is_loadable():
    entries = evals.all_loadable_saes()
    assert ("gpt2-small-res-jb", "blocks.0.hook_resid_pre") in {entry[:2] for entry in entries}
    assert all(isinstance(entry[2], float) and isinstance(entry[3], float) for entry in entries)


def test_sweeps(model, monkeypatch, tmp_path):
    saes = {
        name: make_sae(seed=i, hook_name=RESID) for i, name in enumerate(("layer_0", "layer_1"))
    }
    loaded, datasets = [], []
    monkeypatch.setattr(evals, "all_loadable_saes", lambda: LOADABLE)
    monkeypatch.setattr(
        evals.SAE, "from_pretrained", lambda release, sae_id, device: (saes[sae_id], {}, None)
    )

    def load_model(class_name, name, device, model_from_pretrained_kwargs):
        loaded.append((class_name, name))
        return model

    real_from_sae = ActivationsStore.from_sae

    def from_sae(model, sae, context_size, dataset):
        datasets.append((dataset, context_size))
        rows = Dataset.from_dict({"tokens": token_rows(8, context_size).tolist()})
        return real_from_sae(model, sae, context_size, rows)

    monkeypatch.setattr(evals, "load_model", load_model)
    monkeypatch.setattr(evals.ActivationsStore, "from_sae", from_sae)
    monkeypatch.setattr(evals, "default_device", lambda: "cpu")
    results = multiple_evals("a-res", ".*", 1, 1, 2, ["d/one", "two"], [4, 8], str(tmp_path))
    assert loaded == [("HookedTransformer", "tiny")]
    assert datasets == [("d/one", 4), ("two", 4), ("d/one", 8), ("two", 8)] * 2
    assert [r["unique_id"] for r in results] == ["a-res-layer_0"] * 4 + ["a-res-layer_1"] * 4
    first = results[0]
    assert first["eval_cfg"]["context_size"] == 4
    assert first["eval_cfg"]["dataset"] == "d/one"
    assert all(first["eval_cfg"][name] for name in SWITCHES)
    assert first["sae_cfg"]["hook_name"] == RESID
    assert first["metrics"]["misc_metrics"]["frac_alive"] > 0
    assert len(list(tmp_path.glob("*.json"))) == 8

    files = process_results(results, tmp_path)
    assert len(files["individual_jsons"]) == 9
    assert json.loads(files["combined_json"].read_text())[0]["sae_id"] == "layer_0"


def result_of(number, value):
    return {
        "unique_id": f"set-{number}/x",
        "sae_set": "set",
        "sae_id": f"{number}/x",
        "eval_cfg": {"context_size": 16, "dataset": "a/b", "library_version": "1"},
        "metrics": {"sparsity": {"l0": value}, "token_stats": {"total": 1000}},
        "feature_metrics": {"feature_density": [0.5, float("nan")]},
        "sae_cfg": {"d_in": 3},
    }


def test_results_become_files(tmp_path):
    import pandas

    results = [result_of(0, 2.5), result_of(1, float("nan"))]
    files = process_results(results, tmp_path / "out")
    assert [p.name for p in files["individual_jsons"]] == [
        "all_eval_results.json",
        "set-0_x_16_a_b.json",
        "set-1_x_16_a_b.json",
    ]
    one = json.loads((tmp_path / "out" / "set-1_x_16_a_b.json").read_text())
    assert one["metrics"]["sparsity"]["l0"] == -1
    assert one["feature_metrics"]["feature_density"] == [0.5, -1]
    assert json.loads(files["combined_json"].read_text())[1] == one
    table = pandas.read_csv(files["csv"])
    assert table["metrics.sparsity.l0"].tolist() == [2.5, -1]
    assert table["eval_cfg.context_size"].tolist() == [16, 16]
    assert math.isnan(results[1]["metrics"]["sparsity"]["l0"])


def test_core_report_has_the_shape_of_the_benchmark():
    report = evals.core_report(result_of(0, 2.5))
    assert report["eval_type_id"] == "core"
    assert report["eval_result_metrics"]["sparsity"] == {"l0": 2.5}
    assert report["eval_result_details"] == [
        {"index": 0, "feature_density": 0.5},
        {"index": 1, "feature_density": -1},
    ]
    assert report["sae_lens_release_id"] == "set"
    json.dumps(report, allow_nan=False)


def test_nan_replacement():
    nested = {"a": [1.0, float("nan"), {"b": (float("nan"), "x")}], "c": None}
    assert replace_nans_with_negative_one(nested) == {"a": [1.0, -1, {"b": [-1, "x"]}], "c": None}


def test_nested_dicts():
    nested = evals.dict_to_nested({"a/b/c": 1, "a/d": 2, "e": 3})
    assert nested == {"a": {"b": {"c": 1}, "d": 2}, "e": 3}
    deep = evals.nested_dict()
    deep["x"]["y"]["z"] = 1
    assert deep == {"x": {"y": {"z": 1}}}


def sweep_args(*more):
    return evals.arg_parser().parse_args(["a-.*", "layer_0", *more])


def test_command_line_defaults(monkeypatch):
    args = sweep_args()
    assert (args.batch_size_prompts, args.n_eval_reconstruction_batches) == (16, 10)
    assert (args.n_eval_sparsity_variance_batches, args.ctx_lens) == (1, [128])
    assert (args.datasets, args.output_dir) == (["Skylion007/openwebtext"], "eval_results")
    seen = {}
    monkeypatch.setattr(evals, "get_saes_from_regex", lambda a, b: LOADABLE)
    monkeypatch.setattr(evals, "multiple_evals", lambda **kwargs: seen.update(kwargs) or ["done"])
    assert run_evaluations(args) == ["done"]
    assert seen == {
        "sae_regex_pattern": "a-.*",
        "sae_block_pattern": "layer_0",
        "n_eval_reconstruction_batches": 10,
        "n_eval_sparsity_variance_batches": 1,
        "eval_batch_size_prompts": 16,
        "datasets": ["Skylion007/openwebtext"],
        "ctx_lens": [128],
        "output_dir": "eval_results",
        "verbose": False,
    }


def test_compute_flags_are_honoured(monkeypatch):
    seen = {}
    monkeypatch.setattr(evals, "get_saes_from_regex", lambda a, b: LOADABLE)
    monkeypatch.setattr(evals, "multiple_evals", lambda **kwargs: seen.update(kwargs) or [])
    run_evaluations(sweep_args("--compute_kl", "--compute_l2_norms"))
    config = seen["eval_config"]
    assert {name for name in SWITCHES if getattr(config, name)} == {
        "compute_kl",
        "compute_l2_norms",
    }
    assert config.batch_size_prompts == 16
    assert isinstance(sweep_args(), argparse.Namespace)


def test_the_command_writes_and_names_its_files(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(evals, "run_evaluations", lambda args: [result_of(0, 1.0)])
    assert evals.main(["a", "b", "--output_dir", str(tmp_path)]) == 0
    assert json.loads(capsys.readouterr().out)["csv"] == str(tmp_path / "all_eval_results.csv")


def test_git_hash_is_quiet_outside_of_a_repository(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert evals.get_git_hash() == "unknown"
    assert EvalConfig().git_hash == "unknown"
    eval_config._git_hash.cache_clear()
    monkeypatch.setattr(subprocess, "run", raise_missing)
    assert evals.get_git_hash() == "unknown"
    assert capfd.readouterr() == ("", "")


def raise_missing(*args, **kwargs):
    raise FileNotFoundError("git")


def test_one_sae_on_one_dataset(model, monkeypatch):
    sae = make_sae(hook_name=RESID)
    dataset = Dataset.from_dict({"tokens": token_rows(8).tolist()})
    config = EvalConfig(batch_size_prompts=2, compute_sparsity_metrics=True)
    result = evaluate_sae(sae, model, dataset, CONTEXT, config, sae_set="mine")
    assert result["unique_id"] == "mine"
    assert result["eval_cfg"]["dataset"] == "Dataset"
    assert result["metrics"]["sparsity"]["l0"] > 0


def test_a_folder_is_evaluated(model, monkeypatch, tmp_path):
    sae = make_sae(hook_name=RESID, dataset_path="some/text")
    sae.save_model(tmp_path / "my_sae")
    dataset = Dataset.from_dict({"tokens": token_rows(8).tolist()})
    asked = []
    monkeypatch.setattr(
        targets, "load_text_dataset", lambda path, **kwargs: asked.append((path, kwargs)) or dataset
    )
    monkeypatch.setattr(evals, "load_model", lambda *args, **kwargs: model)
    config = EvalConfig(2, 1, compute_kl=True, n_eval_sparsity_variance_batches=1,
                        include_misc_metrics=True)  # fmt: skip
    result = evals.evaluate_target(
        str(tmp_path / "my_sae"), eval_config=config, output_dir=tmp_path / "out", device="cpu"
    )
    assert asked == [("some/text", {"split": "train", "streaming": True})]
    assert result["unique_id"] == "my_sae"
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {
        "all_eval_results.csv",
        "all_eval_results.json",
        "my_sae_8_some_text.json",
        "my_sae_core_eval_results.json",
    }
    core = json.loads((tmp_path / "out" / "my_sae_core_eval_results.json").read_text())
    assert "kl_div_score" in core["eval_result_metrics"]["model_behavior_preservation"]


def test_targets(monkeypatch):
    asked = []

    def from_pretrained(release, sae_id, device):
        asked.append((release, sae_id))
        return (make_sae(), {}, None)

    monkeypatch.setattr(evals.SAE, "from_pretrained", from_pretrained)
    load = targets.load_target
    load("gpt2-small-res-jb/blocks.0.hook_resid_pre", None, "cpu")
    load("someone/their-saes/layer_1/wide", None, "cpu")
    load("gpt2-small-res-jb", "blocks.1.hook_resid_pre", "cpu")
    assert asked == [
        ("gpt2-small-res-jb", "blocks.0.hook_resid_pre"),
        ("someone/their-saes", "layer_1/wide"),
        ("gpt2-small-res-jb", "blocks.1.hook_resid_pre"),
    ]
    with pytest.raises(ValueError, match="neither a folder nor a release"):
        load("nothing", None, "cpu")
