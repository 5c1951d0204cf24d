"""The command table of `ecgbyte`, and nothing else."""

from ecgbyte_cli.runtime.interrupts import EndingAtOnce

COMMANDS = {  # name: (group in `ecgbyte --help`, summary)
    "synth": ("Data", "Write synthetic 12-lead records with questions and answers."),
    "questions": ("Data", "Build questions and answers from a data set's labels."),
    "measure": ("Data", "Measure rate, intervals, axes and amplitudes of recordings."),
    "symbolize": ("Tokenizer", "Turn recordings into letters."),
    "learn": ("Tokenizer", "Learn merges from letters (also: learn-merges)."),
    "encode": ("Tokenizer", "Turn letters into token ids."),
    "decode": ("Tokenizer", "Turn token ids back into recordings, and measure the error."),
    "finetune": ("Model", "Train a language model on questions and ECG tokens."),
    "reinforce": ("Model", "Train a model with rewards on its own sampled answers."),
    "generate": ("Use", "Answer many questions, and score the answers."),
    "explain": ("Look inside", "Measure how well attributions find the cause of an answer."),
    "findings": ("Use", "Write a table of findings in many recordings."),
    "compare": ("Use", "Compare two findings tables or two answer files."),
    "controls": ("Use", "Write twins of recordings, to test whether a model reads the ECG."),
    "score": ("Use", "Score the answers of any model."),
    "chat": ("Use", "Ask a model about a recording."),
    "continue": ("Use", "Continue a recording beyond a cut."),
    "draw": ("Use", "Generate ECGs from words."),
    "serve": ("Use", "Show ECGs and answer questions on a web page."),
    "export": ("Model", "Write the model as a plain Transformers folder."),
    "push": ("Model", "Upload a model folder to the Hugging Face Hub."),
    "plot": ("Look inside", "Plot an ECG, its tokens, or the evidence for an answer."),
    "import-tokenizer": ("Tokenizer", "Import a tokenizer of ECG-Byte, ECG-Bench or ELM."),
    "info": ("Look inside", "Show the contents of the work folder, and the next command."),
}
ALIASES = {"learn-merges": "learn"}

with EndingAtOnce():  # the import takes long enough for a Ctrl-C
    from ecgbyte_cli.cli.app import Toolkit

    main = Toolkit(COMMANDS, ALIASES)

if __name__ == "__main__":
    main()
