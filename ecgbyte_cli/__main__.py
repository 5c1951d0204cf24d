"""The command table of `ecgbyte`, and nothing else."""

from ecgbyte_cli.runtime.interrupts import EndingAtOnce

COMMANDS = {
    "synth": "Write synthetic 12-lead records with questions and answers.",
    "questions": "Make questions and answers from what a data set says.",
    "measure": "Measure rate, intervals, axes and amplitudes of recordings.",
    "symbolize": "Turn recordings into letters.",
    "learn": "Learn merges from letters (also: learn-merges).",
    "encode": "Turn letters into token ids.",
    "decode": "Turn token ids back into recordings, and say how faithful they are.",
    "finetune": "Train a language model on questions and ECG tokens.",
    "reinforce": "Train a model on answers of its own, by what they are worth.",
    "generate": "Answer many questions, and score the answers.",
    "explain": "Measure which attribution points at the true cause.",
    "chat": "Talk about one recording.",
    "continue": "Let a model go on where a recording is cut.",
    "draw": "Draw ECGs from words.",
    "serve": "Show ECGs on a page, and answer there.",
    "export": "Write the model as a plain Transformers folder.",
    "plot": "Draw an ECG, its tokens, or what a model looked at.",
    "import-tokenizer": "Import a tokenizer of ECG-Byte, ECG-Bench or ELM.",
    "info": "Tell what the work folder holds, and what to run next.",
}
ALIASES = {"learn-merges": "learn"}

with EndingAtOnce():  # importing takes long enough for a Ctrl-C
    from ecgbyte_cli.cli.app import Toolkit

    main = Toolkit(COMMANDS, ALIASES)

if __name__ == "__main__":
    main()
