"""`sae-lens upload`: SAE folders into a repository on the Hugging Face Hub."""

from __future__ import annotations

import argparse
from pathlib import Path

from sae_lens.cli.errors import UsageError
from sae_lens.loading.describe import describe_folder

_EPILOG = """\
The token of `huggingface-cli login` or of the variable HF_TOKEN is used. Each folder becomes a
folder of the repository, named after the hook, or as ID=FOLDER says:

  sae-lens upload me/my-saes layer2=demo_output/topk --dry-run
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `sae-lens upload`."""
    parser.epilog = _EPILOG
    parser.add_argument("repo_id", metavar="REPO", help="owner/name; made if it does not exist")
    parser.add_argument(
        "folders", metavar="[ID=]FOLDER", nargs="+", help="SAE folders, each with its id"
    )
    parser.add_argument("--revision", default="main", help="the branch (default: %(default)s)")
    parser.add_argument("--private", action="store_true", help="make a new repository private")
    parser.add_argument("--no-readme", action="store_true", help="add no model card")
    parser.add_argument(
        "--dry-run", action="store_true", help="say what would be sent, send it not"
    )


def run(args: argparse.Namespace) -> int:
    """Upload, or say what would be sent."""
    from sae_lens.loading.publish import upload_saes_to_huggingface

    plan = upload_saes_to_huggingface(
        named_folders(args.folders),
        args.repo_id,
        hf_revision=args.revision,
        add_default_readme=not args.no_readme,
        private=args.private,
        dry_run=args.dry_run,
    )
    print(plan.describe())
    print("nothing was sent" if args.dry_run else f"sent to {args.repo_id}")
    return 0


def named_folders(arguments: list[str]) -> dict[str, Path]:
    """`ID=FOLDER`, or a folder alone, whose id is then the name of its hook.

    Raises:
        UsageError: when two folders would get the same id.
    """
    found: dict[str, Path] = {}
    for argument in arguments:
        sae_id, equals, folder = argument.partition("=")
        if not equals:
            folder = argument
            sae_id = describe_folder(folder).config.get("hook_name") or Path(folder).name
        if sae_id in found:
            raise UsageError(
                f"{found[sae_id]} and {folder} would both become {sae_id!r}; write ID=FOLDER"
            )
        found[sae_id] = Path(folder)
    return found
