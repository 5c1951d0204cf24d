"""Score answers, and the controls beside them."""
