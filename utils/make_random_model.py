"""Make a randomly initialised model of a known model's shape: python utils/make_random_model.py --like NAME OUT

For measuring speed and memory where the model itself can't be had. bf16, with the embedded model's tokenizer.
"""

import argparse
from pathlib import Path

from rgtrain.errors import exit_on_config_error
from rgtrain.models.model_shapes import SHAPES
from rgtrain.models.random_models import make_random_model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, metavar="OUT", help="a new or empty folder")
    # Not argparse's choices: they suggest nothing.
    parser.add_argument("--like", required=True, metavar="NAME", help=f"one of {', '.join(SHAPES)}")
    parser.add_argument("--layers", type=int, metavar="N", help="only so many layers, for dry runs")
    parser.add_argument("--seed", type=int, default=0, help="(default: %(default)s)")
    arguments = parser.parse_args()
    with exit_on_config_error():
        print(make_random_model(arguments.out, like=arguments.like, num_layers=arguments.layers, seed=arguments.seed))


if __name__ == "__main__":
    main()
