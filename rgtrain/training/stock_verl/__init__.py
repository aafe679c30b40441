"""The engine `verl`: verl's own trainers, workers and servers with our problems, rewards and checkpoints."""
