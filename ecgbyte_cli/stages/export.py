"""ecgbyte export: the model as a plain Transformers folder."""

import json
import shutil
import time
from pathlib import Path

import click
import numpy as np

from ecgbyte_cli import __version__
from ecgbyte_cli.cli.app import Stage
from ecgbyte_cli.cli.options import base_option
from ecgbyte_cli.cli.output import print_result
from ecgbyte_cli.cli.spelling import Model
from ecgbyte_cli.failure import Failure
from ecgbyte_cli.model import folder_checks
from ecgbyte_cli.storage.files import atomic_folder, read_json, write_json

SIG_START, SIG_END, LEAD, ECG_TOKEN = "<sig_start>", "<sig_end>", "<lead_{}>", "<ecg_{}>"
QUESTION = "What is the rhythm?"


@click.command(
    cls=Stage,
    short_help="Write the model as a plain Transformers folder.",
    epilog="Example: ecgbyte export exported/",
)
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--model", type=Model(), help="Model folder.  [default: the work folder's]")
@base_option
@click.option("--overwrite", is_flag=True, help="Replace an earlier export.")
@click.pass_obj
def command(work, out, **options):
    """Write a model to the folder OUT so that other programs than ecgbyte can run it.

    The adapter is merged into the base weights (bfloat16), the embedding holds the ECG tokens too, and the
    tokenizer knows them by name: <sig_start>, <lead_I>, <ecg_0>, <ecg_1>, …, <sig_end>.
    """
    result = export(work, out, **options)
    print_result(
        f"{out}: {result['parameters']:,} parameters, {result['vocab']:,} tokens, of them "
        f"{result['ecg_tokens']:,} of ECG, {result['megabytes']:.0f} MB"
    )
    return result


def export(work, out, *, model=None, base=None, overwrite=False):
    """Write a model as a plain Transformers folder.

    A 4-bit base is written as what its 4-bit numbers stand for: that is what the adapter was trained on.

    Parameters
    ----------
    work : WorkDir
    out : Path
    model : Path or None
        Model folder; None is the work folder's.
    base : Path or None
        Where its base model is, if that has moved.
    overwrite : bool

    Returns
    -------
    dict
        out, parameters, vocab (rows of the embedding), ecg_tokens, megabytes, seconds.

    Raises
    ------
    Failure
        If there is no model, OUT holds something, or what would be written could not be loaded, or not be asked
        as the model was trained.
    """
    out, folder, start = (
        Path(out),
        folder_checks.resolve_model_folder(model or work.model),
        time.perf_counter(),
    )
    about_file = out / "ecgbyte.json"
    ours = about_file.exists() and read_json(about_file).get("format") == "ecgbyte-export"
    if out.exists() and not (ours and overwrite) and (not out.is_dir() or any(out.iterdir())):
        raise Failure(
            f"{out} exists already: "
            + ("add --overwrite to replace it" if ours else "name a folder that does not")
        )

    import torch

    from ecgbyte_cli.model import base_model, model_folder
    from ecgbyte_cli.model.prompt import Prompt

    lm, text_tokenizer, ecg_tokenizer, about = model_folder.load_model(folder, "cpu", base)
    if lm.layout.unit:
        raise Failure(f"{folder} was trained with --positions time, which other programs cannot be told")
    with base_model.silence_libraries():
        prompt, leads = Prompt.of(about, text_tokenizer, lm.layout), ecg_tokenizer.signal["leads"]
        plain = lm.base = merge(lm.base, about["method"], folder)
        widen(plain, lm, least_likely(lm, prompt))
        # whatever ends an answer here must end it elsewhere
        plain.generation_config.eos_token_id = sorted(prompt.end_ids)
        plain.to(torch.bfloat16)
        check_shapes(plain, about["base"])
        names = ecg_names(lm.layout, leads, ecg_tokenizer.vocab_size)
        trained = [asked(prompt, names, question) for question in (QUESTION, "Why?", "is it\nso: [ST]?")]
        name_tokens(text_tokenizer, lm.offset, names)
        with atomic_folder(out) as beside:
            plain.save_pretrained(beside)
            doubled = save_tokenizer(beside, text_tokenizer, trained)
            shutil.copyfile(folder / "ecg_tokenizer.json", beside / "ecg_tokenizer.json")
            written = readme(about, trained[0][0], prompt, leads, doubled)
            (beside / "README.md").write_text(written, encoding="utf-8")
            kept = ("notice", "prompt_version", "base", "base_revision", "method", "offset", "segmenter")
            kept += ("prompt_tokens", "date", "lead_marks")
            write_json(
                beside / "ecgbyte.json",
                {
                    "format": "ecgbyte-export",
                    "ecgbyte": __version__,
                    **{key: about.get(key) for key in kept},
                    "prompt": trained[0][0],
                    "ecg_tokenizer_sha256": ecg_tokenizer.sha256,
                },
                indent=1,
            )
    return {
        "out": str(out),
        "parameters": sum(p.numel() for p in plain.parameters()),
        "vocab": plain.get_input_embeddings().num_embeddings,
        "ecg_tokens": len(names),
        "megabytes": sum(p.stat().st_size for p in out.rglob("*") if p.is_file()) / 1e6,
        "seconds": time.perf_counter() - start,
    }


def ecg_names(layout, leads, vocab):
    """The names of all ids of ECGs, in their order."""
    return [
        SIG_START,
        SIG_END,
        *map(LEAD.format, leads[: layout.marks]),
        *map(ECG_TOKEN.format, range(vocab)),
    ]


def asked(prompt, names, question):
    """What asks a question: its text with ECG_TOKENS where an ECG's are to stand, with some of these, and its ids."""
    from ecgbyte_cli.model.prompt import ANSWER_MARK, ECG_MARK

    text, _ = prompt.rendered((question,)).split(ANSWER_MARK)
    text, layout = text.replace(ECG_MARK, f"{SIG_START}ECG_TOKENS{SIG_END}"), prompt.layout
    ecg = [np.arange(3)], [np.array([0, 0, max(1, layout.marks) - 1])]
    ids, _ = prompt.build(ecg[0], [(question, None)], ecg[1])
    some = "".join(names[i - layout.offset] for i in ids[ids > layout.offset + 1])
    return text, text.replace("ECG_TOKENS", some), ids.tolist()


def save_tokenizer(folder, text_tokenizer, trained):
    """Write the text tokenizer, if it makes of each prompt's text the ids that the model was trained with.

    Parameters
    ----------
    folder : Path
    text_tokenizer : transformers.PreTrainedTokenizerBase
        Which knows the ECG tokens.
    trained : list of (str, str, list of int)
        From `asked`.

    Returns
    -------
    str or None
        What a text begins with and the tokenizer adds by itself: to be left out where it does so; None if the ids are
        others then too.

    Raises
    ------
    Failure
        If it makes others: the model would be asked what it has never seen.
    """
    from transformers import AutoTokenizer

    text_tokenizer.save_pretrained(folder)
    again = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    for _, text, ids in trained:
        if again.encode(text, add_special_tokens=False) != ids:
            raise Failure(
                "the base model's tokenizer makes other ids of a whole prompt than of its parts, with which the "
                "model was trained: it cannot be exported"
            )
    for doubled in ("", again.bos_token or ""):
        if all(again.encode(text.removeprefix(doubled)) == ids for _, text, ids in trained):
            return doubled
    return None


def readme(about, text, prompt, leads, doubled):
    """The README.md of an export; `doubled` is from `save_tokenizer`."""
    from ecgbyte_cli.model import model_folder

    if doubled == "":
        added = "This tokenizer adds no special tokens by itself: the default gives the same ids."
    else:
        added = "Where special tokens are added, as vLLM's completions do by default, "
        added += (
            f"leave out the first `{doubled}`, which would stand there twice."
            if doubled
            else "this text has other ids: send the ids."
        )
    marks = [LEAD.format(lead) for lead in leads[: prompt.layout.marks]]
    shown = "".join(f"{mark}<ecg_12><ecg_7>…" for mark in marks[:2] or [""]) + ("…" if marks[2:] else "")
    before = f", before the tokens of each lead its mark ({', '.join(marks)})" if marks else ""
    lines = [
        f"# An ECG language model, exported by ecgbyte {__version__}",
        model_folder.NOTICE,
        f"Base model: {about['base']}. A plain causal language model for Transformers 5 and other servers. "
        f"ECG_TOKENS below stands for `{shown}`{before}: the ids that "
        "`ecgbyte_cli.ECGTokenizer.from_file('ecg_tokenizer.json').encode(signal, "
        f"{about['segmenter']!r})` gives for a segment.",
        "The model was trained on this text and no other, here as a JSON string (`prompt` in ecgbyte.json). Give "
        f"it to the tokenizer with `add_special_tokens=False`. {added} What the tokenizer's own chat template "
        "makes may differ, as by a date or an empty thought.",
        f"```json\n{json.dumps(text, ensure_ascii=False)}\n```",
        f"An answer ends before any of the ids {', '.join(map(str, sorted(prompt.end_ids)))}.",
    ]
    return "\n\n".join(lines) + "\n"


def least_likely(lm, prompt):
    """The text id that the model is least likely ever to write, as its answers to some made-up ECGs show."""
    import torch

    random = np.random.default_rng(0)
    highest = None
    for _ in range(8):
        ecg = random.integers(0, lm.ecg_rows.num_embeddings - (lm.layout.first - lm.offset), 100)
        ids, _ = prompt.build([ecg], [("What is the rhythm?", "sinus rhythm")], [np.zeros(100, int)])
        with torch.no_grad():
            logits = lm.base(**lm.inputs(torch.from_numpy(ids)[None])).logits[0].float()
        top = logits.amax(0)
        highest = top if highest is None else torch.maximum(highest, top)
    return int(highest.argmin())


def merge(base, method, folder):
    """The base model in float32 with its adapter merged into the weights."""
    if method == "full":
        return base
    import torch
    from transformers.pytorch_utils import Conv1D

    from ecgbyte_cli.model import base_model

    base = base.unload()
    if method == "qlora":
        base = base.dequantize()
    merged = base_model.load_adapter(base.float(), folder).merge_and_unload()
    # 4-bit layers are linear ones: GPT-2's, which are stored the other way round, have to be made again
    with torch.device("meta"):
        wanted = dict(type(merged)(merged.config).named_modules())
    for name, layer in list(merged.named_modules()):
        if isinstance(wanted.get(name), Conv1D) and isinstance(layer, torch.nn.Linear):
            turned = Conv1D(layer.out_features, layer.in_features)
            turned.weight.data, turned.bias.data = layer.weight.data.T.contiguous(), layer.bias.data
            merged.set_submodule(name, turned)
    return merged


def check_shapes(base, name):
    """Refuse to write what its own config.json would not load."""
    import torch

    with torch.device("meta"):
        wanted = {key: p.shape for key, p in type(base)(base.config).named_parameters()}
    if wanted != {key: p.shape for key, p in base.named_parameters()}:
        raise Failure(f"a model of {name} cannot be exported: its layers were rebuilt in training")


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


def name_tokens(text_tokenizer, offset, ecg):
    """Add the ECG tokens to a text tokenizer, at the ids that they have in the model."""
    from transformers import AddedToken

    # a base model may have more rows than its tokenizer has tokens
    names = [f"<unused_{i}>" for i in range(len(text_tokenizer), offset)]
    names += ecg
    text_tokenizer.add_tokens([AddedToken(name, special=True, normalized=False) for name in names])
    last = text_tokenizer.convert_tokens_to_ids(names[-1])
    if (text_tokenizer.convert_tokens_to_ids(SIG_START), last) != (offset, offset + len(ecg) - 1):
        raise Failure("the base model's tokenizer has gaps in its ids: its ECG tokens cannot be named")
