"""ECG-Byte as a command-line toolkit: ECGs to tokens, and a language model over tokens and text.

The names below are the public interface. Each is imported on first use, so that `import ecgbyte_cli` is
quick and needs no PyTorch.
"""

from importlib import import_module

__version__ = "0.2.0"

TYPE_CHECKING = False  # type checkers know the name; importing `typing` takes longer than all else here
if TYPE_CHECKING:
    from ecgbyte_cli.evaluation.metrics import score
    from ecgbyte_cli.failure import Failure
    from ecgbyte_cli.inference.conversation import Conversation
    from ecgbyte_cli.inference.session import Session
    from ecgbyte_cli.model.ecg_lm import ECGLM
    from ecgbyte_cli.model.model_folder import load_model
    from ecgbyte_cli.model.prompt import Prompt
    from ecgbyte_cli.questions.question_file import Question, read_questions
    from ecgbyte_cli.readers import Recording, Unusable, find
    from ecgbyte_cli.readers import read_recording as read
    from ecgbyte_cli.signal.corpus import learn_merges
    from ecgbyte_cli.signal.measure import measure
    from ecgbyte_cli.signal.measurement import Measurement
    from ecgbyte_cli.signal.preprocess import segments
    from ecgbyte_cli.signal.tokenizer import ECGTokenizer
    from ecgbyte_cli.storage.workdir import WorkDir

_FACE = {  # public name: its module, and its name there
    "Failure": ("failure", "Failure"),
    "Conversation": ("inference.conversation", "Conversation"),
    "Session": ("inference.session", "Session"),
    "ECGLM": ("model.ecg_lm", "ECGLM"),
    "load_model": ("model.model_folder", "load_model"),
    "Prompt": ("model.prompt", "Prompt"),
    "Question": ("questions.question_file", "Question"),
    "read_questions": ("questions.question_file", "read_questions"),
    "score": ("evaluation.metrics", "score"),
    "Recording": ("readers", "Recording"),
    "Unusable": ("readers", "Unusable"),
    "find": ("readers", "find"),
    "read": ("readers", "read_recording"),
    "learn_merges": ("signal.corpus", "learn_merges"),
    "segments": ("signal.preprocess", "segments"),
    "measure": ("signal.measure", "measure"),
    "Measurement": ("signal.measurement", "Measurement"),
    "ECGTokenizer": ("signal.tokenizer", "ECGTokenizer"),
    "WorkDir": ("storage.workdir", "WorkDir"),
}
__all__ = [
    "Conversation",
    "ECGLM",
    "ECGTokenizer",
    "Failure",
    "Measurement",
    "Prompt",
    "Question",
    "Recording",
    "Session",
    "Unusable",
    "WorkDir",
    "find",
    "learn_merges",
    "load_model",
    "measure",
    "read",
    "read_questions",
    "score",
    "segments",
]


def __getattr__(name: str) -> object:
    if name not in _FACE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, there = _FACE[name]
    return getattr(import_module(f"{__name__}.{module}"), there)


def __dir__() -> list[str]:
    return [*globals(), *_FACE]
