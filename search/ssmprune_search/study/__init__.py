"""What has been proposed, by whom, and what came of it."""
