"""Train a language model with reinforcement learning on Reasoning Gym problems.

python train_grpo.py --config-path configs/external_generalisation --config-name math_qwen_3b key=value ...
"""

import sys

from rgtrain.environment import fix_hash_seed

if __name__ == "__main__":
    fix_hash_seed()

import hydra
from omegaconf import DictConfig

from rgtrain.composition import checked_config, register_plugins
from rgtrain.errors import ConfigError

register_plugins()


@hydra.main(config_path="configs", config_name="quickstart", version_base="1.3")
def main(config: DictConfig) -> None:
    try:
        plan = checked_config(config)
        from rgtrain.verl_plugin.launch import train

        train(plan)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
