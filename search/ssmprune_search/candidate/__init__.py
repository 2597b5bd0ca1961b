"""What a search compares: policies, their figures, their cost, and the front."""
