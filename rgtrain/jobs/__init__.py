"""How a long job says that it moves, and how it is ended if it does not: shared by training, evaluation and export."""
