"""Every architecture on the embedded model, judged on held-out text.

`python -m benchmarks.architectures` prints a table in Markdown. Nothing is downloaded.
"""

from __future__ import annotations

import argparse
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

from sae_lens.activations.embedded import load_embedded_model, load_embedded_text
from sae_lens.demo_runner import (
    D_IN,
    DemoSettings,
    judge_on_held_out,
    runner_config,
    train_timed,
)
from sae_lens.registry import get_sae_training_class
from sae_lens.saes import SAE
from sae_lens.synthetic.architectures import is_steered
from sae_lens.training.features import TargetL0, TrainingFeatures

L0 = 32
D_SAE = 1024
MLP_HOOKS = {"hook_name": "blocks.2.ln2.hook_normalized", "hook_name_out": "blocks.2.hook_mlp_out"}
LAYERS = range(4)
RESIDUALS = {"hook_names": [f"blocks.{layer}.hook_resid_post" for layer in LAYERS]}
ALL_MLPS = {
    "d_sae": 2 * D_SAE,
    "hook_names": [f"blocks.{layer}.ln2.hook_normalized" for layer in LAYERS],
    "hook_names_out": [f"blocks.{layer}.hook_mlp_out" for layer in LAYERS],
}
STEPS = {"jumprelu_init_threshold": 0.2, "jumprelu_bandwidth": 0.2, "l0_coefficient": 0.5}
TOWARDS_L0 = {"jumprelu_sparsity_loss_mode": "quadratic", "target_l0": L0}
SETTINGS: dict[str, dict[str, Any]] = {
    "standard": {"l1_coefficient": 1.0},
    "gated": {"l1_coefficient": 1.0, "detach_auxiliary_decoder": True},
    "jumprelu": {**STEPS, **TOWARDS_L0},
    "topk": {"k": L0},
    "batchtopk": {"k": L0},
    "matryoshka_batchtopk": {"k": L0, "matryoshka_widths": [D_SAE // 8, D_SAE // 2, D_SAE]},
    "abstopk": {"k": L0},
    "matching_pursuit": {"max_iterations": L0, "decoder_init_norm": 1.0},
    "transcoder": {"l1_coefficient": 1.0, **MLP_HOOKS},
    "skip_transcoder": {"l1_coefficient": 1.0, **MLP_HOOKS},
    "jumprelu_transcoder": {**STEPS, **TOWARDS_L0, **MLP_HOOKS},
    "jumprelu_skip_transcoder": {**STEPS, **TOWARDS_L0, **MLP_HOOKS},
    "topk_transcoder": {"k": L0, **MLP_HOOKS},
    "topk_skip_transcoder": {"k": L0, **MLP_HOOKS},
    "batchtopk_transcoder": {"k": L0, **MLP_HOOKS},
    "batchtopk_skip_transcoder": {"k": L0, **MLP_HOOKS},
    "crosscoder": {"l1_coefficient": 1.0, **RESIDUALS},
    "jumprelu_crosscoder": {**STEPS, **TOWARDS_L0, "l0_coefficient": 2.0, **RESIDUALS},
    "topk_crosscoder": {"k": L0, **RESIDUALS},
    "batchtopk_crosscoder": {"k": L0, **RESIDUALS},
    "cross_layer_transcoder": {"l1_coefficient": 1.0, **ALL_MLPS},
    "jumprelu_cross_layer_transcoder": {
        "l0_coefficient": 0.5,
        "jumprelu_init_threshold": 0.05,
        "jumprelu_bandwidth": 0.5,
        **ALL_MLPS,
    },
    # k is for each layer
    "topk_cross_layer_transcoder": {"k": L0 // len(LAYERS), **ALL_MLPS},
    "batchtopk_cross_layer_transcoder": {"k": L0 / len(LAYERS), **ALL_MLPS},
}


def main() -> None:
    """Train, judge and print one row after the other."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=500_000, help="of training, for each")
    parser.add_argument("--eval-prompts", type=int, default=32, help="held-out prompts")
    parser.add_argument("--architectures", nargs="+", default=list(SETTINGS), choices=SETTINGS)
    args = parser.parse_args()
    settings = DemoSettings(training_tokens=args.tokens, eval_prompts=args.eval_prompts)
    warnings.filterwarnings("ignore")
    model = load_embedded_model()
    held_out = load_embedded_text(split="heldout")
    columns = ["architecture", "L0", "explained variance", "CE-loss score", "dead", "tokens/s"]
    print("| " + " | ".join(columns) + " |\n|" + "---|" * len(columns), flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for name in args.architectures:
            config_class = get_sae_training_class(name).config_class
            values = {"d_in": D_IN, "d_sae": D_SAE, **SETTINGS[name]}
            sae_config = config_class(normalize_activations="expected_average_only_in", **values)
            config = runner_config(sae_config, Path(folder), settings)
            if sae_config.hook_name:
                config.hook_name, config.hook_layer = sae_config.hook_name, sae_config.hook_layer
            if is_steered(name) and "target_l0" not in SETTINGS[name]:
                target = TrainingFeatures(target_l0=TargetL0(L0))
                config.features = target.to_dict()
            speed = train_timed(config)
            assert config.output_path is not None
            sae = SAE.load_from_disk(config.output_path).eval()
            found = judge_on_held_out(sae, model, held_out, settings, config, speed)
            dead = f"{found.dead_features / sae.cfg.d_sae:.0%}"
            print(
                f"| {name} | {found.l0:.1f} | {found.explained_variance:.3f} | "
                f"{found.ce_loss_score:.3f} | {dead} | {found.tokens_per_second:,.0f} |",
                flush=True,
            )


if __name__ == "__main__":
    started = time.monotonic()
    main()
    print(f"\n{time.monotonic() - started:.0f} s in all")
