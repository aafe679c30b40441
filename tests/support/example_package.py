"""Make the package examples/my_tasks importable for a while, and forget it afterwards."""

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from reasoning_gym.factory import CURRICULA, DATASETS

from rgtrain.paths import PROJECT_ROOT
from rgtrain.problems import plugins

EXAMPLE = PROJECT_ROOT / "examples" / "my_tasks"


@contextmanager
def example_package_importable() -> Iterator[None]:
    registries = (DATASETS, CURRICULA, plugins._registered)
    before = [dict(registry) for registry in registries]
    sys.path.insert(0, str(EXAMPLE))
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path.remove(str(EXAMPLE))
        for registry, content in zip(registries, before, strict=True):
            registry.clear()
            registry.update(content)
        for name in [name for name in sys.modules if name.partition(".")[0] == EXAMPLE.name]:
            del sys.modules[name]
