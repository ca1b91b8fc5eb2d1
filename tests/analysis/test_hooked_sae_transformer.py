"""SAEs spliced into a transformer: results, caches, and that nothing is left behind."""

import copy
import logging
import pickle

import pytest
import torch
from datasets import Dataset
from transformer_lens import ActivationCache, HookedTransformerConfig
from transformer_lens.hook_points import HookPoint

from sae_lens.activations.store import ActivationsStore
from sae_lens.analysis.hooked_sae_transformer import (
    HookedSAETransformer,
    get_deep_attr,
    hook_widths,
    set_deep_attr,
)
from sae_lens.evals import EvalConfig, run_evals
from sae_lens.registry import get_sae_class
from sae_lens.saes import SAE, SAEConfig
from tests.helpers import (
    ARCHITECTURES,
    assert_close,
    golden_cases,
    load_golden,
    make_sae,
    make_training_sae,
    tensors_under,
    tiny_model,
)

RESID = "blocks.0.hook_resid_pre"
MLP = "blocks.1.hook_mlp_out"
Z = "blocks.1.attn.hook_z"
SAE_HOOKS = {"input", "acts_pre", "acts_post", "output", "recons", "error"}
TOKENS = torch.arange(24).reshape(2, 12) % 32


def make_model(dtype=torch.float32):
    plain = tiny_model()
    model = HookedSAETransformer(plain.cfg).eval()
    model.load_state_dict(plain.state_dict())
    return model.to(dtype)


@pytest.fixture
def model():
    with torch.no_grad():
        yield make_model()


@pytest.fixture
def warned(caplog):
    with caplog.at_level(logging.WARNING):
        yield caplog


def assert_untouched(model, before):
    assert model.acts_to_saes == {}
    assert not any("hook_sae" in name for name in model.hook_dict)
    assert isinstance(get_deep_attr(model, RESID), HookPoint)
    torch.testing.assert_close(model(TOKENS), before)


@pytest.mark.parametrize("path", golden_cases("hooked"), ids=lambda p: p.stem)
@torch.no_grad()
def test_goldens(path):
    case, tensors = load_golden(path)
    model = HookedSAETransformer(HookedTransformerConfig(**case["model"])).eval()
    model.load_state_dict(tensors_under(tensors, "model/"), strict=False)
    saes = []
    for number, cfg in enumerate(case["saes"]):
        sae = SAE(SAEConfig.from_dict(cfg)).eval()
        sae.load_state_dict(tensors_under(tensors, f"sae{number}/"))
        saes.append(sae)
    tokens = tensors["in/tokens"]

    def check(name, got):
        assert_close(got, tensors[f"out/{name}"], atol=1e-4, rtol=1e-3)

    check("logits_plain", model(tokens))
    check("logits_one", model.run_with_saes(tokens, saes=saes[0]))
    check("logits_all", model.run_with_saes(tokens, saes=saes))
    check("logits_error_term", model.run_with_saes(tokens, saes=saes, use_error_term=True))
    _, cache = model.run_with_cache_with_saes(tokens, saes=saes)
    # TransformerLens 3 has hooks around the unembedding, too.
    assert [key for key in cache if not key.startswith("unembed.")] == case["cache_keys"]
    for key in cache:
        if "hook_sae" in key:
            check(f"cache/{key}", cache[key])
    ablate = (f"{saes[0].cfg.hook_name}.hook_sae_acts_post", lambda acts, hook: acts * 0)
    check("logits_hooked", model.run_with_hooks_with_saes(tokens, saes=saes, fwd_hooks=[ablate]))
    check("logits_after", model(tokens))
    assert model.acts_to_saes == {}


def test_deep_attributes(model):
    assert get_deep_attr(model, Z) is model.blocks[1].attn.hook_z
    set_deep_attr(model, "blocks.0", model.blocks[1])
    assert model.blocks[0] is model.blocks[1]
    set_deep_attr(model, "marker", 3)
    assert get_deep_attr(model, "marker") == 3


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("hook_name", [RESID, MLP, Z])
def test_an_attached_sae_runs_in_the_forward_pass(model, architecture, hook_name):
    before = model(TOKENS)
    sae = make_sae(architecture, hook_name=hook_name)
    model.add_sae(sae)
    assert get_deep_attr(model, hook_name) is sae
    assert hook_name not in model.hook_dict
    inside = {n.rsplit("hook_sae_")[1] for n in model.hook_dict if n.startswith(f"{hook_name}.")}
    assert inside == SAE_HOOKS

    with_sae = model(TOKENS)
    assert not torch.allclose(with_sae, before, atol=1e-4)
    hooked = tiny_model().run_with_hooks(
        TOKENS, fwd_hooks=[(hook_name, lambda x, hook: sae(x).reshape(x.shape))]
    )
    torch.testing.assert_close(with_sae, hooked)
    torch.testing.assert_close(model(TOKENS), with_sae)

    model.reset_saes()
    assert_untouched(model, before)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_error_term_restores_the_model(model, architecture):
    before = model(TOKENS)
    sae = make_sae(architecture, hook_name=RESID)
    out, cache = model.run_with_cache_with_saes(TOKENS, saes=sae, use_error_term=True)
    torch.testing.assert_close(out, before, atol=1e-5, rtol=1e-5)
    assert f"{RESID}.hook_sae_error" in cache
    assert sae.use_error_term is False

    def ablate(acts, hook):
        return acts * 0

    point = f"{RESID}.hook_sae_acts_post"
    ablated = model.run_with_hooks_with_saes(
        TOKENS, saes=sae, use_error_term=True, fwd_hooks=[(point, ablate)]
    )
    assert not torch.allclose(ablated, before, atol=1e-4)


def test_training_saes_fit_a_hook_with_heads(model):
    sae = make_training_sae(hook_name=Z).eval()
    assert not sae.hook_z_reshaping_mode
    inference = make_sae(hook_name=Z)
    inference.load_state_dict(sae.state_dict())
    torch.testing.assert_close(
        model.run_with_saes(TOKENS, saes=sae), model.run_with_saes(TOKENS, saes=inference)
    )


def test_flattened_heads_of_a_query_hook(model):
    sae = make_sae(hook_name="blocks.1.attn.hook_q")
    out = model.run_with_saes(TOKENS, saes=sae)

    def replace(q, hook):
        return sae(q.flatten(-2)).reshape(q.shape)

    expected = model.run_with_hooks(TOKENS, fwd_hooks=[("blocks.1.attn.hook_q", replace)])
    torch.testing.assert_close(out, expected)


def test_a_single_head_leaves_the_others_alone(model):
    sae = make_sae(hook_name=Z, hook_head_index=1, d_in=8)
    sae.turn_off_forward_pass_hook_z_reshaping()
    out = model.run_with_saes(TOKENS, saes=sae)

    def replace(z, hook):
        new = z.clone()
        new[:, :, 1] = sae(z[:, :, 1])
        return new

    torch.testing.assert_close(out, model.run_with_hooks(TOKENS, fwd_hooks=[(Z, replace)]))


@pytest.mark.parametrize("model_dtype", [torch.bfloat16, torch.float16, torch.float64])
@torch.no_grad()
def test_output_has_the_dtype_of_the_model(model_dtype):
    model = make_model(model_dtype)
    sae = make_sae(hook_name=RESID)
    for use_error_term in (False, True):
        out = model.run_with_saes(TOKENS, saes=sae, use_error_term=use_error_term)
        assert out.dtype == model_dtype
    x = torch.randn(3, 16, dtype=model_dtype)
    assert sae(x).dtype == torch.float32


def test_a_missing_hook_warns_with_near_matches(model, warned):
    before = model(TOKENS)
    sae = make_sae(hook_name="blocks.0.hook_resid_per")
    model.add_sae(sae)
    assert "No hook found for" in warned.text
    assert "'blocks.0.hook_resid_pre'" in warned.text
    assert warned.records[0].name == "root"
    assert len(warned.records) == 1
    model.run_with_saes(TOKENS, saes=sae)
    assert len(warned.records) == 2
    assert_untouched(model, before)


@pytest.mark.parametrize(
    "call",
    [
        lambda model, sae: model.add_sae(sae, strict=True),
        lambda model, sae: model.saes(sae, strict=True).__enter__(),
        lambda model, sae: model.run_with_saes(TOKENS, saes=sae, strict=True),
        lambda model, sae: model.run_with_cache_with_saes(TOKENS, saes=sae, strict=True),
        lambda model, sae: model.run_with_hooks_with_saes(TOKENS, saes=sae, strict=True),
    ],
)
def test_strict_makes_a_missing_hook_an_error(model, call):
    before = model(TOKENS)
    present = make_sae(hook_name=RESID)
    missing = make_sae(hook_name="blocks.7.hook_resid_pre")
    with pytest.raises(ValueError, match="No hook found for blocks.7"):
        call(model, missing)
    with pytest.raises(ValueError, match="No hook found for"):
        model.run_with_saes(TOKENS, saes=[present, missing], strict=True)
    assert_untouched(model, before)


@pytest.mark.parametrize(
    ("hook_name", "d_in", "width"),
    [(RESID, 24, 16), (Z, 24, 16), ("blocks.0.mlp.hook_post", 16, 64), (MLP, 64, 16)],
)
def test_a_width_that_contradicts_the_model_is_reported_when_attaching(
    model, hook_name, d_in, width
):
    before = model(TOKENS)
    sae = make_sae(hook_name=hook_name, d_in=d_in)
    with pytest.raises(ValueError, match=f"d_in={d_in}.*width {width}"):
        model.add_sae(sae, use_error_term=True)
    assert sae.use_error_term is False
    fine = make_sae(hook_name="blocks.1.hook_resid_post")
    with pytest.raises(ValueError, match="width"):
        model.run_with_saes(TOKENS, saes=[fine, sae], use_error_term=True)
    assert fine.use_error_term is False
    assert_untouched(model, before)


def test_known_widths(model):
    assert hook_widths(model, "hook_embed") == (16,)
    assert hook_widths(model, "ln_final.hook_normalized") == (16,)
    assert hook_widths(model, "blocks.0.mlp.hook_pre") == (64,)
    assert hook_widths(model, Z) == (16, 8)
    assert hook_widths(model, Z, head=0) == (8,)
    assert hook_widths(model, "blocks.0.attn.hook_pattern") == ()
    model.cfg.n_key_value_heads = 1
    assert hook_widths(model, "blocks.0.attn.hook_k") == (8, 8)
    assert hook_widths(model, "blocks.0.attn.hook_q") == (16, 8)


NORMALIZED, MLP_OUT = "blocks.0.ln2.hook_normalized", "blocks.0.hook_mlp_out"


def make_transcoder(architecture="transcoder", entry=NORMALIZED, exit_=MLP_OUT, d_in=16, d_out=16):
    torch.manual_seed(1)
    config = get_sae_class(architecture).config_class(
        d_in=d_in, d_out=d_out, d_sae=24, hook_name=entry, metadata={"hook_name_out": exit_}
    )
    sae = SAE(config).eval()
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.3)
    return sae


@pytest.mark.parametrize(
    ("entry", "exit_", "d_in", "d_out"),
    [
        (NORMALIZED, MLP_OUT, 16, 16),
        ("blocks.0.mlp.hook_pre", MLP_OUT, 64, 16),
        ("blocks.0.hook_resid_mid", "blocks.0.mlp.hook_post", 16, 64),
        ("blocks.0.hook_resid_pre", Z, 16, 16),
    ],
)
@pytest.mark.parametrize("architecture", ["transcoder", "jumprelu_skip_transcoder"])
@torch.no_grad()
def test_a_transcoder_replaces_its_output_hook(model, architecture, entry, exit_, d_in, d_out):
    sae = make_transcoder(architecture, entry, exit_, d_in, d_out)
    before = model(TOKENS)
    _, cache = model.run_with_cache(TOKENS)

    def put(acts, hook):
        return sae(cache[entry]).reshape(acts.shape)

    want = model.run_with_hooks(TOKENS, fwd_hooks=[(exit_, put)])
    assert not torch.allclose(want, before)
    got = model.run_with_saes(TOKENS, saes=sae)
    assert_close(got, want)
    logits, inside = model.run_with_cache_with_saes(TOKENS, saes=[sae])
    assert_close(logits, want)
    assert_close(inside[f"{exit_}.hook_sae_acts_post"], sae.encode(cache[entry]))
    assert_close(inside[entry], cache[entry])
    assert_untouched(model, before)


@torch.no_grad()
def test_a_transcoder_reads_what_interventions_and_saes_leave_of_its_input(model):
    transcoder = make_transcoder()

    def double(acts, hook):
        return acts * 2

    model.add_sae(transcoder)
    _, cache = model.run_with_cache(TOKENS)
    hook = [(NORMALIZED, double)]
    model.add_hook(NORMALIZED, double)  # later than the transcoder came
    seen = {}
    model.run_with_hooks(
        TOKENS, fwd_hooks=[(f"{MLP_OUT}.hook_sae_input", lambda x, hook: seen.update(x=x))]
    )
    assert_close(seen["x"], 2 * cache[NORMALIZED])
    model.reset_hooks()
    with model.saes(sae := make_sae(hook_name=NORMALIZED)):
        model.run_with_hooks(
            TOKENS, fwd_hooks=[(f"{MLP_OUT}.hook_sae_input", lambda x, hook: seen.update(x=x))]
        )
        assert_close(seen["x"], sae(cache[NORMALIZED]))
    got = model.run_with_hooks(TOKENS, fwd_hooks=hook)
    model.reset_saes()

    def put(acts, hook):
        return transcoder(2 * cache[NORMALIZED])

    assert_close(got, model.run_with_hooks(TOKENS, fwd_hooks=[(MLP_OUT, put), *hook]))
    assert type(get_deep_attr(model, NORMALIZED)) is HookPoint


@torch.no_grad()
def test_two_transcoders_may_read_one_hook_and_all_come_off(model):
    before = model(TOKENS)
    first, second = make_transcoder(), make_transcoder(exit_="blocks.1.hook_mlp_out")
    again = make_transcoder("skip_transcoder")
    model.add_sae(first)
    with model.saes([second, again]):
        assert set(model.acts_to_saes) == {MLP_OUT, "blocks.1.hook_mlp_out"}
        assert model.acts_to_saes[MLP_OUT] is again
        both = model(TOKENS)
    assert model.acts_to_saes == {MLP_OUT: first}
    one = model(TOKENS)
    model.reset_saes(MLP_OUT)
    assert_close(model.run_with_saes(TOKENS, saes=first), one)
    assert_close(model.run_with_saes(TOKENS, saes=[again, second]), both)
    assert type(get_deep_attr(model, NORMALIZED)) is HookPoint
    assert_untouched(model, before)


def test_gradients_pass_through_a_transcoder(model):
    sae = make_transcoder()
    with torch.enable_grad():
        model.run_with_saes(TOKENS, saes=sae, return_type="loss").backward()
    assert sae.W_enc.grad is not None and sae.W_enc.grad.any()
    assert model.blocks[0].attn.W_V.grad is not None


def test_transcoders_that_do_not_fit_are_refused(model, caplog):
    with pytest.raises(ValueError, match="use_error_term=True is for SAEs"):
        model.add_sae(make_transcoder(), use_error_term=True)
    with pytest.raises(ValueError, match="d_out=7"):
        model.add_sae(make_transcoder(d_out=7))
    with pytest.raises(ValueError, match="d_in=7"):
        model.add_sae(make_transcoder(d_in=7))
    with pytest.raises(ValueError, match="runs before"):
        model.add_sae(make_transcoder(entry=MLP_OUT, exit_=NORMALIZED))
    with pytest.raises(ValueError, match="No hook found"):
        model.add_sae(make_transcoder(exit_="blocks.0.hook_nothing"), strict=True)
    model.add_sae(make_transcoder(entry="blocks.0.hook_nothing"))
    assert "No hook found for blocks.0.hook_nothing" in caplog.text
    # where names do not tell, the first forward pass does
    hooks = {"entry": "blocks.0.mlp.hook_post", "exit_": "blocks.0.mlp.hook_pre"}
    with pytest.raises(ValueError, match="ran before the input hook"):
        model.run_with_saes(TOKENS, saes=make_transcoder(**hooks, d_in=64, d_out=64))
    assert model.acts_to_saes == {}


@torch.no_grad()
def test_a_spliced_transcoder_gives_the_loss_of_evaluations(model):
    sae = make_transcoder("skip_transcoder")
    store = ActivationsStore.from_sae(
        model, sae, context_size=TOKENS.shape[1], streaming=False, store_batch_size_prompts=2,
        dataset=Dataset.from_dict({"tokens": TOKENS.tolist()}),
    )  # fmt: skip
    wanted = EvalConfig(compute_ce_loss=True, n_eval_reconstruction_batches=1, batch_size_prompts=2)
    found = run_evals(sae, store, model, wanted).metrics["model_performance_preservation"]
    loss = model.run_with_saes(TOKENS[:2], saes=sae, return_type="loss")
    assert found["ce_loss_with_sae"] == pytest.approx(loss.item(), rel=1e-4)


def test_nothing_stays_attached_after_an_exception(model):
    before = model(TOKENS)
    saes = [make_sae(hook_name=RESID), make_sae(hook_name=MLP)]

    def explode(x, hook):
        raise RuntimeError("boom")

    with pytest.raises(RuntimeError, match="boom"), model.saes(saes, use_error_term=True):
        raise RuntimeError("boom")
    with pytest.raises(RuntimeError, match="boom"):
        model.run_with_hooks_with_saes(
            TOKENS, saes=saes, fwd_hooks=[(MLP + ".hook_sae_input", explode)]
        )
    with pytest.raises(Exception):
        model.run_with_saes("text without a tokenizer", saes=saes)
    assert_untouched(model, before)
    for sae in saes:
        assert not sae.use_error_term
        assert not sae._forward_hooks
        assert not sae._forward_pre_hooks


def test_saes_can_stay_attached(model, warned):
    sae = make_sae(hook_name=RESID)
    model.run_with_saes(TOKENS, saes=sae, reset_saes_end=False, use_error_term=True)
    assert model.acts_to_saes == {RESID: sae}
    assert sae.use_error_term is True
    model.reset_saes(RESID)
    assert sae.use_error_term is False
    assert model.acts_to_saes == {}
    model.reset_saes(RESID)
    assert "nothing to reset" in warned.text


def test_resetting_checks_lengths_and_puts_previous_saes_back(model):
    first, second = make_sae(hook_name=RESID), make_sae("gated", hook_name=RESID)
    other = make_sae(hook_name=MLP)
    model.add_sae(second)
    model.add_sae(other)
    for error in (ValueError, AssertionError):
        with pytest.raises(error, match="2 hook names.*1 previous"):
            model.reset_saes(prev_saes=[first])
    model.reset_saes([RESID, MLP], [first, None])
    assert model.acts_to_saes == {RESID: first}
    assert get_deep_attr(model, RESID) is first
    assert isinstance(get_deep_attr(model, MLP), HookPoint)
    assert not second._forward_hooks


def test_an_attached_sae_can_be_used_again_inside(model, warned):
    sae = make_sae(hook_name=RESID)
    model.add_sae(sae)
    expected = model(TOKENS)
    torch.testing.assert_close(model.run_with_saes(TOKENS, saes=[sae]), expected)
    assert model.acts_to_saes == {RESID: sae}
    assert len(sae._forward_hooks) == 1
    torch.testing.assert_close(model(TOKENS), expected)
    assert not warned.records


def test_a_permanent_override_survives_a_use_inside(model):
    sae = make_sae(hook_name=RESID)
    model.add_sae(sae, use_error_term=True)
    with model.saes(sae, use_error_term=False):
        assert sae.use_error_term is False
    assert sae.use_error_term is True
    with model.saes(sae):
        assert sae.use_error_term is True
    assert sae.use_error_term is True
    model.reset_saes()
    assert sae.use_error_term is False


def test_another_sae_in_its_place_leaves_the_flag_of_the_first_alone(model):
    first, second = make_sae(hook_name=RESID), make_sae("topk", hook_name=RESID)
    model.add_sae(first, use_error_term=True)
    model.run_with_saes(TOKENS, saes=second)
    assert first.use_error_term is True
    assert model.acts_to_saes == {RESID: first}
    model.reset_saes()
    assert first.use_error_term is False


def test_two_saes_for_one_hook_are_undone_in_reverse(model, warned):
    previous = make_sae(hook_name=RESID)
    first, second = make_sae("gated", hook_name=RESID), make_sae("topk", hook_name=RESID)
    before = model(TOKENS)
    with model.saes([first, second], use_error_term=True):
        assert model.acts_to_saes == {RESID: second}
    assert_untouched(model, before)
    model.add_sae(previous)
    with model.saes([first, second]):
        pass
    assert model.acts_to_saes == {RESID: previous}
    assert get_deep_attr(model, RESID) is previous
    assert not warned.records
    with model.saes([first, first], use_error_term=True):
        assert first.use_error_term is True
    assert first.use_error_term is False
    assert not hasattr(first, "_original_use_error_term")


def test_resetting_inside_the_context_is_allowed(model, warned):
    before = model(TOKENS)
    with model.saes(make_sae(hook_name=RESID)):
        model.reset_saes()
    assert_untouched(model, before)
    assert not warned.records


def test_default_lists_are_not_shared(model):
    with model.saes():
        assert model.acts_to_saes == {}
    saes = [make_sae(hook_name=RESID)]
    model.run_with_saes(TOKENS, saes=saes)
    assert len(saes) == 1
    assert model.run_with_saes(TOKENS).shape == (2, 12, 32)


def test_caches(model):
    sae = make_sae(hook_name=RESID)
    one = TOKENS[:1]
    _, cache = model.run_with_cache_with_saes(one, saes=[sae], names_filter=lambda n: "sae" in n)
    assert isinstance(cache, ActivationCache)
    assert cache[f"{RESID}.hook_sae_acts_post"].shape == (1, 12, 48)
    _, cache = model.run_with_cache_with_saes(
        one, saes=[sae], return_cache_object=False, remove_batch_dim=True
    )
    assert type(cache) is dict
    assert cache[f"{RESID}.hook_sae_acts_post"].shape == (12, 48)


def test_a_detached_sae_has_its_own_hook_names_again(model):
    sae = make_sae(hook_name=RESID)
    model.run_with_saes(TOKENS, saes=sae)
    _, cache = sae.run_with_cache(torch.randn(3, 16))
    assert set(cache) == {f"hook_sae_{n}" for n in SAE_HOOKS - {"error"}}


def test_gradients_reach_the_features():
    model = make_model()
    sae = make_sae(hook_name=RESID)
    grads = {}

    def keep(grad, hook):
        grads[hook.name] = grad

    point = f"{RESID}.hook_sae_acts_post"
    with model.saes(sae, use_error_term=True), model.hooks(bwd_hooks=[(point, keep)]):
        model(TOKENS, return_type="loss").backward()
    assert grads[point].shape == (2, 12, 48)
    assert grads[point].abs().sum() > 0


class Pretrained(tuple):
    """The shape of what `SAE.from_pretrained` returns: a 3-tuple that stands for its SAE."""

    def __new__(cls, sae):
        return super().__new__(cls, (sae, {}, None))

    @property
    def sae(self):
        return self[0]


def test_the_pretrained_tuple_is_accepted_where_an_sae_is_expected(model):
    sae = make_sae(hook_name=RESID)
    expected = model.run_with_saes(TOKENS, saes=sae)
    pretrained = Pretrained(sae)
    for given in (pretrained, [pretrained], (sae,)):
        torch.testing.assert_close(model.run_with_saes(TOKENS, saes=given), expected)
    model.add_sae(pretrained)
    assert model.acts_to_saes == {RESID: sae}


def test_models_with_attached_saes_can_be_copied_and_pickled(model):
    model.add_sae(make_sae(hook_name=RESID))
    expected = model(TOKENS)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        torch.testing.assert_close(other(TOKENS), expected)
        other.reset_saes()
        assert not torch.allclose(other(TOKENS), expected)
    torch.testing.assert_close(model(TOKENS), expected)
