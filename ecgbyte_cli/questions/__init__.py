"""Question files, and the scores of answers."""

from ecgbyte_cli.questions.question_file import Question, join_segments, read_questions

__all__ = ["Question", "join_segments", "read_questions"]
