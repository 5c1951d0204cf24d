"""Load a base model from a folder or the hub, check it, and add LoRA adapters."""

import contextlib
import hashlib
import inspect
import io
import itertools
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ecgbyte_cli.failure import Failure
from ecgbyte_cli.model import folder_checks
from ecgbyte_cli.model.ecg_lm import checkpoint_layers
from ecgbyte_cli.model.tiny import SIZES, build_tiny, training_texts
from ecgbyte_cli.runtime import devices
from ecgbyte_cli.runtime.memory import out_of_memory

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

# These take no cache, no embeddings, or a cache of another kind.
UNSUPPORTED = ("mpt", "minimax")
# Of models with recurrent layers, such as Mamba's, LoRA reaches only a part; these are known to work.
SUPPORTED_RECURRENT = (
    *("qwen3_next", "qwen3_5", "qwen3_5_text", "qwen3_5_moe", "qwen3_5_moe_text", "olmo_hybrid"),
    *("recurrent_gemma", "lfm2"),
)


def load_base(
    name: str,
    method: str,
    device: str,
    revision: str | None = None,
    seed: int = 0,
    place: str | None = None,
) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
    """Load a causal language model and its text tokenizer. No code of theirs runs.

    Parameters
    ----------
    name : str
        A hub id, a local folder, `tiny` or `small`.
    method : str
        `qlora` (4-bit NF4 with double quantization, bfloat16 compute), `lora` or `full`.
    device : str
        From `devices.choose_device`.
    revision : str or None
        The commit of a hub id; None is the newest.
    seed : int
        Seed of the weights of `tiny` and `small`.
    place : str or None
        Where to put the weights, if not on `device`, which decides their type.

    Raises
    ------
    Failure
        If the model does not exist, is not a supported causal language model, contains Python code, or its weights are
        pickles, damaged, missing or of other sizes.
    """
    if name in SIZES:
        base, text_tokenizer = build_tiny(seed, training_texts(name), name)
        return base.to(place or device), text_tokenizer
    local = folder_checks.is_local_path(name)
    if local and not Path(name).is_dir():
        raise Failure(f"base model {name}: the folder does not exist")
    if local and not (Path(name) / "config.json").is_file():
        raise Failure(f"{name} is not a model folder: it has no config.json")
    options = {"device_map": place or device, **_load_options(method, device)}
    base, text_tokenizer, report = _from_pretrained(name, options, local, revision)
    _check_report(name, local, report)
    # its own sampling settings do not matter here, and invalid ones could not be saved
    ids = {key: getattr(base.config, key, None) for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    base.generation_config = type(base.generation_config)(**ids)
    # On CPUs with AVX512-BF16 bitsandbytes packs the weights at the first forward pass without gradients, for a
    # kernel that has no backward pass: after a validation the gradients would silently be wrong.
    for module in base.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    return base, text_tokenizer


def _load_options(method: str, device: str) -> dict[str, Any]:
    """Return the options of `from_pretrained` for the weights of a base model."""
    from transformers import BitsAndBytesConfig

    half = devices.half_type(device)
    if method != "qlora":
        return {"dtype": half if half and method != "full" else torch.float32}
    half = half or torch.bfloat16  # slow on a CPU, but the weights are the same
    quantization = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=half,
    )
    return {"dtype": half, "quantization_config": quantization}


def _from_pretrained(
    name: str, options: dict[str, Any], local: bool, revision: str | None
) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase, dict[str, Any]]":
    """Check and load a base model; return it, its text tokenizer, and the report of what was loaded."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with silence_libraries():
        try:
            commit = _check_base(name, local, revision)
            revision = commit or revision
            text_tokenizer = AutoTokenizer.from_pretrained(name, revision=revision, trust_remote_code=False)
            base, report = AutoModelForCausalLM.from_pretrained(
                name,
                revision=revision,
                use_safetensors=True,
                output_loading_info=True,
                trust_remote_code=False,
                **options,
            )
        except Failure:
            raise
        # Transformers may raise anything for files that are damaged or hostile
        except Exception as error:
            if out_of_memory(error):
                raise
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise Failure(
                f"base model {name} cannot be loaded as a causal language model: {reason}"
            ) from error
    base.config._commit_hash = commit  # Transformers itself no longer keeps it
    return base, text_tokenizer, report


def _check_report(name: str, local: bool, report: dict[str, Any]) -> None:
    """Reject weights that are missing, of another size, or too many."""
    # what the hub publishes may have more weights, such as of heads that are not used here
    wrong = {*report["missing_keys"], *(key for key, *_ in report["mismatched_keys"])}
    wrong |= {*report["unexpected_keys"]} if local else set()
    if wrong or report["error_msgs"]:
        raise Failure(
            f"the weights of base model {name} are not those of its config.json: missing, of another size, or "
            f"one too many: {', '.join(sorted(wrong))[:200] or str(report['error_msgs'])[:200]}"
        )


def _check_base(name: str, local: bool, revision: str | None) -> str | None:
    """Check a base model before its weights are loaded; return the commit of a hub id."""
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING
    from transformers.utils import cached_file
    from transformers.utils.hub import extract_commit_hash

    file = cached_file(name, "config.json", revision=revision)
    folder_checks.check_base(Path(file).parent)
    stored = folder_checks.count_weights(Path(name)) if local else None
    config = AutoConfig.from_pretrained(name, revision=revision, trust_remote_code=False)
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise Failure(f"base model {name} ({config.model_type}) is not a causal language model")
    found = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    if not _is_supported(config, found[0] if isinstance(found, tuple) else found):
        raise Failure(
            f"base model {name}: models of the kind {config.model_type} cannot be trained on ECGs here; use another"
        )
    if stored:
        _check_size(name, config, *stored)
    return None if local else extract_commit_hash(file, None)


def _is_supported(config: "PreTrainedConfig", architecture: "type[PreTrainedModel]") -> bool:
    """Return whether a kind of model takes embeddings and a cache, and looks only at what came before."""
    kind = config.model_type
    takes = inspect.signature(architecture.forward).parameters
    needed = {"inputs_embeds", "past_key_values", "logits_to_keep", "position_ids"}
    needed -= {"position_ids"} if kind == "bloom" else set()  # which knows distances alone
    recurrent = getattr(architecture, "_is_stateful", False) and kind not in SUPPORTED_RECURRENT
    if kind == "granitemoehybrid":  # some have attention alone
        recurrent = "mamba" in (getattr(config, "layer_types", None) or ["mamba"])
    # BERT and its like look at what comes after, unless they say that they do not
    both_ways = getattr(config, "is_decoder", True) is False and not kind.startswith("gpt_neox")
    return not (kind in UNSUPPORTED or recurrent or both_ways or needed - takes.keys())


def _check_size(name: str, config: "PreTrainedConfig", tensors: int, numbers: int) -> None:
    """Reject a config.json that asks for far more weights than the folder's files hold."""
    from transformers import AutoModelForCausalLM

    if (getattr(config, "num_hidden_layers", None) or 0) > tensors:
        raise Failure(f"{name}: its config.json asks for more layers than its files hold tensors: {tensors}")
    with torch.device("meta"):  # every size of it, and no memory
        promised = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    size = sum(t.numel() for t in itertools.chain(promised.parameters(), promised.buffers()))
    if size > 8 * numbers + 2**26:
        raise Failure(f"{name}: its config.json asks for {size:,} weights, and its files hold {numbers:,}")


def add_adapter(
    base: "PreTrainedModel",
    rank: int = 16,
    alpha: float = 32,
    dropout: float = 0.05,
    checkpointing: bool = True,
) -> "PeftModel":
    """Freeze a base model and put trainable LoRA adapters on its attention and MLP projections.

    A mixture of experts gets them on the attention only: the experts of a layer are one parameter, for which peft's
    adapters have no dropout.

    Parameters
    ----------
    base : transformers.PreTrainedModel
    rank : int
    alpha, dropout : float
    checkpointing : bool
        Recompute the layers' states in the backward pass instead of keeping them: a third slower, with much less
        memory.
    """
    from peft import LoraConfig, get_peft_model

    # peft's prepare_model_for_kbit_training would keep embedding and norms in float32 in training only, and answers
    # would come from a slightly different model
    enable_gradients(base, checkpointing)
    # all linear layers but the output: the seven projections of a Llama, whatever their names
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
    """Make a frozen base model pass gradients to its inputs; `checkpointing` is as in `add_adapter`."""
    if checkpointing:
        checkpoint_layers(base)
    base.enable_input_require_grads()


def load_adapter(base: "PreTrainedModel", folder: Path, trainable: bool = False) -> "PeftModel":
    """Load the adapter of a model folder onto its base model; it is frozen unless `trainable`.

    Raises
    ------
    Failure
        If it is not an adapter of `ecgbyte finetune`, or not for this base model.
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


def text_tokenizer_sha256(text_tokenizer: "PreTrainedTokenizerBase") -> str:
    """Return the SHA-256 of a text tokenizer's vocabulary, in hex: versions of a base model differ in it."""
    vocabulary = sorted(text_tokenizer.get_vocab().items(), key=lambda item: (item[1], item[0]))
    return hashlib.sha256(json.dumps(vocabulary).encode()).hexdigest()


def base_model_sha256(base: "PreTrainedModel") -> str | None:
    """Return the SHA-256 of the parts of a base model that no method quantizes or trains, in hex.

    These are some rows of the embedding and all vectors (norms, biases), in bfloat16. Fine-tuned relatives of a model
    differ in them. Every method and device holds them alike, but for older GPUs, which hold them in float16: None.
    """
    if base.get_input_embeddings().weight.dtype == torch.float16:
        return None
    parts = [base.get_input_embeddings().weight[:1024]]
    parts += [p for name, p in base.named_parameters() if p.dim() == 1 and "lora_" not in name]
    digest = hashlib.sha256()
    for part in parts:
        digest.update(
            part.detach().to("cpu", torch.bfloat16).contiguous().view(torch.int16).numpy().tobytes()
        )
    return digest.hexdigest()


@contextlib.contextmanager
def silence_libraries() -> Iterator[None]:
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
