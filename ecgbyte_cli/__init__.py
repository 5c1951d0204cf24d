"""ECG-Byte as a command-line toolkit: ECGs to tokens, and a language model over tokens and text.

The names below are the public face; each is imported when it is first used, so that `import ecgbyte_cli` is
quick and needs no PyTorch.
"""

from importlib import import_module

__version__ = "0.1.0"

TYPE_CHECKING = False  # type checkers know the name; the module `typing` takes longer than all else here
if TYPE_CHECKING:
    from ecgbyte_cli.failure import Failure
    from ecgbyte_cli.model.conversation import Conversation
    from ecgbyte_cli.model.ecg_lm import ECGLM
    from ecgbyte_cli.model.ecg_lm import load as load_model
    from ecgbyte_cli.model.prompt import Prompt
    from ecgbyte_cli.questions.files import Question
    from ecgbyte_cli.questions.files import read as read_questions
    from ecgbyte_cli.questions.metrics import score
    from ecgbyte_cli.readers import Recording, Unusable, find, read
    from ecgbyte_cli.signal.corpus import learn_merges
    from ecgbyte_cli.signal.measure import measure
    from ecgbyte_cli.signal.measurement import Measurement
    from ecgbyte_cli.signal.preprocess import segments
    from ecgbyte_cli.signal.tokenizer import ECGTokenizer
    from ecgbyte_cli.workdir import WorkDir

_FACE = {  # name to the module that it is in, and what it is called there
    "Failure": ("failure", "Failure"),
    "Conversation": ("model.conversation", "Conversation"),
    "ECGLM": ("model.ecg_lm", "ECGLM"),
    "load_model": ("model.ecg_lm", "load"),
    "Prompt": ("model.prompt", "Prompt"),
    "Question": ("questions.files", "Question"),
    "read_questions": ("questions.files", "read"),
    "score": ("questions.metrics", "score"),
    "Recording": ("readers", "Recording"),
    "Unusable": ("readers", "Unusable"),
    "find": ("readers", "find"),
    "read": ("readers", "read"),
    "learn_merges": ("signal.corpus", "learn_merges"),
    "segments": ("signal.preprocess", "segments"),
    "measure": ("signal.measure", "measure"),
    "Measurement": ("signal.measurement", "Measurement"),
    "ECGTokenizer": ("signal.tokenizer", "ECGTokenizer"),
    "WorkDir": ("workdir", "WorkDir"),
}
# modules that scripts of version 0.1.0 import from here, and where they are now
_MOVED = {"records": "readers", "preprocess": "signal.preprocess", "ecg_lm": "model.ecg_lm"}
__all__ = [
    "Conversation",
    "ECGLM",
    "ECGTokenizer",
    "Failure",
    "Measurement",
    "Prompt",
    "Question",
    "Recording",
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
    if name in _MOVED:
        return import_module(f"{__name__}.{_MOVED[name]}")
    if name not in _FACE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, there = _FACE[name]
    return getattr(import_module(f"{__name__}.{module}"), there)


def __dir__() -> list[str]:
    return [*globals(), *_FACE]
