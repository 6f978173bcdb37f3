"""Folders of sentence-transformers: a model's, then pooling, a dense layer, normalisation."""

import json
import os
from typing import Any

import numpy as np

from xl_flax.converters.folders import MEND, optional_json, write_json
from xl_flax.converters.tensors import Tensor, open_folder, write_folder
from xl_flax.errors import UserError
from xl_flax.files.read import read_bytes, read_json

MODULES = "modules.json"
HEAD = "sentence"  # what a converted head is called here
POOLING = {"cls": "cls", "mean_all": "mean"}
ACTIVATIONS = {
    "affine": "torch.nn.modules.linear.Identity",
    "tanh": "torch.nn.modules.activation.Tanh",
}
BEFORE_6 = {"pooling_mode_cls_token": "cls", "pooling_mode_mean_tokens": "mean"}
_TYPE = "sentence_transformers.models."


def is_folder(folder: str) -> bool:
    """Whether a folder was written by sentence-transformers."""
    return os.path.exists(os.path.join(folder, MODULES))


def read(folder: str) -> tuple[str, dict[str, Any], dict[str, np.ndarray]]:
    """What stands behind the encoder.

    Returns:
      The folder of the encoder, settings of the sentence head, and its parameters by name.

    Raises:
      UserError: a module that our sentence heads have no place for.
    """
    path = os.path.join(folder, MODULES)
    try:
        modules = json.loads(read_bytes(path, MEND))
        kinds = [(module["type"].rpartition(".")[2], str(module["path"])) for module in modules]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{path} is damaged ({error}); {MEND}") from error
    names = [kind for kind, _ in kinds]
    expected = ["Transformer", "Pooling", "Dense", "Normalize"]
    if names[:2] != expected[:2] or names != [name for name in expected if name in names]:
        raise UserError(f"{path}: modules {', '.join(names)} are not {', '.join(expected)} in turn")
    for _, sub in kinds:
        if os.path.isabs(sub) or ".." in sub.split("/"):
            raise UserError(f"{path} names {sub!r}, which is not inside the folder")
    where = {kind: os.path.join(folder, sub) for kind, sub in kinds}
    settings = {"kind": "sentence", "pooling": _pooling(where["Pooling"])}
    settings["normalise"] = "Normalize" in where
    params = {}
    if "Dense" in where:
        projection, params = _dense(where["Dense"])
        settings |= {"projection": projection, "width": params["out"].shape[1]}
    return where["Transformer"], settings, params


def _pooling(folder: str) -> str:
    path = os.path.join(folder, "config.json")
    config = read_json(path, MEND)
    modes = config.get("pooling_mode")
    if modes is None:
        modes = [
            BEFORE_6.get(key, key)
            for key, value in config.items()
            if key.startswith("pooling_mode_") and value
        ]
    modes = list(map(str, modes)) if isinstance(modes, list | tuple) else [str(modes)]
    ours = {theirs: name for name, theirs in POOLING.items()}
    if len(modes) != 1 or modes[0] not in ours:
        raise UserError(
            f"{path}: pooling {' and '.join(modes)} cannot be converted, one of "
            f"{', '.join(ours)} can"
        )
    return ours[modes[0]]


def _dense(folder: str) -> tuple[str, dict[str, np.ndarray]]:
    path = os.path.join(folder, "config.json")
    config = read_json(path, MEND)
    name = str(config.get("activation_function", "")).rpartition(".")[2]
    if name not in ("Identity", "Tanh") or config.get("use_residual"):
        raise UserError(
            f"{path}: a dense layer with {name} cannot be converted; Identity, Tanh can"
        )
    weights = open_folder(folder)
    if set(weights) - {"linear.bias"} != {"linear.weight"}:
        raise UserError(
            f"{folder} has the tensors {', '.join(weights)}, not those of a dense layer"
        )
    params = {"out": np.ascontiguousarray(weights["linear.weight"].read().T)}
    if "linear.bias" in weights:
        params["out_bias"] = weights["linear.bias"].read()
    if name == "Tanh" and "out_bias" not in params:
        raise UserError(f"{path}: a dense layer with Tanh and no bias cannot be converted")
    return ("tanh" if name == "Tanh" else "affine" if len(params) > 1 else "linear"), params


def check(name: str, settings: dict[str, Any], layers: int) -> None:
    """Raises UserError if sentence-transformers cannot do what a sentence head does."""
    if settings.get("layer", -1) % (layers + 1) != layers:
        raise UserError(f"head {name!r} pools layer {settings['layer']}, and only the last can be")
    if settings.get("projection") == "mlp":
        raise UserError(f"head {name!r} projects by two layers, and only one can be written")


def write(
    folder: str, settings: dict[str, Any], params: dict[str, np.ndarray], width: int, length: int
) -> list[str]:
    """Writes what stands behind the encoder, whose own files are in `folder` itself.

    Args:
      folder: where to.
      settings: of the sentence head.
      params: of the head, by name.
      width: of the encoder.
      length: longest input, in tokens.

    Returns:
      What the folder does in another way than the head.
    """
    notes = []
    pooling = settings.get("pooling", "mean")
    if pooling == "mean":
        notes.append(
            "the mean there is over special tokens, too, which here it is not: similarities differ "
            "a little"
        )
    modules = [("Transformer", "")]

    def add(kind: str, content: dict[str, Any] | None) -> str:
        sub = f"{len(modules)}_{kind}"
        modules.append((kind, sub))
        os.makedirs(os.path.join(folder, sub))
        if content is not None:
            write_json(os.path.join(folder, sub, "config.json"), content)
        return os.path.join(folder, sub)

    add(
        "Pooling",
        {
            "word_embedding_dimension": width,
            "pooling_mode_cls_token": pooling == "cls",
            "pooling_mode_mean_tokens": pooling != "cls",
        },
    )
    if settings.get("projection"):
        out, bias = params["out"], params.get("out_bias")
        kind = "tanh" if settings["projection"] == "tanh" else "affine"
        dense = add(
            "Dense",
            {
                "in_features": out.shape[0],
                "out_features": out.shape[1],
                "bias": bias is not None,
                "activation_function": ACTIVATIONS[kind],
            },
        )
        tensors = {"linear.weight": out.T} | ({} if bias is None else {"linear.bias": bias})
        write_folder(
            dense,
            {n: Tensor(x.shape, x.dtype, lambda x=x: x) for n, x in tensors.items()},
            1 << 40,
            lambda _: None,
        )
    if settings.get("normalise", True):
        add("Normalize", None)
    write_json(
        os.path.join(folder, MODULES),
        [
            {"idx": i, "name": str(i), "path": sub, "type": _TYPE + kind}
            for i, (kind, sub) in enumerate(modules)
        ],
    )
    write_json(
        os.path.join(folder, "sentence_bert_config.json"),
        {"max_seq_length": length, "do_lower_case": False},
    )
    write_json(
        os.path.join(folder, "config_sentence_transformers.json"),
        {"prompts": {}, "default_prompt_name": None, "similarity_fn_name": "cosine"},
    )
    return notes


def notes(folder: str, encoder_folder: str, longest: int) -> list[str]:
    """What a folder of sentence-transformers does to a text, and a checkpoint of ours does not."""
    remarks = []
    settings = optional_json(encoder_folder, "sentence_bert_config.json")
    length = settings.get("max_seq_length")
    if length is not None and length != longest:
        remarks.append(f"there, a text is cut after {length} tokens, and here after {longest}")
    if settings.get("do_lower_case"):
        remarks.append(
            "there, a text becomes lower case before the tokenizer sees it, and not here"
        )
    prompts = optional_json(folder, "config_sentence_transformers.json").get("prompts") or {}
    if used := {name: text for name, text in prompts.items() if text}:
        remarks.append(f"what comes before a text is not known here; write it yourself: {used}")
    return remarks
