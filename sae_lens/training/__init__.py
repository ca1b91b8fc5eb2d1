"""From batches to weights: trainer, optimiser, checkpoints, statistics, loggers."""
