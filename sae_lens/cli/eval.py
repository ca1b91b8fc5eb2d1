"""`sae-lens eval TARGET`: how good a saved or released SAE is, as a table and as files."""

from __future__ import annotations

import argparse
from dataclasses import fields, replace

from sae_lens.analysis.eval_reports import table_lines
from sae_lens.evals import EvalConfig, evaluate_target, get_eval_everything_config

_PARTS = {
    "kl": "KL divergence of the model's predictions with the SAE in place",
    "ce_loss": "cross-entropy with the SAE in place",
    "l2_norms": "norms and shrinkage",
    "sparsity_metrics": "L0 and L1",
    "variance_metrics": "explained variance, errors, cosine similarity",
    "featurewise_density_statistics": "how often each feature fires",
    "featurewise_weight_based_metrics": "norms and biases of each feature",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `sae-lens eval`."""
    parser.add_argument(
        "target", metavar="TARGET", help="an SAE folder, or RELEASE/ID of a released SAE"
    )
    parser.add_argument("sae_id", metavar="ID", nargs="?", help="id, when TARGET is a release")
    parser.add_argument("--dataset", help="text to evaluate on (default: that of the training)")
    parser.add_argument(
        "--split", help="part of the dataset (default: train; heldout for the embedded text)"
    )
    parser.add_argument("--context_size", type=int, help="tokens per prompt (default: the SAE's)")
    parser.add_argument("--batch_size_prompts", type=int, default=8, help="default: %(default)s")
    parser.add_argument(
        "--n_eval_reconstruction_batches", type=int, default=10, help="default: %(default)s"
    )
    parser.add_argument(
        "--n_eval_sparsity_variance_batches", type=int, default=10, help="default: %(default)s"
    )
    for name, what in _PARTS.items():
        parser.add_argument(f"--compute_{name}", action="store_true", help=f"only {what}")
    parser.add_argument(
        "--output_dir", default="eval_results", help="for JSON and CSV files; default: %(default)s"
    )
    parser.add_argument("--device", help="default: the best there is")
    parser.add_argument("--quiet", action="store_true", help="no progress bars")


def eval_config_from(args: argparse.Namespace) -> EvalConfig:
    """Everything, or only the parts that were named."""
    switches = [f.name for f in fields(EvalConfig) if f.name.startswith("compute_")]
    chosen = {name: True for name in switches if getattr(args, name)}
    sizes = {
        "batch_size_prompts": args.batch_size_prompts,
        "n_eval_reconstruction_batches": args.n_eval_reconstruction_batches,
        "n_eval_sparsity_variance_batches": args.n_eval_sparsity_variance_batches,
    }
    if chosen:
        return replace(EvalConfig(), **sizes, **chosen)
    return replace(get_eval_everything_config(), **sizes, include_misc_metrics=True)


def run(args: argparse.Namespace) -> int:
    """Evaluate, write the files, print the table."""
    result = evaluate_target(
        args.target,
        args.sae_id,
        dataset=args.dataset,
        split=args.split,
        context_size=args.context_size,
        eval_config=eval_config_from(args),
        output_dir=args.output_dir,
        device=args.device,
        verbose=not args.quiet,
    )
    print("\n".join(table_lines(result)))
    print(f"\nwritten to {args.output_dir}")
    return 0
