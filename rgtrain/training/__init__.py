"""The adapter to verl: everything verl is told goes through its registries and configuration keys."""
