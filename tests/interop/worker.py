"""Write SAE folders, or read them and compare numbers, with whichever sae_lens this Python has.

    python worker.py write FOLDER CASE [CASE ...]      prints the cases written, as JSON
    python worker.py read FOLDER                       prints {case: "equal" or what went wrong}

It runs inside the environments of other releases, so it uses only what all of them have: config
dicts, `SAE`, `save_model`, and loading from a folder. Beside each folder's own files it keeps
`numbers.safetensors`: an input and what the writer made of it.
"""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

D, M, D_OUT = 16, 40, 12
FLAT = ("standard", "gated", "jumprelu", "topk")
NORMALIZATIONS = ("none", "constant_norm_rescale", "layer_norm")


def cases() -> dict[str, dict[str, Any]]:
    """All cases by name: what is special about their configs."""
    found: dict[str, dict[str, Any]] = {}
    for architecture in FLAT:
        for normalization in NORMALIZATIONS:
            found[f"{architecture}-{normalization}"] = {
                "architecture": architecture,
                "normalize_activations": normalization,
            }
        found[f"{architecture}-hook_z"] = {
            "architecture": architecture,
            "hook_name": "blocks.1.attn.hook_z",
        }
        found[f"{architecture}-no_b_dec"] = {
            "architecture": architecture,
            "apply_b_dec_to_input": False,
        }
    found["abstopk"] = {"architecture": "abstopk", "k": 5}
    found["abstopk-layer_norm"] = {
        "architecture": "abstopk",
        "k": 5,
        "normalize_activations": "layer_norm",
    }
    found["topk-rescaled"] = {
        "architecture": "topk",
        "k": 5,
        "rescale_acts_by_decoder_norm": True,
    }
    for normalization in NORMALIZATIONS:
        for name in ("transcoder", "skip_transcoder", "jumprelu_transcoder"):
            found[f"{name}-{normalization}"] = {
                "architecture": name,
                "d_out": D_OUT,
                "apply_b_dec_to_input": False,
                "normalize_activations": normalization,
            }
    found["jumprelu_skip_transcoder"] = {
        "architecture": "jumprelu_skip_transcoder",
        "d_out": D_OUT,
        "apply_b_dec_to_input": False,
    }
    for name, options in {
        "": {},
        "-few": {"max_iterations": 3},
        "-far": {"residual_threshold": 2.0},
        "-again": {"stop_on_duplicate_support": False, "max_iterations": 9},
    }.items():
        found[f"matching_pursuit{name}"] = {"architecture": "matching_pursuit", **options}
    for name, options in {
        "": {"kval_topk": 4},
        "-relu": {"sae_diff_type": "relu"},
        "-untied": {"tied_weights": False, "kval_topk": 6, "n_attn_layers": 2},
        "-no_b_dec": {"apply_b_dec_to_input": False},
    }.items():
        found[f"temporal{name}"] = {
            "architecture": "temporal",
            "n_heads": 2,
            "bottleneck_factor": 4,
            "activation_normalization_factor": 0.7,
            "normalize_activations": "constant_scalar_rescale",
            **options,
        }
    found |= trained_cases()
    return found


def trained_cases() -> dict[str, dict[str, Any]]:
    """SAEs that only this library trains, in the folders that it writes for use elsewhere."""
    found: dict[str, dict[str, Any]] = {}
    for kind in ("", "jumprelu_", "topk_", "batchtopk_"):
        for name in ("transcoder", "skip_transcoder"):
            for normalization in (*NORMALIZATIONS, "whitening"):
                found[f"trained {kind}{name}-{normalization}"] = {
                    "architecture": f"{kind}{name}",
                    "d_out": D_OUT,
                    "normalize_activations": normalization,
                }
    for name in ("standard", "gated", "jumprelu", "topk", "batchtopk", "matryoshka_batchtopk",
                 "abstopk"):  # fmt: skip
        found[f"trained {name}-whitening"] = {
            "architecture": name,
            "normalize_activations": "whitening",
        }
    for name in ("transcoder", "jumprelu_skip_transcoder"):
        found[f"trained {name}, checkpoint"] = {
            "architecture": name,
            "d_out": D_OUT,
            "checkpoint": True,
        }
    return found


def version() -> tuple[int, bool]:
    """(major version, whether this is the library under test)."""
    import sae_lens

    ours = (Path(sae_lens.__file__).parent / "loading" / "registry_file.py").exists()
    return int(sae_lens.__version__.split(".")[0]), ours


def flat_config(options: dict[str, Any]) -> dict[str, Any]:
    """The config of a 5.x SAE."""
    hook_name = options.get("hook_name", "blocks.1.hook_resid_pre")
    topk = options["architecture"] == "topk"
    return {
        "d_in": D,
        "d_sae": M,
        "dtype": "float32",
        "device": "cpu",
        "model_name": "toy",
        "hook_name": hook_name,
        "hook_layer": 1,
        "hook_head_index": None,
        "activation_fn_str": "topk" if topk else "relu",
        "activation_fn_kwargs": {"k": 5} if topk else {},
        "apply_b_dec_to_input": True,
        "finetuning_scaling_factor": False,
        "sae_lens_training_version": None,
        "prepend_bos": True,
        "dataset_path": "toy/data",
        "dataset_trust_remote_code": False,
        "context_size": 16,
        "normalize_activations": "none",
        "neuronpedia_id": None,
        "model_from_pretrained_kwargs": {},
        "seqpos_slice": [None],
        **options,
    }


def nested_config(options: dict[str, Any]) -> dict[str, Any]:
    """The config of a 6.x SAE."""
    options = dict(options)
    hook_name = options.pop("hook_name", "blocks.1.hook_resid_pre")
    config: dict[str, Any] = {
        "d_in": D,
        "d_sae": M,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": True,
        "normalize_activations": "none",
        "reshape_activations": "hook_z" if hook_name.endswith("_z") else "none",
        "metadata": {
            "sae_lens_version": "6.54.12",
            "sae_lens_training_version": "6.54.12",
            "model_name": "toy",
            "hook_name": hook_name,
            "context_size": 16,
            "prepend_bos": True,
            "dataset_path": "toy/data",
        },
    }
    if options["architecture"] == "topk":
        config["k"] = 5
    return {**config, **options}


def build(options: dict[str, Any]) -> Any:
    """An SAE with random weights, through the API of the release that is running."""
    from sae_lens import SAE

    major, ours = version()
    nested = (major >= 6 and not ours) or options["architecture"] not in FLAT or "k" in options
    if nested:
        sae = SAE.from_dict(nested_config(options))
    else:
        from sae_lens import SAEConfig

        sae = SAE(SAEConfig.from_dict(flat_config(options)))
    generator = torch.Generator().manual_seed(sum(map(ord, json.dumps(options, sort_keys=True))))
    with torch.no_grad():
        for name, parameter in sorted(sae.named_parameters()):
            values = torch.randn(parameter.shape, generator=generator) * 0.4
            if name == "threshold":
                values = values.abs()
            if options["architecture"] == "matching_pursuit" and name == "W_dec":
                values = values / values.norm(dim=-1, keepdim=True)
            parameter.copy_(values)
    return sae.eval()


def trained(options: dict[str, Any]) -> Any:
    """A training SAE of this library after some steps, with a whitening folded in if it has one."""
    from sae_lens.registry import get_sae_training_class
    from sae_lens.saes.whitening import fold_whitening
    from sae_lens.whitening import CovarianceEstimate

    options = {name: value for name, value in options.items() if name != "checkpoint"}
    sae_class, config_class = get_sae_training_class(options.pop("architecture"))
    if "k" in config_class.__dataclass_fields__:
        options["k"] = 5
    if "matryoshka_widths" in config_class.__dataclass_fields__:
        options["matryoshka_widths"] = [10, M]
    if "d_out" in options:
        options["hook_name_out"] = "blocks.1.hook_mlp_out"
    torch.manual_seed(1)
    sae = sae_class(
        config_class(
            d_in=D, d_sae=M, model_name="toy", hook_name="blocks.1.hook_resid_mid", **options
        )
    )
    optimizer = torch.optim.Adam(sae.parameters(), lr=0.01)
    batches = torch.randn(30, 64, D + options.get("d_out", 0)) * 2 + 0.5
    for batch in batches:
        output = sae.training_forward_pass(batch, 0.1)
        output.loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    if options.get("normalize_activations") == "whitening":
        maps = []
        for part in batches.flatten(0, 1).split([D, batches.shape[-1] - D], dim=-1):
            estimate = CovarianceEstimate()
            estimate.add(part @ torch.randn(part.shape[-1], part.shape[-1]) + 1)
            maps += [estimate.whitening()] if part.shape[-1] else []
        fold_whitening(sae, *maps)
    return sae.eval()


def inputs(options: dict[str, Any]) -> torch.Tensor:
    generator = torch.Generator().manual_seed(7)
    shape = (3, 6, 4, D // 4) if "hook_name" in options else (3, 6, D)
    return torch.randn(shape, generator=generator)


def numbers(sae: Any, x: torch.Tensor) -> dict[str, torch.Tensor]:
    """What the SAE makes of `x`."""
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        features = sae.encode(x)
        return {
            "in/x": x,
            "out/encode": features.to_dense() if features.is_sparse else features,
            "out/forward": sae(x),
        }


def write(folder: Path, names: list[str]) -> list[str]:
    """Save the SAEs of the named cases, each into a folder of its own."""
    for name in names:
        options = cases()[name]
        is_trained = name in trained_cases()
        sae = used = trained(options) if is_trained else build(options)
        target = folder / name
        target.mkdir(parents=True, exist_ok=True)
        if is_trained:
            from sae_lens import SAE

            used = SAE.from_components(*sae.inference_components()).eval()
        expected = numbers(used, inputs(options))
        if is_trained and not options.get("checkpoint"):
            sae.save_inference_model(target)
        else:
            (sae.save_model)(str(target))
        save_file({k: v.contiguous() for k, v in expected.items()}, target / "numbers.safetensors")
    return names


def read(folder: Path) -> dict[str, str]:
    """Load each folder and compare; says "equal" or what went wrong."""
    from sae_lens import SAE

    load = getattr(SAE, "load_from_disk", None) or SAE.load_from_pretrained
    results: dict[str, str] = {}
    for path in sorted(path for path in folder.iterdir() if path.is_dir()):
        expected = load_file(path / "numbers.safetensors")
        try:
            sae = load(str(path))
            got = numbers((sae[0] if isinstance(sae, tuple) else sae).eval(), expected["in/x"])
        except Exception as error:  # the result of this run, whatever it is
            results[path.name] = f"{type(error).__name__}: {str(error).splitlines()[0][:120]}"
            continue
        results[path.name] = "equal"
        for key in ("out/encode", "out/forward"):
            if got[key].shape != expected[key].shape:
                results[path.name] = f"{key}: shape {list(got[key].shape)}"
            elif not torch.allclose(got[key], expected[key], atol=1e-5, rtol=1e-4):
                difference = float((got[key] - expected[key]).abs().max())
                results[path.name] = f"{key} differs by {difference:.2g}"
    return results


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    mode, where, *chosen = sys.argv[1:]
    done = write(Path(where), chosen) if mode == "write" else read(Path(where))
    print("RESULT " + json.dumps(done))
