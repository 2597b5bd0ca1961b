"""Who evaluates: the loop of a worker, and how workers reach the study."""
