"""The command `sae-lens`: one file per subcommand, each a thin layer over the library."""
