"""Unpack the embedded default model: python utils/prepare_model.py OUTPUT_DIR"""

import sys
from pathlib import Path

from rgtrain.errors import ConfigError
from rgtrain.models import prepare_embedded_model

if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    try:
        print(prepare_embedded_model(Path(sys.argv[1])))
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
