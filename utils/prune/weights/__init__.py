"""Which single weights are removed, and how they are spread over the tensors."""
