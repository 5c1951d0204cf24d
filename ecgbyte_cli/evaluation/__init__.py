"""Score answers, and compare them with controls."""
