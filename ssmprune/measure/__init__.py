"""FLOPs, latency and accuracy of a model, dense or pruned."""
