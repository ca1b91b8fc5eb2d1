"""`sae-lens dashboard TARGET`: a page on what an SAE's features fire on."""

from __future__ import annotations

import argparse

from sae_lens.cli.errors import UsageError

_EPILOG = """\
The page is one HTML file that opens from disk. On the SAEs of `sae-lens demo`:

  sae-lens dashboard demo_output/topk --features 0-99 --output features.html
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `sae-lens dashboard`."""
    from sae_lens.analysis.dashboards import DashboardSettings
    from sae_lens.config.arguments import add_config_arguments

    parser.epilog = _EPILOG
    parser.add_argument(
        "target", metavar="TARGET", help="an SAE folder, or RELEASE/ID of a released SAE"
    )
    parser.add_argument("sae_id", metavar="ID", nargs="?", help="id, when TARGET is a release")
    parser.add_argument(
        "--features", help="indices and ranges, such as 0-99,512; all when not given"
    )
    parser.add_argument("--output", default="dashboard.html", help="default: %(default)s")
    parser.add_argument("--json", metavar="FILE", help="write the same data as JSON too")
    parser.add_argument("--dataset", help="text to watch the SAE on (default: its training's)")
    parser.add_argument(
        "--split", help="part of the dataset (default: train; heldout for the embedded text)"
    )
    parser.add_argument("--device", default="cpu", help="default: %(default)s")
    add_config_arguments(parser, DashboardSettings)


def run(args: argparse.Namespace) -> int:
    """Watch the features, write the page."""
    from sae_lens.analysis.dashboards import (
        DashboardSettings,
        collect_feature_data,
        write_dashboard_html,
        write_dashboard_json,
    )
    from sae_lens.analysis.targets import ModelLoader, load_target, text_for
    from sae_lens.config.arguments import config_from_values, config_values

    settings = config_from_values(DashboardSettings, config_values(DashboardSettings, args))
    features = parse_features(args.features)
    sae, *_ = load_target(args.target, args.sae_id, device=args.device)
    text, *_ = text_for(sae, args.dataset, args.split)
    model = ModelLoader(args.device).for_sae(sae)
    data = collect_feature_data(sae, model, text, features, settings=settings)
    print(f"written to {write_dashboard_html(data, args.output)}")
    if args.json:
        print(f"written to {write_dashboard_json(data, args.json)}")
    return 0


def parse_features(text: str | None) -> list[int] | None:
    """`0-3,7` as [0, 1, 2, 3, 7]; None for all features.

    Raises:
        UsageError: for anything else.
    """
    if text is None:
        return None
    found: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdigit() or (dash and not last.isdigit()):
            raise UsageError(f"{part!r} is no feature; write indices and ranges, such as 0-99,512")
        stop = int(last) if dash else int(first)
        if stop < int(first):
            raise UsageError(f"{part!r} runs backwards; write {last}-{first}")
        found += range(int(first), stop + 1)
    return found
