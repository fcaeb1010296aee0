"""What `moedge bench worker` runs: one random model of a real size, the worker's engine, and transformers on the same tensors."""
