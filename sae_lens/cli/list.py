"""`sae-lens list [PATTERN]`: which SAEs have been published."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict

from sae_lens.cli.columns import columns
from sae_lens.loading.directory import near_releases, search_releases


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `sae-lens list`."""
    parser.add_argument(
        "pattern",
        metavar="PATTERN",
        nargs="?",
        help="part of a release's name, model, repository or ids; may hold * and ?",
    )
    parser.add_argument("--ids", action="store_true", help="list the ids of each release too")
    parser.add_argument("--json", action="store_true", help="print JSON instead of text")


def run(args: argparse.Namespace) -> int:
    """Print the releases that match; 1 when there are none."""
    releases = search_releases(args.pattern)
    if args.json:
        print(json.dumps([asdict(release) for release in releases], indent=2))
        return 0 if releases else 1
    if not releases:
        near = near_releases(args.pattern)
        hint = f" did you mean {' or '.join(near)}?" if near else ""
        raise ValueError(
            f"no release matches {args.pattern!r};{hint} "
            "`sae-lens list` without a pattern shows all"
        )
    if args.ids:
        for release in releases:
            print(f"{release.release}  ({release.model}, {release.repo_id})")
            print("\n".join(f"  {sae_id}" for sae_id in release.saes_map))
        return 0
    rows = [("RELEASE", "MODEL", "SAES", "REPOSITORY")]
    rows += [(r.release, r.model, str(len(r.saes_map)), r.repo_id) for r in releases]
    print("\n".join(columns(rows)))
    return 0
