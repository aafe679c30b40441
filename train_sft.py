"""Train a language model on right answers to Reasoning Gym problems: python train_sft.py --help."""

from rgtrain.commands.sft_command import main

if __name__ == "__main__":
    main(program="python train_sft.py")
