"""Question files, and the scores of answers."""
