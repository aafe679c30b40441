"""The command `rgtrain` and its subcommands. Every `--help` is printed without importing the training stack."""
