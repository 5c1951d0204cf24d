"""Load a base model from a folder or the hub, check it, and put LoRA adapters on it."""

import contextlib
import hashlib
import inspect
import io
import itertools
import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ecgbyte_cli.failure import Failure
from ecgbyte_cli.model import folder_checks
from ecgbyte_cli.runtime.memory import out_of_memory

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase
from ecgbyte_cli.model.ecg_lm import checkpoint_layers
from ecgbyte_cli.model.tiny import build_tiny, tiny_training_texts

# Kinds of models whose state the prompts here cannot be read into: they take no cache, or no embeddings, or another.
# Layers with a running state are Mamba's and others', of which LoRA reaches a part alone; these are known to work.
UNSUPPORTED = ("mpt", "minimax")

SUPPORTED_RECURRENT = (
    *("qwen3_next", "qwen3_5", "qwen3_5_text", "qwen3_5_moe", "qwen3_5_moe_text", "olmo_hybrid"),
    *("recurrent_gemma", "lfm2"),
)


def supports_bfloat16(device: str) -> bool:
    """Whether weights and autocast are in bfloat16 on a device: on a GPU, and on a CPU that has it in hardware."""
    has = torch.cpu.get_capabilities()
    return str(device).startswith("cuda") or any(has.get(k) for k in ("avx512_bf16", "amx_bf16", "bf16"))


def load_base(
    name: str, method: str, device: str, revision: str | None = None, seed: int = 0
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
    seed : int
        Of the weights of `tiny`.

    Raises
    ------
    Failure
        If there is no such model, it is no causal language model or none that can be used here, it has code of its
        own, or its weights are pickles, are damaged, or are not those that it needs.
    """
    if name == "tiny":
        base, text_tokenizer = build_tiny(seed, tiny_training_texts())
        return base.to(device), text_tokenizer
    local = folder_checks.is_local_path(name)
    if local and not Path(name).is_dir():
        raise Failure(f"base model {name}: there is no such folder")
    if local and not (Path(name) / "config.json").is_file():
        raise Failure(f"{name} is no model folder: it has no config.json")
    from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

    options = {"dtype": torch.bfloat16 if method != "full" and supports_bfloat16(device) else torch.float32}
    if method == "qlora":
        options["dtype"] = torch.bfloat16
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16,
        )
    with silence_libraries():
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
            if out_of_memory(error):
                raise
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
    folder_checks.check_base(Path(file).parent)
    held = folder_checks.count_weights(Path(name)) if local else None
    config = AutoConfig.from_pretrained(name, revision=revision, trust_remote_code=False)
    kind = config.model_type
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise Failure(f"base model {name} ({kind}) is no causal language model")
    made = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    made = made[0] if isinstance(made, tuple) else made
    takes = inspect.signature(made.forward).parameters
    needed = {"inputs_embeds", "past_key_values", "logits_to_keep", "position_ids"}
    needed -= {"position_ids"} if kind == "bloom" else set()  # which knows distances alone
    running = getattr(made, "_is_stateful", False) and kind not in SUPPORTED_RECURRENT
    if kind == "granitemoehybrid":  # some have attention alone
        running = "mamba" in (getattr(config, "layer_types", None) or ["mamba"])
    # BERT and its like look at what comes after, unless they say that they do not
    both_ways = getattr(config, "is_decoder", True) is False and not kind.startswith("gpt_neox")
    if kind in UNSUPPORTED or running or both_ways or needed - takes.keys():
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
    alpha: float = 32,
    dropout: float = 0.05,
    checkpointing: bool = True,
) -> "PeftModel":
    """Freeze a base model and put trainable LoRA adapters on its attention and MLP projections.

    In a mixture of experts on the attention alone: the experts of a layer are one parameter together, on which
    peft's adapters know no dropout.

    Parameters
    ----------
    base : transformers.PreTrainedModel
    rank : int
    alpha, dropout : float
    checkpointing : bool
        Compute the layers' states once more in the backward pass, and do not keep them: a third more time, for
        much less memory.
    """
    from peft import LoraConfig, get_peft_model

    # peft's prepare_model_for_kbit_training would hold embedding and norms in float32, which a model that is
    # loaded to answer has in bfloat16: it would not be quite the model that was trained
    enable_gradients(base, checkpointing)
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


def enable_gradients(base: torch.nn.Module, checkpointing: bool) -> None:
    """Make a frozen base model pass gradients to its inputs; with `checkpointing` it keeps no layer's states."""
    if checkpointing:
        checkpoint_layers(base)
    base.enable_input_require_grads()


def load_adapter(base: "PreTrainedModel", folder: Path, trainable: bool = False) -> "PeftModel":
    """Put the adapter of a model folder on its base model; it stays as it is, unless it is `trainable`.

    Raises
    ------
    Failure
        If it is none of `ecgbyte finetune`, or not one for this base model.
    """
    from peft import LoraConfig, PeftModel, get_peft_model_state_dict

    config = LoraConfig(**folder_checks.read_adapter_config(folder), task_type="CAUSAL_LM")
    path = folder / "adapter_model.safetensors"
    try:
        model = PeftModel.from_pretrained(base, folder, config=config, is_trainable=trainable)
    except (RuntimeError, ValueError) as error:
        if out_of_memory(error):
            raise
        reason = " ".join(str(error).split())[:200]
        raise Failure(f"{path} does not fit its base model: {reason}") from error
    stored, needed = folder_checks.tensor_shapes(path).keys(), get_peft_model_state_dict(model).keys()
    if stored ^ needed:
        raise Failure(
            f"{path} has not the weights that its base model needs: missing or one too many: "
            f"{', '.join(sorted(stored ^ needed))[:200]}"
        )
    return model


def best_device():
    """`cuda` if there is a GPU, else `cpu`."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def text_tokenizer_sha256(text_tokenizer):
    """SHA-256 over a text tokenizer's vocabulary, in hex: it tells one version of a base model from another."""
    vocabulary = sorted(text_tokenizer.get_vocab().items(), key=lambda item: (item[1], item[0]))
    return hashlib.sha256(json.dumps(vocabulary).encode()).hexdigest()


def base_model_sha256(base):
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
def silence_libraries():
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
