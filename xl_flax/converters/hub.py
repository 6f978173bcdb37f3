"""Published models, fetched by name; folders that are here need none of it."""

import glob
import os
import re

from xl_flax.errors import UserError

# Beside the weights: configuration, tokenizers, the modules of sentence-transformers.
DESCRIBING = ["*.json", "*.txt", "*.model"]
SAFE, PICKLED = "*.safetensors", "*pytorch_model*.bin"


def fetch(name: str) -> str:
    """The folder of a published model, as in FacebookAI/xlm-roberta-base, fetched once.

    Raises:
      UserError: it is no name, or nothing can be fetched by it.
    """
    if not re.fullmatch(r"[\w-][\w.-]*(/[\w.-]+)?", name):
        raise UserError(f"{name} does not exist")
    try:
        import huggingface_hub
    except ImportError:
        raise UserError(
            f"{name} is no folder; to fetch what is published, pip install 'xl-flax[hf]'"
        ) from None
    try:
        folder = huggingface_hub.snapshot_download(name, allow_patterns=[*DESCRIBING, SAFE])
        if not glob.glob(os.path.join(folder, SAFE)):  # older ones have what PyTorch wrote only
            huggingface_hub.snapshot_download(
                name, revision=os.path.basename(folder), allow_patterns=[PICKLED]
            )
        return folder
    except Exception as error:  # the library's own, and those of its HTTP client
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise UserError(f"{name} is no folder here and cannot be fetched: {reason}") from error
