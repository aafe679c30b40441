#!/usr/bin/env python3
"""Convert a sharded training checkpoint to a Hugging Face model folder.

python utils/load_fsdp_to_hf.py FSDP_CHECKPOINT_DIR [HF_CONFIG_DIR] OUTPUT_DIR [--dtype bf16] [--verify]
"""

import argparse
import logging

from rgtrain.errors import exit_on_config_error


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "checkpoint_dir",
        metavar="FSDP_CHECKPOINT_DIR",
        help="a global_step_N folder, its actor/ or critic/, or the run's folder",
    )
    parser.add_argument(
        "hf_config_dir",
        metavar="HF_CONFIG_DIR",
        nargs="?",
        help="folder with config.json and tokenizer (default: the checkpoint's own huggingface/ folder)",
    )
    parser.add_argument("output_dir", metavar="OUTPUT_DIR", help="a new or empty folder")
    parser.add_argument("--step", metavar="best|last|N", help="of a run's folder (default: the last complete step)")
    parser.add_argument("--dtype", help="bf16, fp16 or fp32 (default: as in the checkpoint)")
    parser.add_argument("--lora", default="merged", help="merged into the weights, or a PEFT adapter (%(default)s)")
    parser.add_argument("--max-shard-size", default="5GB", metavar="SIZE", help="of one file (default: %(default)s)")
    parser.add_argument("--verify", action="store_true", help="read all back, compare logits with the checkpoint's")
    parser.add_argument("--push-to", metavar="REPO", help="upload to this repository of the hub, private if it is new")
    parser.add_argument("--force", action="store_true", help="replace the model that OUTPUT_DIR holds")
    parser.add_argument(
        "--trust-checkpoint",
        action="store_true",
        help="let code in the checkpoint's files run, and export the model's own code",
    )
    return parser.parse_intermixed_args()


def main() -> None:
    arguments = vars(parse_arguments())
    logging.basicConfig(format="%(levelname)s: %(message)s")
    # After the arguments are read: torch and transformers take seconds to import.
    from rgtrain.checkpoints.export import export

    with exit_on_config_error():
        print(export(arguments.pop("checkpoint_dir"), arguments.pop("output_dir"), **arguments, say=print))


if __name__ == "__main__":
    main()
