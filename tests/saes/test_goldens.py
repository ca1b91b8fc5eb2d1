"""The numbers of the original library, on tiny weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from sae_lens.saes import SAE, SAEConfig, TrainingSAE, TrainingSAEConfig, TrainStepInput
from tests.helpers import GOLDENS, assert_close, golden_cases, load_golden, tensors_under

# Folds of these corrected the function: features scale by the norms here, and did not there.
CORRECTED_FOLDS = ("sae-gated", "sae-jumprelu")
DISK_CASES = [
    path
    for path in sorted(GOLDENS.glob("v*/disk*"))
    if path.name.startswith("disk5") or path.name.split("-")[1] in ("standard", "gated", "jumprelu")
] + sorted(GOLDENS.glob("v6/disk6-topk-*"))


def _name(path: Path) -> str:
    return path.stem


def _build(path: Path) -> tuple[SAE, dict, dict]:
    case, tensors = load_golden(path)
    sae = SAE(SAEConfig.from_dict(case["cfg"]))
    sae.load_state_dict(tensors_under(tensors, "w/"))
    return sae.eval(), case, tensors


@pytest.mark.parametrize("path", golden_cases("sae"), ids=_name)
@torch.no_grad()
def test_encode_decode_forward_and_cache(path: Path):
    sae, case, tensors = _build(path)
    x = tensors["in/x"]
    features = sae.encode(x)
    assert_close(features, tensors["out/encode"])
    assert_close(sae.decode(features), tensors["out/decode"])
    assert_close(sae(x), tensors["out/forward"])
    if "cache_keys" not in case:
        return
    _, cache = sae.run_with_cache(x)
    assert list(cache.keys()) == case["cache_keys"]
    for name in cache:
        assert_close(cache[name], tensors[f"out/cache/{name}"])


@pytest.mark.parametrize(
    "path",
    [p for p in golden_cases("sae") if "out/forward_error_term" in load_golden(p)[1]],
    ids=_name,
)
@torch.no_grad()
def test_error_term(path: Path):
    sae, _, tensors = _build(path)
    x = tensors["in/x"]
    sae.use_error_term = True
    assert_close(sae(x), tensors["out/forward_error_term"])
    ablate = [("hook_sae_acts_post", lambda value, hook: value * 0)]
    assert_close(sae.run_with_hooks(x, fwd_hooks=ablate), tensors["out/forward_error_term_ablated"])


@pytest.mark.parametrize("path", golden_cases("sae"), ids=_name)
@torch.no_grad()
def test_folds(path: Path):
    sae, case, tensors = _build(path)
    x = tensors["in/x"]
    if "out/folded_W_dec" in tensors:
        sae.fold_W_dec_norm()
        assert_close(sae.W_dec, tensors["out/folded_W_dec"])
        if not path.stem.startswith(CORRECTED_FOLDS):
            assert_close(sae.encode(x), tensors["out/folded_encode"])
        if case["cfg"]["architecture"] != "topk":
            assert_close(sae(x), tensors["out/forward"], atol=1e-4, rtol=1e-3)
    if "out/act_folded_forward" in tensors:
        sae, _, _ = _build(path)
        sae.fold_activation_norm_scaling_factor(3.0)
        assert_close(sae(x), tensors["out/act_folded_forward"])


def _check_gradients(sae: TrainingSAE, tensors: dict, atol: float, rtol: float) -> None:
    checked = 0
    for name, parameter in sae.named_parameters():
        if f"out/grad/{name}" in tensors:
            gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            assert_close(gradient, tensors[f"out/grad/{name}"], atol=atol, rtol=rtol)
            checked += 1
    # where the original let the auxiliary residual pull on the output, no gradient is recorded
    assert checked == sum(name.startswith("out/grad/") for name in tensors)


@pytest.mark.parametrize("path", golden_cases("train_step"), ids=_name)
def test_training_step(path: Path):
    case, tensors = load_golden(path)
    sae = TrainingSAE(TrainingSAEConfig.from_dict(case["cfg"]))
    sae.load_state_dict(tensors_under(tensors, "w/"))
    output = sae.training_forward_pass(
        sae_in=tensors["in/x"],
        current_l1_coefficient=case["coefficient"],
        dead_neuron_mask=tensors.get("in/dead_neuron_mask"),
    )
    output.loss.backward()
    assert sorted(output.losses) == sorted(case["losses"])
    assert_close(output.loss, tensors["out/loss"])
    assert_close(output.sae_out, tensors["out/sae_out"])
    assert_close(output.feature_acts.to_dense(), tensors["out/feature_acts"])
    for name in case["losses"]:
        assert_close(output.losses[name], tensors[f"out/losses/{name}"])
    _check_gradients(sae, tensors, atol=2e-5, rtol=5e-4)


@pytest.mark.parametrize("path", golden_cases("train6"), ids=_name)
def test_training_step_in_v6_form(path: Path):
    case, tensors = load_golden(path)
    sae = TrainingSAE.from_dict({**case["cfg"], "architecture": case["architecture"]})
    assert sae.cfg.form == "v6"
    sae.load_state_dict(tensors_under(tensors, "w/"), strict=False)
    output = sae.training_forward_pass(
        TrainStepInput(
            sae_in=tensors["in/x"],
            coefficients=case["coefficients"],
            dead_neuron_mask=tensors["in/dead_neuron_mask"],
            n_training_steps=10,
        )
    )
    output.loss.backward()
    assert_close(output.loss, tensors["out/loss"], 1e-4, 1e-3)
    assert_close(output.sae_out, tensors["out/sae_out"], 1e-4, 1e-3)
    _check_gradients(sae, tensors, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("folder", DISK_CASES, ids=lambda path: path.name)
@pytest.mark.parametrize("method", ["load_from_disk", "load_from_pretrained"])
@torch.no_grad()
def test_folders_of_the_original(folder: Path, method: str, tmp_path: Path):
    from safetensors.torch import load_file

    tensors = load_file(folder / "expected.safetensors")
    sae = getattr(SAE, method)(folder).eval()
    assert_close(sae.encode(tensors["in/x"]), tensors["out/encode"])
    assert_close(sae(tensors["in/x"]), tensors["out/forward"])
    sae.save_model(tmp_path)
    assert_close(SAE.load_from_disk(tmp_path)(tensors["in/x"]), tensors["out/forward"])
