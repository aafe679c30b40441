"""Train a language model with reinforcement learning on Reasoning Gym problems: python train_grpo.py --help."""

import os
import sys
from contextlib import suppress

from rgtrain.machine.environment import fix_hash_seed, require_stack

if __name__ == "__main__":
    require_stack()
    fix_hash_seed()

import hydra
from omegaconf import DictConfig

from rgtrain.config.catalogue import help_text
from rgtrain.config.composition import checked_config, register_plugins
from rgtrain.config.run_config import plain_config
from rgtrain.errors import exit_on_config_error


@hydra.main(config_path="configs", config_name="llama3.1_1b_grpo", version_base="1.3")
def main(config: DictConfig) -> None:
    with exit_on_config_error():
        checked = checked_config(config)
        if checked.preflight == "only":
            from rgtrain.preflight.preflight_report import run_preflight

            sys.exit(run_preflight(plain_config(checked)))
        # Torch and Ray are imported only for a configuration without unknown keys.
        from rgtrain.training.launch import train

        train(checked)


if __name__ == "__main__":
    if {"--help", "-h"} & set(sys.argv):
        print(help_text())
        sys.exit()
    with exit_on_config_error():
        register_plugins()
    main()
    # Skip Ray's slow atexit handler; the clean-up process removes what is left. The terminal may be gone.
    with suppress(OSError):
        sys.stdout.flush()
    os._exit(0)
