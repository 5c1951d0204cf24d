"""ecgbyte export: the model as a plain Transformers folder."""

import shutil
import time
from pathlib import Path

import click
import numpy as np

from ecgbyte_cli import __version__
from ecgbyte_cli.console import Stage, say
from ecgbyte_cli.failure import Failure
from ecgbyte_cli.workdir import new_folder, read_json, write_json

SIG_START, SIG_END, ECG_TOKEN = "<sig_start>", "<sig_end>", "<ecg_{}>"


@click.command(
    cls=Stage,
    short_help="Write the model as a plain Transformers folder.",
    epilog="Example: ecgbyte export exported/",
)
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--model", type=click.Path(path_type=Path), help="Model folder.  [default: the work folder's]")
@click.option("--overwrite", is_flag=True, help="Replace an earlier export.")
@click.pass_obj
def command(work, out, **options):
    """Write a model to the folder OUT so that other programs than ecgbyte can run it.

    The adapter is merged into the base weights (bfloat16), the embedding holds the ECG tokens too, and the
    tokenizer knows them by name: <sig_start>, <ecg_0>, <ecg_1>, …, <sig_end>.
    """
    result = export(work, out, **options)
    say(
        f"{out}: {result['parameters']:,} parameters, {result['vocab']:,} tokens, of them "
        f"{result['ecg_tokens']:,} of ECG, {result['megabytes']:.0f} MB"
    )
    return result


def export(work, out, *, model=None, overwrite=False):
    """Write a model as a plain Transformers folder.

    A 4-bit base is written as what its 4-bit numbers stand for: that is what the adapter was trained on.

    Parameters
    ----------
    work : WorkDir
    out : Path
    model : Path or None
        Model folder; None is the work folder's.
    overwrite : bool

    Returns
    -------
    dict
        out, parameters, vocab (rows of the embedding), ecg_tokens, megabytes, seconds.

    Raises
    ------
    Failure
        If there is no model, or OUT holds something.
    """
    out, folder, start = Path(out), Path(model or work.model), time.perf_counter()
    about_file = out / "ecgbyte.json"
    ours = about_file.exists() and read_json(about_file).get("format") == "ecgbyte-export"
    if out.exists() and not (ours and overwrite) and (not out.is_dir() or any(out.iterdir())):
        raise Failure(
            f"{out} exists already: "
            + ("add --overwrite to replace it" if ours else "name a folder that does not")
        )

    import torch

    from ecgbyte_cli.model import ecg_lm
    from ecgbyte_cli.model.prompt import SYSTEM

    with ecg_lm.quiet():
        lm, text_tokenizer, ecg_tokenizer, about = ecg_lm.load(folder, "cpu")
        base = lm.base = merge(lm.base, about["method"], folder)
        widen(base, lm, least_likely(lm, text_tokenizer))
        name_tokens(text_tokenizer, lm.offset, ecg_tokenizer.vocab_size)
        base.to(torch.bfloat16)
        with new_folder(out) as beside:
            base.save_pretrained(beside)
            text_tokenizer.save_pretrained(beside)
            shutil.copyfile(folder / "ecg_tokenizer.json", beside / "ecg_tokenizer.json")
            (beside / "README.md").write_text(
                f"# An ECG language model, exported by ecgbyte {__version__}\n\n{ecg_lm.NOTICE}\n\n"
                f"Base model: {about['base']}. A plain causal language model for Transformers and other "
                "servers. ECG_TOKENS below stands for `<ecg_12><ecg_7>…`, the ids that "
                "`ecgbyte_cli.ECGTokenizer.from_file('ecg_tokenizer.json').encode(signal)` gives for a "
                "segment.\n\n"
                + (
                    f"System message: `{SYSTEM}`\n\nUser message: "
                    f"`{SIG_START}ECG_TOKENS{SIG_END}What is the rhythm?`\n"
                    if text_tokenizer.chat_template
                    else f"Prompt: `{text_tokenizer.bos_token or ''}{SIG_START}ECG_TOKENS{SIG_END}What is the "
                    "rhythm?` and a line feed.\n"
                ),
                encoding="utf-8",
            )
            kept = ("notice", "prompt_version", "base", "base_revision", "method", "offset")
            write_json(
                beside / "ecgbyte.json",
                {
                    "format": "ecgbyte-export",
                    "ecgbyte": __version__,
                    **{key: about.get(key) for key in kept},
                    "ecg_tokenizer_sha256": ecg_tokenizer.sha256,
                },
                indent=1,
            )
    return {
        "out": str(out),
        "parameters": sum(p.numel() for p in base.parameters()),
        "vocab": base.get_input_embeddings().num_embeddings,
        "ecg_tokens": ecg_tokenizer.vocab_size + 2,
        "megabytes": sum(p.stat().st_size for p in out.rglob("*") if p.is_file()) / 1e6,
        "seconds": time.perf_counter() - start,
    }


def least_likely(lm, text_tokenizer):
    """The text id that the model is least likely ever to write, as its answers to some made-up ECGs show."""
    import torch

    from ecgbyte_cli.model.prompt import Prompt

    prompt, random = Prompt(text_tokenizer, lm.offset), np.random.default_rng(0)
    highest = None
    for _ in range(8):
        ecg = random.integers(0, lm.ecg_rows.num_embeddings - 2, 100)
        ids, _ = prompt.build([ecg], [("What is the rhythm?", "sinus rhythm")])
        with torch.no_grad():
            logits = lm.base(inputs_embeds=lm.embed(torch.from_numpy(ids)[None])).logits[0].float()
        top = logits.amax(0)
        highest = top if highest is None else torch.maximum(highest, top)
    return int(highest.argmin())


def merge(base, method, folder):
    """The base model in float32 with its adapter merged into the weights."""
    if method == "full":
        return base
    from peft import PeftModel

    base = base.unload()
    if method == "qlora":
        base = base.dequantize()
    return PeftModel.from_pretrained(base.float(), folder).merge_and_unload()


def widen(base, lm, never):
    """Give a base model rows for the ECG tokens: in the embedding those that were trained.

    The output layer gets, for each, a copy of the row of a text id that is never written (its own layer from here
    on, where it was the embedding): in no program can an ECG token be more likely than that. Transformers itself
    suppresses them.
    """
    import torch

    embedding, head = base.get_input_embeddings(), base.get_output_embeddings()
    if head.weight is embedding.weight:
        head.weight = torch.nn.Parameter(head.weight.detach().clone())
    base.config.tie_word_embeddings = False
    rows = lm.ecg_rows.weight.detach().cpu()
    base.resize_token_embeddings(lm.offset + len(rows), mean_resizing=False)
    embedding, head = base.get_input_embeddings(), base.get_output_embeddings()
    with torch.no_grad():
        # some embeddings scale what they look up; the rows were trained behind that
        largest = embedding.weight[: lm.offset].norm(dim=1).argmax()
        scale = embedding(largest).norm() / embedding.weight[largest].norm()
        embedding.weight[lm.offset :] = rows / scale
        head.weight[lm.offset :] = head.weight[never]
        if head.bias is not None:
            head.bias[lm.offset :] = head.bias[never]
    base.generation_config.suppress_tokens = list(range(lm.offset, lm.offset + len(rows)))


def name_tokens(text_tokenizer, offset, ecg_vocab):
    """Add the ECG tokens to a text tokenizer, at the ids that they have in the model."""
    from transformers import AddedToken

    # a base model may have more rows than its tokenizer has tokens
    names = [f"<unused_{i}>" for i in range(len(text_tokenizer), offset)]
    names += [SIG_START, SIG_END, *map(ECG_TOKEN.format, range(ecg_vocab))]
    text_tokenizer.add_tokens([AddedToken(name, special=True, normalized=False) for name in names])
    last = text_tokenizer.convert_tokens_to_ids(names[-1])
    if (text_tokenizer.convert_tokens_to_ids(SIG_START), last) != (offset, offset + 1 + ecg_vocab):
        raise Failure("the base model's tokenizer has gaps in its ids: its ECG tokens cannot be named")
