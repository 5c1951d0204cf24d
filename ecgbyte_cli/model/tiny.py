"""Build `--model tiny` and `--model small`: small decoders and their text tokenizers, untrained."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from ecgbyte_cli.questions import phrasings
from ecgbyte_cli.questions.findings import ALL_FINDINGS, STATEMENTS
from ecgbyte_cli.questions.sources.base import RANGES
from ecgbyte_cli.signal.simulate import CONDITIONS

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

WORDS = 1024  # tokens in the text vocabulary
OFTEN = 10_000  # times that a name is in the texts, so that it becomes a token
SIZES = {  # width, width of the MLP, layers
    "tiny": (96, 256, 3),
    "small": (128, 352, 5),
}


def build_tiny(
    seed: int = 0, texts: Sequence[str] = (), size: str = "tiny"
) -> "tuple[LlamaForCausalLM, PreTrainedTokenizerFast]":
    """Build a small decoder and its text tokenizer, without any download.

    Parameters
    ----------
    seed : int
        Of the weights.
    texts : list of str
        The text tokenizer gets tokens for their words, in addition to bytes for any text.
    size : str
        A key of `SIZES`.

    Returns
    -------
    (transformers.LlamaForCausalLM, transformers.PreTrainedTokenizerFast)
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    special, alphabet = ["<pad>", "<bos>", "<eos>"], sorted(pre_tokenizers.ByteLevel.alphabet())
    text = Tokenizer(models.BPE(vocab={word: i for i, word in enumerate([*special, *alphabet])}, merges=[]))
    text.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=bool(texts))
    if texts:
        text.train_from_iterator(
            texts,
            trainers.BpeTrainer(
                vocab_size=WORDS, special_tokens=special, initial_alphabet=alphabet, show_progress=False
            ),
        )
    text.decoder = decoders.ByteLevel()
    text_tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=text, pad_token=special[0], bos_token=special[1], eos_token=special[2]
    )
    torch.manual_seed(seed)
    width, mlp, layers = SIZES[size]
    config = LlamaConfig(
        vocab_size=text.get_vocab_size(),
        hidden_size=width,
        intermediate_size=mlp,
        num_hidden_layers=layers,
        num_attention_heads=4,
        max_position_embeddings=16384,
        tie_word_embeddings=True,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    return LlamaForCausalLM(config), text_tokenizer


def training_texts(size: str) -> list[str]:
    """Return the texts for the text vocabulary of a size: questions about ECGs, and answers.

    `small` has a token for each short name of a finding too, so that a question can be a single token.
    """
    words = [*(statement.words for statement in STATEMENTS.values()), *CONDITIONS]
    ranges = [label for _, labels in RANGES.values() for label in labels]
    names = [] if size == "tiny" else [*short_names(), "yes", "no"]
    return [*phrasings.all_texts(words), *ranges, *(name for name in names for _ in range(OFTEN))]


def short_names() -> list[str]:
    """Return the names of findings and statements in lower case, and those of the topics of open questions."""
    topics = ("rhythm", "axis", "stage", "beats")
    return [*dict.fromkeys([*ALL_FINDINGS, *(name.lower() for name in STATEMENTS), *topics])]
