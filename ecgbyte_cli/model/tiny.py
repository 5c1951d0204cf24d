"""Build `--model tiny`: a small decoder and its text tokenizer, untrained."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from ecgbyte_cli.questions import phrasings
from ecgbyte_cli.questions.findings import STATEMENTS
from ecgbyte_cli.questions.sources.base import RANGES
from ecgbyte_cli.signal.simulate import CONDITIONS

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

WORDS = 1024  # tokens in the text vocabulary of `tiny`


def build_tiny(
    seed: int = 0, texts: Sequence[str] = ()
) -> "tuple[LlamaForCausalLM, PreTrainedTokenizerFast]":
    """Build a small decoder and its text tokenizer, without any download.

    Parameters
    ----------
    seed : int
        Of the weights.
    texts : list of str
        The text tokenizer gets tokens for their words, beside the bytes of any text.

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
    config = LlamaConfig(
        vocab_size=text.get_vocab_size(),
        hidden_size=96,
        intermediate_size=256,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=16384,
        tie_word_embeddings=True,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    return LlamaForCausalLM(config), text_tokenizer


def tiny_training_texts() -> list[str]:
    """Return the texts for the text vocabulary of `--model tiny`: questions about ECGs, and answers."""
    words = [*(statement.words for statement in STATEMENTS.values()), *CONDITIONS]
    ranges = [label for _, labels in RANGES.values() for label in labels]
    return [*phrasings.all_texts(words), *ranges]
