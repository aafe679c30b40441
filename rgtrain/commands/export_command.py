"""The command that converts a sharded training checkpoint to a Hugging Face model folder."""

import argparse
import logging
from collections.abc import Sequence

from rgtrain.errors import exit_on_config_error

_DESCRIPTION = """\
Convert a sharded training checkpoint to a Hugging Face model folder.

{program} FSDP_CHECKPOINT_DIR [HF_CONFIG_DIR] OUTPUT_DIR [--dtype bf16] [--verify]
"""


def main(arguments: Sequence[str] | None = None, *, program: str) -> None:
    """Run the command.

    Args:
        arguments: The words after the program, by default those of this process.
        program: The program's name in messages.
    """
    options = vars(_parser(program).parse_intermixed_args(arguments))
    logging.basicConfig(format="%(levelname)s: %(message)s")
    # After the arguments are read: torch and transformers take seconds to import.
    from rgtrain.checkpoints.export import export

    with exit_on_config_error():
        checkpoint_dir, output_dir = options.pop("checkpoint_dir"), options.pop("output_dir")
        print(export(checkpoint_dir, output_dir, **options, check_vllm=options["verify"], say=print))


def _parser(program: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=program,
        description=_DESCRIPTION.format(program=program),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
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
    parser.add_argument("--step", metavar="best|last|N", help="step of a run's folder (default: the last complete one)")
    parser.add_argument("--dtype", help="bf16, fp16 or fp32 (default: as in the checkpoint)")
    parser.add_argument("--lora", default="merged", help="merged into the weights, or a PEFT adapter (%(default)s)")
    parser.add_argument(
        "--max-shard-size", default="5GB", metavar="SIZE", help="largest size of one file (default: %(default)s)"
    )
    parser.add_argument(
        "--verify",
        action="store_true",
        help="read everything back, compare logits with the checkpoint's, and load the result by vLLM if installed",
    )
    parser.add_argument("--push-to", metavar="REPO", help="upload to this hub repository, private if it is new")
    parser.add_argument("--force", action="store_true", help="replace the model that OUTPUT_DIR holds")
    parser.add_argument(
        "--trust-checkpoint",
        action="store_true",
        help="let code in the checkpoint's files run, and export the model's own code",
    )
    return parser
