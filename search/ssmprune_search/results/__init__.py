"""What a run has come to: front, exports, fine-tuned members."""
