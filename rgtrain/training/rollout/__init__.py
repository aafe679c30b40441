"""Generate completions, score them, and pass them to verl's trainer."""
