"""Train a language model with reinforcement learning on Reasoning Gym problems.

python train_grpo.py --config-path configs/external_generalisation --config-name math_qwen_3b key=value ...
"""

from rgtrain.environment import fix_hash_seed

if __name__ == "__main__":
    fix_hash_seed()

import hydra
from omegaconf import DictConfig

from rgtrain.composition import checked_config, register_plugins
from rgtrain.errors import input_errors_told

register_plugins()


@hydra.main(config_path="configs", config_name="quickstart", version_base="1.3")
def main(config: DictConfig) -> None:
    with input_errors_told():
        checked = checked_config(config)
        # Torch and Ray are imported only for a configuration without unknown keys.
        from rgtrain.verl_plugin.launch import train

        train(checked)


if __name__ == "__main__":
    main()
