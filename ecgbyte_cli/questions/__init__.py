"""Questions about ECGs: question files, and questions generated from data sets."""

from ecgbyte_cli.questions.question_file import Question, read_questions
from ecgbyte_cli.questions.question_segments import join_segments

__all__ = ["Question", "join_segments", "read_questions"]
