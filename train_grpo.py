"""Train a language model with reinforcement learning on Reasoning Gym problems: python train_grpo.py --help."""

from rgtrain.commands.train_command import main

if __name__ == "__main__":
    main(program="python train_grpo.py")
