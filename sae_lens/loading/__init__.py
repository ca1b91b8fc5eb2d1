"""Released SAEs as plain data: config, tensors, sparsity. Knows no SAE class."""
