"""ecgbyte export: write the model as a plain Transformers folder."""

import json
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click
import numpy as np

from ecgbyte_cli import __version__
from ecgbyte_cli.cli.app import Stage
from ecgbyte_cli.cli.options import base_option, work_model_option
from ecgbyte_cli.cli.output import print_result
from ecgbyte_cli.failure import Failure
from ecgbyte_cli.inference.session import Session
from ecgbyte_cli.model.layout import Layout
from ecgbyte_cli.model.prompt import ANSWER_MARK, ECG_MARK, Prompt
from ecgbyte_cli.signal.measured_lines import NOTHING, joined_lines, measured_line
from ecgbyte_cli.signal.measurement import Measurement
from ecgbyte_cli.storage.files import atomic_folder, read_json, write_json
from ecgbyte_cli.storage.workdir import WorkDir

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from ecgbyte_cli.model.ecg_lm import ECGLM

SIG_START, SIG_END, LEAD, ECG_TOKEN = "<sig_start>", "<sig_end>", "<lead_{}>", "<ecg_{}>"
QUESTION = "What is the rhythm?"
# for models trained with measured values: how to write the line before the ECG
MEASURED = Measurement(
    rate_bpm=72, rr_sd_ms=24, pr_ms=158, qrs_ms=94, qt_ms=392, qtcb_ms=429, qtcf_ms=416, axis_qrs=41
)


MEASURED_ADVICE = (
    "The line before the ECG contains its measured values. `ecgbyte_cli.signal.measured_lines.measured_line("
    "ecgbyte_cli.measure(recording))` writes it; an unmeasured value is `none`, and without any value the "
    f"line is `{NOTHING}`."
)


# entries of the model's ecgbyte.json that are copied to the export
COPIED = (
    *("notice", "prompt_version", "base", "base_revision", "method", "offset", "segmenter"),
    *("prompt_tokens", "date", "lead_marks", "measured"),
)


class RenderedPrompt(NamedTuple):
    """A prompt in the form used in training."""

    text: str  # with ECG_TOKENS as a placeholder for the ECG's tokens
    example: str  # with some tokens in place of ECG_TOKENS
    ids: list[int]  # ids of the example


@dataclass(frozen=True)
class ExportOptions:
    """Options of `ecgbyte export`.

    Attributes
    ----------
    model : Path or None
        Model folder; None means the work folder's.
    base : Path or None
        Where its base model is now, if it has moved.
    dtype : {"bfloat16", "float32"}
        Type of the weights.
    overwrite : bool
    """

    model: Path | str | None = None
    base: Path | None = None
    dtype: str = "bfloat16"
    overwrite: bool = False


@click.command(
    cls=Stage,
    short_help="Write the model as a plain Transformers folder.",
    epilog="Example: ecgbyte export exported/",
)
@click.argument("out", type=click.Path(path_type=Path))
@work_model_option
@base_option
@click.option(
    "--dtype",
    type=click.Choice(["bfloat16", "float32"]),
    default=ExportOptions.dtype,
    show_default=True,
    help="Type of the weights. float32 needs twice the space and gives exactly the answers of `ecgbyte` on a CPU.",
)
@click.option("--overwrite", is_flag=True, help="Replace an earlier export.")
@click.pass_obj
def command(work: WorkDir, out: Path, **options: Any) -> dict:
    """Write a model to the folder OUT so that programs other than ecgbyte can run it.

    The adapter is merged into the base weights, the embedding also holds the ECG tokens, and the
    tokenizer has a name for each: <sig_start>, <lead_I>, <ecg_0>, <ecg_1>, …, <sig_end>.
    """
    result = export(work, out, ExportOptions(**options))
    print_result(
        f"{out}: {result['parameters']:,} parameters, {result['vocab']:,} tokens, including "
        f"{result['ecg_tokens']:,} for ECGs, {result['megabytes']:.0f} MB"
    )
    return result


def export(work: WorkDir, out: Path, options: ExportOptions) -> dict:
    """Write a model as a plain Transformers folder.

    A 4-bit base model is written with its dequantized values: the adapter was trained on these.

    Parameters
    ----------
    work : WorkDir
    out : Path
    options : ExportOptions

    Returns
    -------
    dict
        out, parameters, vocab (rows of the embedding), ecg_tokens, megabytes, seconds.

    Raises
    ------
    Failure
        If there is no model, OUT is not empty, or the export could not be loaded or not be prompted as in
        training.
    """
    out, start = Path(out), time.perf_counter()
    check_out(out, options.overwrite)
    session = Session.open(options.model or work.model, base=options.base, device="cpu")
    lm, _, prompt, _ = session.load()
    if lm.layout.unit:
        raise Failure(
            f"{session.folder} was trained with --positions time, which other programs do not support"
        )
    names = ecg_names(lm.layout, session.tokenizer.signal["leads"], session.tokenizer.vocab_size)
    from ecgbyte_cli.model import base_model

    with base_model.silence_libraries():
        plain = plain_model(session, options.dtype)
        before = joined_lines([measured_line(MEASURED)]) if session.about.get("measured") else ""
        questions = QUESTION, "Why?", "is it\nso: [ST]?"
        trained = [asked(prompt, names, question, before) for question in questions]
        write(session, plain, names, trained, out)
    return {
        "out": str(out),
        "parameters": sum(p.numel() for p in plain.parameters()),
        "vocab": plain.get_input_embeddings().num_embeddings,
        "ecg_tokens": len(names),
        "megabytes": sum(p.stat().st_size for p in out.rglob("*") if p.is_file()) / 1e6,
        "seconds": time.perf_counter() - start,
    }


def check_out(out: Path, overwrite: bool) -> None:
    """Reject a folder with other contents, or an earlier export without --overwrite."""
    path = out / "ecgbyte.json"
    ours = path.exists() and read_json(path).get("format") == "ecgbyte-export"
    if out.exists() and not (ours and overwrite) and (not out.is_dir() or any(out.iterdir())):
        raise Failure(
            f"{out} exists already: " + ("add --overwrite to replace it" if ours else "name a new folder")
        )


def plain_model(session: Session, dtype: str) -> "PreTrainedModel":
    """Merge the adapter and the ECG rows into the base model, with weights in `dtype`."""
    import torch

    lm, prompt, about = session.lm, session.prompt, session.about
    plain = lm.base = merge(lm.base, about["method"], session.folder)
    widen(plain, lm, least_likely(lm, prompt))
    # every id that ends an answer here must end it in the export
    plain.generation_config.eos_token_id = sorted(prompt.end_ids)
    plain.to(getattr(torch, dtype))
    check_shapes(plain, about["base"])
    return plain


def write(
    session: Session, plain: "PreTrainedModel", names: list[str], trained: list[RenderedPrompt], out: Path
) -> None:
    """Write the folder of an export: the model, the tokenizers, README.md and ecgbyte.json."""
    _, text_tokenizer, prompt, _ = session.load()
    about, ecg_tokenizer = session.about, session.tokenizer
    name_tokens(text_tokenizer, session.lm.offset, names)
    with atomic_folder(out) as beside:
        plain.save_pretrained(beside)
        doubled = save_tokenizer(beside, text_tokenizer, trained)
        shutil.copyfile(session.folder / "ecg_tokenizer.json", beside / "ecg_tokenizer.json")
        text = readme(about, trained[0].text, prompt, ecg_tokenizer.signal["leads"], doubled)
        (beside / "README.md").write_text(text, encoding="utf-8")
        contents = {
            "format": "ecgbyte-export",
            "ecgbyte": __version__,
            **{key: about.get(key) for key in COPIED},
            "prompt": trained[0].text,
            "ecg_tokenizer_sha256": ecg_tokenizer.sha256,
        }
        write_json(beside / "ecgbyte.json", contents, indent=1)


def ecg_names(layout: Layout, leads: list[str], vocab: int) -> list[str]:
    """Return the names of all ids of ECGs, in order."""
    return [
        SIG_START,
        SIG_END,
        *map(LEAD.format, leads[: layout.marks]),
        *map(ECG_TOKEN.format, range(vocab)),
    ]


def asked(prompt: Prompt, names: list[str], question: str, before: str = "") -> RenderedPrompt:
    """Return the prompt of a question; `before` comes before the ECG."""
    text, _ = prompt.rendered((question,)).split(ANSWER_MARK)
    text, layout = text.replace(ECG_MARK, f"{before}{SIG_START}ECG_TOKENS{SIG_END}"), prompt.layout
    ecg = [np.arange(3)], [np.array([0, 0, max(1, layout.marks) - 1])]
    ids, _ = prompt.build(ecg[0], [(question, None)], ecg[1], before)
    some = "".join(names[i - layout.offset] for i in ids[ids > layout.offset + 1])
    return RenderedPrompt(text, text.replace("ECG_TOKENS", some), ids.tolist())


def save_tokenizer(
    folder: Path, text_tokenizer: "PreTrainedTokenizerBase", trained: list[RenderedPrompt]
) -> str | None:
    """Write the text tokenizer, and check that it encodes each prompt to the ids used in training.

    Parameters
    ----------
    folder : Path
    text_tokenizer : transformers.PreTrainedTokenizerBase
        Includes the ECG tokens.
    trained : list of RenderedPrompt

    Returns
    -------
    str or None
        The start of a prompt to omit where the tokenizer adds special tokens by itself; "" if it
        adds none; None if the ids differ in other ways too.

    Raises
    ------
    Failure
        If the ids differ: the model would get unfamiliar prompts.
    """
    from transformers import AutoTokenizer

    text_tokenizer.save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    config = read_json(path)
    if config.get("tokenizer_class") == "TokenizersBackend":  # its name since Transformers 5
        write_json(path, config | {"tokenizer_class": "PreTrainedTokenizerFast"}, indent=2)
    again = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    for _, text, ids in trained:
        if again.encode(text, add_special_tokens=False) != ids:
            raise Failure(
                "the base model's tokenizer encodes a whole prompt differently from its parts, which the "
                "model was trained on: it cannot be exported"
            )
    for doubled in ("", again.bos_token or ""):
        if all(again.encode(text.removeprefix(doubled)) == ids for _, text, ids in trained):
            return doubled
    return None


def readme(about: dict, text: str, prompt: Prompt, leads: list[str], doubled: str | None) -> str:
    """Return the README.md of an export; `doubled` is from `save_tokenizer`."""
    from ecgbyte_cli.model import model_folder

    if doubled == "":
        added = "This tokenizer adds no special tokens by itself: the default gives the same ids."
    else:
        added = "Where special tokens are added, as in vLLM's completions by default, "
        added += (
            f"leave out the first `{doubled}`, which would appear twice."
            if doubled
            else "this text has other ids: send the ids instead."
        )
    marks = [LEAD.format(lead) for lead in leads[: prompt.layout.marks]]
    shown = "".join(f"{mark}<ecg_12><ecg_7>…" for mark in marks[:2] or [""]) + ("…" if marks[2:] else "")
    before = f", with the lead's mark before the tokens of each lead ({', '.join(marks)})" if marks else ""
    lines = [
        f"# An ECG language model, exported by ecgbyte {__version__}",
        model_folder.NOTICE,
        f"Base model: {about['base']}. A plain causal language model for Transformers 5 and other servers. "
        f"ECG_TOKENS below is a placeholder for `{shown}`{before}: the ids that "
        "`ecgbyte_cli.ECGTokenizer.from_file('ecg_tokenizer.json').encode(signal, "
        f"{about['segmenter']!r})` gives for a segment.",
        "The model was trained on exactly this text, here as a JSON string (`prompt` in ecgbyte.json). Pass "
        f"it to the tokenizer with `add_special_tokens=False`. {added} What the tokenizer's own chat template "
        "makes may differ, for example by a date or an empty thought.",
        f"```json\n{json.dumps(text, ensure_ascii=False)}\n```",
        *([MEASURED_ADVICE] if about.get("measured") else []),
        f"An answer ends before the first of the ids {', '.join(map(str, sorted(prompt.end_ids)))}.",
    ]
    return "\n\n".join(lines) + "\n"


def least_likely(lm: "ECGLM", prompt: Prompt) -> int:
    """Return the text id with the lowest logit in answers about random ECGs, which the model hardly ever writes."""
    import torch

    random = np.random.default_rng(0)
    highest: torch.Tensor | None = None
    for _ in range(8):
        ecg = random.integers(0, lm.ecg_rows.num_embeddings - (lm.layout.first - lm.offset), 100)
        ids, _ = prompt.build([ecg], [("What is the rhythm?", "sinus rhythm")], [np.zeros(100, int)])
        with torch.no_grad():
            logits = lm.base(**lm.inputs(torch.from_numpy(ids)[None])).logits[0].float()
        top = logits.amax(0)
        highest = top if highest is None else torch.maximum(highest, top)
    assert highest is not None
    return int(highest.argmin())


def merge(base: "PreTrainedModel | PeftModel", method: str, folder: Path) -> "PreTrainedModel":
    """Return the base model in float32 with its adapter merged into the weights."""
    if method == "full" or not hasattr(base, "peft_config"):  # merged at loading
        return base
    import torch
    from transformers.pytorch_utils import Conv1D

    from ecgbyte_cli.model import base_model

    base = base.unload()
    if method == "qlora":
        base = base.dequantize()
    merged = base_model.load_adapter(base.float(), folder).merge_and_unload()
    # GPT-2 stores its linear layers transposed, so its 4-bit layers must be rebuilt
    with torch.device("meta"):
        wanted = dict(type(merged)(merged.config).named_modules())
    for name, layer in list(merged.named_modules()):
        if isinstance(wanted.get(name), Conv1D) and isinstance(layer, torch.nn.Linear):
            turned = Conv1D(layer.out_features, layer.in_features)
            turned.weight.data, turned.bias.data = layer.weight.data.T.contiguous(), layer.bias.data
            merged.set_submodule(name, turned)
    return merged


def check_shapes(base: "PreTrainedModel", name: str) -> None:
    """Check that the model's own config.json would load its weights."""
    import torch

    with torch.device("meta"):
        wanted = {key: p.shape for key, p in type(base)(base.config).named_parameters()}
    if wanted != {key: p.shape for key, p in base.named_parameters()}:
        raise Failure(f"a model of {name} cannot be exported: its layers were rebuilt in training")


def widen(base: "PreTrainedModel", lm: "ECGLM", never: int) -> None:
    """Add the trained rows of the ECG tokens to the embedding of a base model.

    The output layer, if untied from the embedding, gets a copy of the row of `never` for each, a text id that is
    never written: so no program finds an ECG token more probable. Transformers also suppresses them.
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
        # some embeddings scale their output, and the rows were trained after that scaling
        largest = embedding.weight[: lm.offset].norm(dim=1).argmax()
        scale = embedding(largest).norm() / embedding.weight[largest].norm()
        embedding.weight[lm.offset :] = rows / scale
        head.weight[lm.offset :] = head.weight[never]
        if head.bias is not None:
            head.bias[lm.offset :] = head.bias[never]
    base.generation_config.suppress_tokens = list(range(lm.offset, lm.offset + len(rows)))


def name_tokens(text_tokenizer: "PreTrainedTokenizerBase", offset: int, ecg: list[str]) -> None:
    """Add the ECG tokens to a text tokenizer, with their ids in the model."""
    from transformers import AddedToken

    # a base model may have more rows than its tokenizer has tokens
    names = [f"<unused_{i}>" for i in range(len(text_tokenizer), offset)]
    names += ecg
    text_tokenizer.add_tokens([AddedToken(name, special=True, normalized=False) for name in names])
    last = text_tokenizer.convert_tokens_to_ids(names[-1])
    if (text_tokenizer.convert_tokens_to_ids(SIG_START), last) != (offset, offset + len(ecg) - 1):
        raise Failure("the base model's tokenizer has gaps in its ids, so the ECG tokens cannot get names")
