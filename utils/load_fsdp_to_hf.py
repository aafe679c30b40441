#!/usr/bin/env python3
"""Convert a sharded training checkpoint to a Hugging Face model folder.

python utils/load_fsdp_to_hf.py FSDP_CHECKPOINT_DIR [HF_CONFIG_DIR] OUTPUT_DIR [--dtype bf16]
"""

import argparse

from rgtrain.errors import input_errors_told


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "checkpoint_dir",
        metavar="FSDP_CHECKPOINT_DIR",
        help="a global_step_N folder, its actor/, or the folder of the steps (then the last complete one)",
    )
    parser.add_argument(
        "hf_config_dir",
        metavar="HF_CONFIG_DIR",
        nargs="?",
        help="folder with config.json and tokenizer (default: the checkpoint's own huggingface/ folder)",
    )
    parser.add_argument("output_dir", metavar="OUTPUT_DIR", help="a new or empty folder")
    parser.add_argument("--dtype", help="bf16, fp16 or fp32 (default: as in the checkpoint)")
    return parser.parse_intermixed_args()


def main() -> None:
    arguments = parse_arguments()
    # After the arguments are read: torch and transformers take seconds to import.
    from rgtrain.checkpoints import export

    with input_errors_told():
        output = export(
            arguments.checkpoint_dir, arguments.output_dir, hf_config_dir=arguments.hf_config_dir, dtype=arguments.dtype
        )
        print(output)


if __name__ == "__main__":
    main()
