"""The language model: any causal LM of Transformers, with a small table of ECG rows beside its embedding.

ECG token k is id `offset` + 2 + k, where `offset` is the number of rows of the base model's embedding;
`offset` + 0 and + 1 are <sig_start> and <sig_end>. These ids are looked up in `ecg_rows`; the base model's
embedding and output layer keep their size, so it answers in text only and its weights stay as published.
"""

import contextlib
import hashlib
import inspect
import io
import itertools
import json
import logging
import os
import shutil
from collections.abc import Callable, Container, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.nn import functional

from ecgbyte_cli import __version__
from ecgbyte_cli.failure import Failure
from ecgbyte_cli.model import folder as folders
from ecgbyte_cli.model.prompt import PROMPT_VERSION
from ecgbyte_cli.signal.tokenizer import ECGTokenizer
from ecgbyte_cli.workdir import write_json
from ecgbyte_kernels.tokens import spell

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

LIKENESS = 0.75  # how far apart two waveforms (their variance is 3) still start alike: a third of the usual
# Kinds of models whose state the prompts here cannot be read into: they take no cache, or no embeddings, or another.
# Layers with a running state are Mamba's and others', of which LoRA reaches a part alone; these are known to work.
UNFIT = ("mpt", "minimax")
RUNNING_STATE = (
    *("qwen3_next", "qwen3_5", "qwen3_5_text", "qwen3_5_moe", "qwen3_5_moe_text", "olmo_hybrid"),
    *("recurrent_gemma", "lfm2"),
)
NOTICE = "Research use only: this is no medical device, and its answers are no diagnosis."


class ECGLM(torch.nn.Module):
    """A causal language model that reads ECG ids and text ids, and writes text ids.

    Parameters
    ----------
    base : transformers.PreTrainedModel or peft.PeftModel
        The causal language model.
    ecg_vocab : int
        Number of ECG tokens; the table gets two more rows, for <sig_start> and <sig_end>.
    seed : int
        Of the rows' first values.
    """

    def __init__(self, base: torch.nn.Module, ecg_vocab: int, seed: int = 0):
        super().__init__()
        self.base = base
        embedding = base.get_input_embeddings()
        self.offset = embedding.num_embeddings
        self.ecg_rows = torch.nn.Embedding(ecg_vocab + 2, embedding.embedding_dim)
        rows = torch.randn(self.ecg_rows.weight.shape, generator=torch.Generator().manual_seed(seed))
        with torch.no_grad():
            self.ecg_rows.weight.copy_(rows * self.text_rows().std().cpu())
        self.ecg_rows.to(embedding.weight.device)

    @torch.no_grad()
    def text_rows(self) -> torch.Tensor:
        """What the embedding puts out for some text ids (some models scale it: not the weights as they are)."""
        embedding = self.base.get_input_embeddings()
        ids = torch.arange(min(4096, self.offset), device=embedding.weight.device)
        return embedding(ids).float()

    @torch.no_grad()
    def init_rows(self, how: str, ecg_tokenizer: ECGTokenizer, seed: int = 0) -> None:
        """Give the ECG rows their first values.

        Parameters
        ----------
        how : {"random", "mean", "signal"}
            `random`: normal, as large as the text embeddings; what a new ECGLM has already. `mean`: close to
            the mean of the text embeddings (Hewitt 2021, Initializing New Word Embeddings). `signal`: random
            Fourier features of each token's own waveform (Rahimi and Recht, NIPS 2007), so that tokens that look
            alike start alike, and others do not.
        ecg_tokenizer : ECGTokenizer
        seed : int
            Of the noise and of the projection.
        """
        if how == "random":
            return
        text, rows = self.text_rows().cpu(), self.ecg_rows.weight
        random = torch.Generator().manual_seed(seed)
        if how == "mean":
            first = text.mean(0) + 0.1 * text.std() * torch.randn(rows.shape, generator=random)
        else:
            features = torch.from_numpy(waveforms(ecg_tokenizer)).float()
            directions = torch.randn(features.shape[1], rows.shape[1], generator=random) / LIKENESS
            phases = 2 * torch.pi * torch.rand(rows.shape[1], generator=random)
            features = torch.cos(features @ directions + phases)
            # the rows of the two marks stay random
            first = torch.cat([rows[:2].cpu(), features * text.std() / features.std()])
        rows.copy_(first)

    @property
    def device(self) -> torch.device:
        return self.ecg_rows.weight.device

    def embed(self, ids: torch.Tensor) -> torch.Tensor:
        """Look up text ids in the base model's embedding and ECG ids in the table: (batch, n) -> (batch, n, d)."""
        is_ecg = ids >= self.offset
        text = self.base.get_input_embeddings()(ids.masked_fill(is_ecg, 0))
        ecg = self.ecg_rows((ids - self.offset).clamp(min=0)).to(text.dtype)
        return torch.where(is_ecg[..., None], ecg, text)

    def forward(self, ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Mean cross-entropy of the labelled tokens.

        Parameters
        ----------
        ids : int64 tensor (batch, n)
            Padded on the right: no real token sees what comes after it, so no mask is needed.
        labels : int64 tensor (batch, n)
            The ids where the loss is counted, -100 elsewhere.
        """
        # a text vocabulary is large: logits are made only at positions where some sample has a label
        at = (labels[:, 1:] != -100).any(0).nonzero().squeeze(1)
        logits = self.base(inputs_embeds=self.embed(ids), logits_to_keep=at, use_cache=False).logits
        return functional.cross_entropy(logits.float().flatten(0, 1), labels[:, at + 1].flatten())

    @torch.no_grad()
    def stream(
        self,
        prompts: Sequence[np.ndarray],
        end_ids: Container[int],
        max_new: int = 64,
        cache: "PromptCache | None" = None,
        pick: Callable[[torch.Tensor], torch.Tensor] | None = None,
    ) -> Iterator[list[int | None]]:
        """Answer prompts together and yield the next ids as they are made.

        Parameters
        ----------
        prompts : list of int arrays
            Ids of any lengths; shorter ones are padded on the left.
        end_ids : set of int
            An answer ends before the first of these.
        max_new : int
            An answer has at most so many tokens.
        cache : PromptCache or None
            With one prompt: what was read of an earlier one that begins alike is not read again.
        pick : callable or None
            Takes the logits of the next ids, (batch, vocabulary), and returns the ids, (batch,); None takes the
            likeliest (greedy).

        Yields
        ------
        list of int or None
            Per prompt the next id, or None if its answer has ended.
        """
        from transformers import DynamicCache

        width = max(map(len, prompts))
        ids = torch.zeros(len(prompts), width, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for row, prompt in enumerate(prompts):
            ids[row, width - len(prompt) :] = torch.as_tensor(np.asarray(prompt, np.int64))
            mask[row, width - len(prompt) :] = 1
        ids, mask = ids.to(self.device), mask.to(self.device)
        position = (mask.cumsum(1) - 1).clamp(min=0)
        states, open_ = DynamicCache(config=self.base.config), [True] * len(prompts)
        if cache:
            states = cache.begin(prompts[0], states)
            ids, position = ids[:, len(cache.ids) :], position[:, len(cache.ids) :]
        for _ in range(max_new):
            logits = self.base(
                inputs_embeds=self.embed(ids),
                attention_mask=mask,
                position_ids=position,
                past_key_values=states,
                use_cache=True,
                logits_to_keep=1,
            ).logits
            if cache:
                cache.ids += ids[0].tolist()
            ids = (pick or _likeliest)(logits[:, -1])[:, None]
            following = ids[:, 0].tolist()
            open_ = [o and i not in end_ids for o, i in zip(open_, following, strict=True)]
            if not any(open_):
                return
            yield [i if o else None for o, i in zip(open_, following, strict=True)]
            mask = torch.cat([mask, mask.new_ones(len(prompts), 1)], 1)
            position = position[:, -1:] + 1

    def answer(
        self,
        prompts: Sequence[np.ndarray],
        end_ids: Container[int],
        max_new: int = 64,
        pick: Callable[[torch.Tensor], torch.Tensor] | None = None,
    ) -> list[list[int]]:
        """Answer prompts together (see `stream`): a list of lists of text ids."""
        answers: list[list[int]] = [[] for _ in prompts]
        for following in self.stream(prompts, end_ids, max_new, pick=pick):
            for answer, i in zip(answers, following, strict=True):
                if i is not None:
                    answer.append(i)
        return answers


def _likeliest(logits):
    return logits.argmax(-1)


class PromptCache:
    """The attention's keys and values of the ids that a model read last, for a prompt that begins alike.

    Attributes
    ----------
    ids : list of int
        What was read whole. Reading that was interrupted may have left more in `states`.
    states : transformers.DynamicCache or None
    """

    def __init__(self):
        self.ids, self.states = [], None

    def begin(self, prompt, empty):
        """Keep what a prompt shares with the one before, and return its states: `empty` if it shares nothing."""
        from transformers.cache_utils import DynamicLayer

        # one id is always read anew: the first id of the answer comes from it
        most = min(len(self.ids), len(prompt) - 1)
        differ = np.flatnonzero(np.asarray(self.ids[:most]) != np.asarray(prompt)[:most])
        shared = int(differ[0]) if differ.size else most
        # a layer with a window, or with a running state, cannot be taken back to an earlier id
        if not shared or any(type(layer) is not DynamicLayer for layer in self.states.layers):
            self.ids, self.states = [], empty
            return empty
        for layer in self.states.layers:
            layer.keys, layer.values = layer.keys[..., :shared, :], layer.values[..., :shared, :]
        self.ids = self.ids[:shared]
        return self.states


def waveforms(ecg_tokenizer, points=16):
    """Describe the waveform of each ECG token by numbers: its shape, its level and its length.

    Returns
    -------
    numpy.ndarray
        float64, (vocab_size, points + 2): the letters, resampled to so many points, without their mean; the
        mean; the logarithm of the length. Each of the three has variance 1 over the vocabulary.
    """
    letters, starts = spell(ecg_tokenizer.merges, ecg_tokenizer.levels)
    shapes = np.empty((ecg_tokenizer.vocab_size, points))
    for token, (start, stop) in enumerate(itertools.pairwise(starts)):
        places = np.linspace(0, stop - start - 1, points)
        shapes[token] = np.interp(places, np.arange(stop - start), letters[start:stop])
    level = shapes.mean(1, keepdims=True)
    parts = [shapes - level, level - level.mean(), np.log(np.diff(starts))[:, None]]
    parts[2] = parts[2] - parts[2].mean()
    return np.concatenate([part / max(np.sqrt((part**2).sum(1).mean()), 1e-9) for part in parts], 1)


def tiny(seed=0):
    """Build a small decoder over a byte-level text vocabulary, and its tokenizer, without any download.

    Returns
    -------
    (transformers.LlamaForCausalLM, transformers.PreTrainedTokenizerFast)
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    special = ["<pad>", "<bos>", "<eos>"]
    vocabulary = {word: i for i, word in enumerate([*special, *sorted(pre_tokenizers.ByteLevel.alphabet())])}
    text = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    text.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    text.decoder = decoders.ByteLevel()
    text_tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=text, pad_token=special[0], bos_token=special[1], eos_token=special[2]
    )
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(vocabulary),
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


def bfloat16_here(device: str) -> bool:
    """Whether weights and autocast are in bfloat16 on a device: on a GPU, and on a CPU that has it in hardware."""
    has = torch.cpu.get_capabilities()
    return str(device).startswith("cuda") or any(has.get(k) for k in ("avx512_bf16", "amx_bf16", "bf16"))


def load_base(
    name: str, method: str, device: str, revision: str | None = None
) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
    """Load a causal language model and its text tokenizer, and run nothing of theirs.

    Parameters
    ----------
    name : str
        A hub id, a local folder, or `tiny`.
    method : str
        `qlora` (4-bit NF4 with double quantization, bfloat16 compute), `lora` or `full`.
    device : str
        `cuda`, `cuda:1`, … or `cpu`.
    revision : str or None
        The commit of a hub id; None is the newest.

    Raises
    ------
    Failure
        If there is no such model, it is no causal language model or none that can be used here, it has code of its
        own, or its weights are pickles, are damaged, or are not those that it needs.
    """
    if name == "tiny":
        base, text_tokenizer = tiny()
        return base.to(device), text_tokenizer
    local = folders.is_path(name)
    if local and not Path(name).is_dir():
        raise Failure(f"base model {name}: there is no such folder")
    if local and not (Path(name) / "config.json").is_file():
        raise Failure(f"{name} is no model folder: it has no config.json")
    from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

    options = {"dtype": torch.bfloat16 if method != "full" and bfloat16_here(device) else torch.float32}
    if method == "qlora":
        options["dtype"] = torch.bfloat16
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16,
        )
    with quiet():
        try:
            commit = _check_base(name, local, revision)
            revision, options["trust_remote_code"] = commit or revision, False
            text_tokenizer = AutoTokenizer.from_pretrained(name, revision=revision, trust_remote_code=False)
            base, loaded = AutoModelForCausalLM.from_pretrained(
                name,
                revision=revision,
                device_map=device,
                use_safetensors=True,
                output_loading_info=True,
                **options,
            )
        except Failure:
            raise
        # of files that are damaged or made to be so, Transformers may raise anything
        except Exception as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise Failure(
                f"base model {name} cannot be loaded as a causal language model: {reason}"
            ) from error
    # what the hub publishes may have more weights, such as of heads that are not used here
    wrong = {*loaded["missing_keys"], *(key for key, *_ in loaded["mismatched_keys"])}
    wrong |= {*loaded["unexpected_keys"]} if local else set()
    if wrong or loaded["error_msgs"]:
        raise Failure(
            f"the weights of base model {name} are not those of its config.json: missing, of another size, or "
            f"one too many: {', '.join(sorted(wrong))[:200] or str(loaded['error_msgs'])[:200]}"
        )
    base.config._commit_hash = commit  # Transformers itself no longer keeps it
    # how others would draw its answers does not matter here, and what is not valid could not be saved
    ids = {key: getattr(base.config, key, None) for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    base.generation_config = type(base.generation_config)(**ids)
    # On CPUs with AVX512-BF16 bitsandbytes packs the weights at the first forward pass without gradients, for a
    # kernel that has no backward pass: after a validation the gradients would silently be wrong.
    for module in base.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    return base, text_tokenizer


def _check_base(name, local, revision):
    """Refuse what cannot be a base model before its weights are loaded; return the commit of a hub id."""
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING
    from transformers.utils import cached_file
    from transformers.utils.hub import extract_commit_hash

    file = cached_file(name, "config.json", revision=revision)
    folders.check_base(Path(file).parent)
    held = folders.weights(Path(name)) if local else None
    config = AutoConfig.from_pretrained(name, revision=revision, trust_remote_code=False)
    kind = config.model_type
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise Failure(f"base model {name} ({kind}) is no causal language model")
    made = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    made = made[0] if isinstance(made, tuple) else made
    takes = inspect.signature(made.forward).parameters
    needed = {"inputs_embeds", "past_key_values", "logits_to_keep", "position_ids"}
    needed -= {"position_ids"} if kind == "bloom" else set()  # which knows distances alone
    running = getattr(made, "_is_stateful", False) and kind not in RUNNING_STATE
    if kind == "granitemoehybrid":  # some have attention alone
        running = "mamba" in (getattr(config, "layer_types", None) or ["mamba"])
    # BERT and its like look at what comes after, unless they say that they do not
    both_ways = getattr(config, "is_decoder", True) is False and not kind.startswith("gpt_neox")
    if kind in UNFIT or running or both_ways or needed - takes.keys():
        raise Failure(
            f"base model {name}: models of the kind {kind} cannot be trained on ECGs here; take another"
        )
    if held:
        tensors, numbers = held
        if (getattr(config, "num_hidden_layers", None) or 0) > tensors:
            raise Failure(
                f"{name}: its config.json asks for more layers than its files hold tensors: {tensors}"
            )
        with torch.device("meta"):  # every size of it, and no memory
            promised = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
        size = sum(t.numel() for t in itertools.chain(promised.parameters(), promised.buffers()))
        if size > 8 * numbers + 2**26:
            raise Failure(
                f"{name}: its config.json asks for {size:,} weights, and its files hold {numbers:,}"
            )
    return None if local else extract_commit_hash(file, None)


def add_adapter(
    base: "PreTrainedModel",
    rank: int = 16,
    alpha: int = 32,
    dropout: float = 0.05,
    checkpointing: bool = True,
) -> "PeftModel":
    """Freeze a base model and put trainable LoRA adapters on its attention and MLP projections.

    In a mixture of experts on the attention alone: the experts of a layer are one parameter together, on which
    peft's adapters know no dropout.

    Parameters
    ----------
    base : transformers.PreTrainedModel
    rank, alpha : int
    dropout : float
    checkpointing : bool
        Compute the layers' states once more in the backward pass, and do not keep them: a third more time, for
        much less memory.
    """
    from peft import LoraConfig, get_peft_model

    # peft's prepare_model_for_kbit_training would hold embedding and norms in float32, which a model that is
    # loaded to answer has in bfloat16: it would not be quite the model that was trained
    if checkpointing:
        base.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    base.enable_input_require_grads()
    # all linear layers but the output: the seven projections of a Llama, whatever another model calls them
    targets: str | list[str] = "all-linear"
    if any(p.dim() == 3 for name, p in base.named_parameters() if "expert" in name):
        targets = sorted(
            f"{name}.{part}"
            for name, module in base.named_modules()
            if type(module).__name__.endswith(("Attention", "DeltaNet"))
            for part, layer in module.named_modules()
            if isinstance(layer, torch.nn.Linear)
        )
    config = LoraConfig(
        r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=targets, task_type="CAUSAL_LM"
    )
    return get_peft_model(base, config)


def with_adapter(base: "PreTrainedModel", folder: Path) -> "PeftModel":
    """Put the adapter of a model folder on its base model.

    Raises
    ------
    Failure
        If it is none of `ecgbyte finetune`, or not one for this base model.
    """
    from peft import LoraConfig, PeftModel, get_peft_model_state_dict

    config = LoraConfig(**folders.adapter(folder), task_type="CAUSAL_LM")
    path = folder / "adapter_model.safetensors"
    try:
        model = PeftModel.from_pretrained(base, folder, config=config)
    except (RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise Failure(f"{path} does not fit its base model: {reason}") from error
    stored, needed = folders.shapes(path).keys(), get_peft_model_state_dict(model).keys()
    if stored ^ needed:
        raise Failure(
            f"{path} has not the weights that its base model needs: missing or one too many: "
            f"{', '.join(sorted(stored ^ needed))[:200]}"
        )
    return model


def save(folder, model, text_tokenizer, ecg_tokenizer, about):
    """Write a model folder.

    It holds the PEFT adapter (or, trained in full, the base model and text tokenizer under base/),
    ecg_rows.safetensors, ecg_tokenizer.json and ecgbyte.json.

    Parameters
    ----------
    folder : Path
        An existing, empty folder.
    model : ECGLM
    text_tokenizer : transformers.PreTrainedTokenizerBase
    ecg_tokenizer : Path
        The ecg_tokenizer.json that made the model's ECG ids.
    about : dict
        What ecgbyte.json shall say besides: `base`, `method`, `settings`, `result`, ….
    """
    from safetensors.torch import save_file

    with quiet():
        if about["method"] == "full":
            model.base.save_pretrained(folder / "base")
            text_tokenizer.save_pretrained(folder / "base")
        else:
            # peft would ask the hub whether the embedding grew: it never does here
            model.base.save_pretrained(folder, save_embedding_layers=False)
    save_file({"weight": model.ecg_rows.weight.detach().cpu().contiguous()}, folder / "ecg_rows.safetensors")
    shutil.copyfile(ecg_tokenizer, folder / "ecg_tokenizer.json")
    (folder / "README.md").write_text(
        f"# An ECG language model made by ecgbyte {__version__}\n\n{NOTICE}\n\nBase model: {about['base']}. "
        "Use it with `ecgbyte chat RECORD --model THIS_FOLDER`.\n"
    )
    if about["method"] != "full" and Path(about["base"]).is_dir():
        about = {**about, "base": str(Path(about["base"]).resolve())}
    fixed = {
        "format": "ecgbyte-model",
        "format_version": folders.FORMAT_VERSION,
        "ecgbyte": __version__,
        "notice": NOTICE,
        "prompt_version": PROMPT_VERSION,
        "offset": model.offset,
        "ecg_tokenizer_sha256": ECGTokenizer.from_file(ecg_tokenizer).sha256,
        "text_tokenizer_sha256": text_sha256(text_tokenizer),
        "base_revision": getattr(model.base.config, "_commit_hash", None),
        "base_sha256": None if about["method"] == "full" else base_sha256(model.base),
        "files": folders.sums(folder),
    }
    write_json(folder / "ecgbyte.json", {**fixed, **about}, indent=1)


def load(
    folder: str | os.PathLike, device: str | None = None, base: str | os.PathLike | None = None
) -> "tuple[ECGLM, PreTrainedTokenizerBase, ECGTokenizer, dict]":
    """Load a model folder.

    Parameters
    ----------
    folder : Path
    device : str or None
        `cuda` or `cpu`; None takes the GPU if there is one.
    base : path or None
        A local folder in the place of the base model, if that has moved.

    Returns
    -------
    (ECGLM, text tokenizer, ECGTokenizer, dict)
        The model in evaluation mode, and what ecgbyte.json says.

    Raises
    ------
    Failure
        If the folder is no model folder, its parts are damaged or do not belong together, or its base model is
        not there.
    """
    folder, device = Path(folder), device or best_device()
    about = folders.about(folder)
    ecg_tokenizer = ECGTokenizer.from_file(folder / "ecg_tokenizer.json")
    if ecg_tokenizer.sha256 != about["ecg_tokenizer_sha256"]:
        raise Failure(
            f"{folder / 'ecg_tokenizer.json'} is not the tokenizer that this model was trained with"
        )
    name, revision = folders.base_of(folder, about, base)
    folders.check_files(folder, about)
    loaded, text_tokenizer = load_base(name, about["method"], device, revision)
    if (loaded.get_input_embeddings().num_embeddings, text_sha256(text_tokenizer)) != (
        about["offset"],
        about["text_tokenizer_sha256"],
    ):
        raise Failure(f"{folder} was trained on another version of {name}: its text vocabulary differs")
    if about["method"] != "full":
        if about.get("base_sha256") not in (None, base_sha256(loaded)):
            raise Failure(f"{folder} was trained on another base model than {name} is now")
        with quiet():
            loaded = with_adapter(loaded, folder)
    model = ECGLM(loaded, ecg_tokenizer.vocab_size)
    with torch.no_grad():
        model.ecg_rows.weight.copy_(_read_rows(folder / "ecg_rows.safetensors", model.ecg_rows.weight.shape))
    return model.eval(), text_tokenizer, ecg_tokenizer, about


def _read_rows(path, shape):
    """The ECG rows in a file, if these are what it holds."""
    from safetensors.torch import load_file

    if not path.is_file():
        raise Failure(f"{path} is missing: copy the model folder anew, or train again")
    found = folders.shapes(path)
    if {*found} != {"weight"} or tuple(found["weight"]) != tuple(shape):
        raise Failure(
            f"{path} holds {str(found)[:100]}, and its model needs {shape[0]} rows of {shape[1]} in `weight`"
        )
    return load_file(path)["weight"]


def best_device():
    """`cuda` if there is a GPU, else `cpu`."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def text_sha256(text_tokenizer):
    """SHA-256 over a text tokenizer's vocabulary, in hex: it tells one version of a base model from another."""
    vocabulary = sorted(text_tokenizer.get_vocab().items(), key=lambda item: (item[1], item[0]))
    return hashlib.sha256(json.dumps(vocabulary).encode()).hexdigest()


def base_sha256(base):
    """SHA-256 over the parts of a base model that no method quantizes or trains, in hex.

    These are some rows of the embedding and all vectors (norms, biases), in bfloat16, which every method and
    device holds alike; no fine-tuned relative of a model has the same.
    """
    parts = [base.get_input_embeddings().weight[:1024]]
    parts += [p for name, p in base.named_parameters() if p.dim() == 1 and "lora_" not in name]
    digest = hashlib.sha256()
    for part in parts:
        digest.update(
            part.detach().to("cpu", torch.bfloat16).contiguous().view(torch.int16).numpy().tobytes()
        )
    return digest.hexdigest()


@contextlib.contextmanager
def quiet():
    """Keep the libraries' own progress bars and advice off standard error."""
    from transformers.utils import logging as transformers_logging

    level = logging.getLogger("transformers").level
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.getLogger("transformers").setLevel(level)
