"""Token pruning: scores, selection, alignment across the gaps, and how a policy meets a model."""
