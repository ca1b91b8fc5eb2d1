"""`python -m sae_lens` is the command `sae-lens`."""

import sys

from sae_lens.cli.main import main

sys.exit(main())
