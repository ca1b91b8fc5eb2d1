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
from sae_lens.demo_runner import D_IN, DemoSettings, _judge, _train, runner_config
from sae_lens.registry import get_sae_training_class
from sae_lens.saes import SAE
from sae_lens.training.features import TargetL0, TrainingFeatures

L0 = 32
D_SAE = 1024
MLP_HOOKS = {"hook_name": "blocks.2.ln2.hook_normalized", "hook_name_out": "blocks.2.hook_mlp_out"}
SETTINGS: dict[str, dict[str, Any]] = {
    "standard": {"l1_coefficient": 1.0},
    "gated": {"l1_coefficient": 1.0, "detach_auxiliary_decoder": True},
    "jumprelu": {
        "l0_coefficient": 0.5,
        "jumprelu_sparsity_loss_mode": "quadratic",
        "target_l0": L0,
        "jumprelu_init_threshold": 0.2,
        "jumprelu_bandwidth": 0.2,
    },
    "topk": {"k": L0},
    "batchtopk": {"k": L0},
    "matryoshka_batchtopk": {"k": L0, "matryoshka_widths": [D_SAE // 8, D_SAE // 2, D_SAE]},
    "abstopk": {"k": L0},
    "matching_pursuit": {"max_iterations": L0, "decoder_init_norm": 1.0},
    "transcoder": {"l1_coefficient": 0.05, **MLP_HOOKS},
    "batchtopk_transcoder": {"k": L0, **MLP_HOOKS},
    "batchtopk_skip_transcoder": {"k": L0, **MLP_HOOKS},
}
STEERED = ("standard", "gated", "transcoder")


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
            sae_config = config_class(
                d_in=D_IN,
                d_sae=D_SAE,
                normalize_activations="expected_average_only_in",
                **SETTINGS[name],
            )
            config = runner_config(sae_config, Path(folder), settings)
            if "hook_name" in SETTINGS[name]:
                config.hook_name = SETTINGS[name]["hook_name"]
            if name in STEERED:
                target = TrainingFeatures(target_l0=TargetL0(L0, rate=0.05, damping=2.0))
                config.features = target.to_dict()
            speed = _train(config)
            assert config.output_path is not None
            sae = SAE.load_from_disk(config.output_path).eval()
            found = _judge(sae, model, held_out, settings, config, speed)
            dead = f"{found.dead_features / D_SAE:.0%}"
            print(
                f"| {name} | {found.l0:.1f} | {found.explained_variance:.3f} | "
                f"{found.ce_loss_score:.3f} | {dead} | {found.tokens_per_second:,.0f} |",
                flush=True,
            )


if __name__ == "__main__":
    started = time.monotonic()
    main()
    print(f"\n{time.monotonic() - started:.0f} s in all")
