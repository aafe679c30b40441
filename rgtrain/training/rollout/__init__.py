"""Generate completions, judge them, and hand them to verl's trainer."""
