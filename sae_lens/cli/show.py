"""`sae-lens show FOLDER`: the facts, tensors and sparsity of a saved SAE, and whether it works."""

from __future__ import annotations

import argparse
import json
import warnings
from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, NamedTuple

from sae_lens.cli.columns import columns
from sae_lens.loading.describe import FolderDescription, describe_folder

if TYPE_CHECKING:
    from sae_lens.saes import SAE

_FACTS = (
    ("architecture", "architecture"),
    ("input width (d_in)", "d_in"),
    ("features (d_sae)", "d_sae"),
    ("activation function", "activation_fn_str"),
    ("its arguments", "activation_fn_kwargs"),
    ("dtype", "dtype"),
    ("model", "model_name"),
    ("models", "model_names"),
    ("hook", "hook_name"),
    ("hooks", "hook_names"),
    ("writes to", "hook_name_out"),
    ("writes to", "hook_names_out"),
    ("output width (d_out)", "d_out"),
    ("head", "hook_head_index"),
    ("context size", "context_size"),
    ("dataset", "dataset_path"),
    ("activations normalised by", "normalize_activations"),
    ("leaves out special tokens", "exclude_special_tokens"),
    ("leaves out norms above the median times", "norm_filter_multiple"),
    ("b_dec taken off the input", "apply_b_dec_to_input"),
    ("prepends BOS", "prepend_bos"),
    ("model loaded with", "model_from_pretrained_kwargs"),
    ("trained with version", "sae_lens_training_version"),
    ("Neuronpedia", "neuronpedia_id"),
)


class Check(NamedTuple):
    """One question asked of the folder."""

    question: str
    passed: bool
    detail: str


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `sae-lens show`."""
    parser.add_argument(
        "folder", metavar="FOLDER", help="an SAE folder: cfg.json and sae_weights.safetensors"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of text")


def run(args: argparse.Namespace) -> int:
    """Print what the folder holds; 1 when one of the checks fails."""
    description = describe_folder(args.folder)
    checks = run_checks(description)
    if args.json:
        print(json.dumps(_as_json(description, checks), indent=2, default=str))
    else:
        print("\n".join(_as_text(description, checks)))
    return 0 if all(check.passed for check in checks) else 1


def run_checks(description: FolderDescription) -> list[Check]:
    """Load the SAE and ask whether its numbers can be what they should be."""
    import torch

    from sae_lens.saes import SAE

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what it says about the model is among the facts
            sae = SAE.load_from_disk(description.path)
    except (ValueError, KeyError, TypeError, RuntimeError) as error:
        return [Check("loads", False, " ".join(str(error).split()))]
    checks = [Check("loads", True, type(sae).__name__)]
    broken = [n for n, p in sae.named_parameters() if not bool(torch.isfinite(p).all())]
    checks.append(
        Check("all weights finite", not broken, f"not in {', '.join(broken)}" if broken else "")
    )
    norms = sae.W_dec.detach().float().norm(dim=-1)
    checks.append(
        Check(
            "decoder rows",
            bool((norms > 0).any()),
            f"norms {norms.min():.4g} to {norms.max():.4g}, {int((norms == 0).sum())} empty",
        )
    )
    checks.append(_reconstructs(sae))
    if description.sparsity is not None:
        checks.append(
            Check(
                "sparsity has one value per feature",
                description.sparsity.features == sae.cfg.d_sae,
                f"{description.sparsity.features} values",
            )
        )
    return checks


def _reconstructs(sae: SAE) -> Check:
    """Whether a forward pass on made-up input gives finite numbers of the input's shape."""
    import torch

    generator = torch.Generator().manual_seed(0)
    sae.turn_off_forward_pass_hook_z_reshaping()
    shape = [sae.n_hooks, sae.cfg.d_in] if hasattr(sae, "n_hooks") else [sae.cfg.d_in]
    x = torch.randn(4, *shape, generator=generator).to(sae.device, sae.dtype)
    try:
        with torch.inference_mode():
            out = sae.eval()(x)
    except (ValueError, RuntimeError) as error:
        return Check("forward pass", False, " ".join(str(error).split()))
    fine = out.shape[0] == 4 and bool(torch.isfinite(out).all())
    return Check("forward pass", fine, "finite" if fine else "NaN or infinite values")


def _as_json(description: FolderDescription, checks: list[Check]) -> dict[str, Any]:
    return {
        "path": str(description.path),
        "config": description.config,
        "tensors": [asdict(tensor) for tensor in description.tensors],
        "sparsity": asdict(description.sparsity) if description.sparsity else None,
        "files": description.file_sizes,
        "checks": [check._asdict() for check in checks],
    }


def _as_text(description: FolderDescription, checks: list[Check]) -> list[str]:
    config, sparsity = description.config, description.sparsity
    lines = [f"SAE in {description.path}", ""]
    known = {**(config.get("metadata") or {}), **config}
    if known.get("hook_names"):
        known.pop("hook_name", None)  # the first of them
    facts = [(label, known.get(key)) for label, key in _FACTS]
    lines += _indented([(label, _fact(v)) for label, v in facts if v not in (None, {}, [])])
    lines += ["", "Tensors"]
    lines += _indented(
        [(t.name, "x".join(map(str, t.shape)) or "scalar", t.dtype) for t in description.tensors]
    )
    if sparsity is not None:
        share = _share_of(sparsity.features)
        lines += ["", "Sparsity (measured in training)"]
        lines += _indented(
            [
                ("features that never fired", share(sparsity.never_fired)),
                ("rarer than once in 100,000 tokens", share(sparsity.below_1e_5)),
                ("median log10 density", f"{sparsity.median_log10_density:.2f}"),
                ("active per token (L0)", f"{sparsity.expected_l0:.1f}"),
            ]
        )
    lines += ["", "Files"]
    lines += _indented([(name, _size(size)) for name, size in description.file_sizes.items()])
    lines += ["", "Checks"]
    lines += _indented([("ok" if c.passed else "FAILED", c.question, c.detail) for c in checks])
    return lines


def _fact(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        return ", ".join(f"{key}={inner}" for key, inner in value.items())
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return str(value)


def _share_of(total: int) -> Callable[[int], str]:
    return lambda count: f"{count:,} of {total:,} ({count / total:.1%})"


def _size(size: int) -> str:
    return f"{size / 1e6:,.1f} MB" if size >= 1e5 else f"{size:,} bytes"


def _indented(rows: list[tuple[str, ...]]) -> list[str]:
    return columns(rows, indent="  ")
