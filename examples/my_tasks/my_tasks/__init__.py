"""Own tasks for rgtrain. Importing the package registers its datasets with Reasoning Gym."""

from my_tasks import coins  # noqa: F401
