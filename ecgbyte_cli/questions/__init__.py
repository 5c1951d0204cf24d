"""Question files, and the scores of answers."""

from ecgbyte_cli.questions.files import Question, join, read

__all__ = ["Question", "join", "read"]
