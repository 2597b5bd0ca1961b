"""From a policy to its figures."""
