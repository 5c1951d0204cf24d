"""Train a language model on ECG tokens and questions."""
