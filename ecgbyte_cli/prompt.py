"""Where version 0.1.0 had the prompt; it is in `ecgbyte_cli.model.prompt`, and takes a layout there."""

from ecgbyte_cli.model import prompt
from ecgbyte_cli.model.layout import Layout

__all__ = ["Prompt"]


class Prompt(prompt.Prompt):
    """A prompt made with the offset of the ECG ids alone, as then: its ECGs are tokens without marks of leads."""

    def __init__(self, text_tokenizer, layout, date=None):
        if not isinstance(layout, Layout):
            layout = Layout(layout)
            # the tokenizer of a model with marks knows that its ECG tokens stand behind them
            layout.first = getattr(text_tokenizer, "first_ecg_id", layout.first)
        super().__init__(text_tokenizer, layout, date)
