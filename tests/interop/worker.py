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
        sae = build(options)
        expected = numbers(sae, inputs(options))
        target = folder / name
        target.mkdir(parents=True, exist_ok=True)
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
