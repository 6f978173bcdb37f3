"""Checkpoints to and from Hugging Face:  python -m xl_flax.convert --source=FOLDER --target=FOLDER

The direction follows from what the source is: a folder of Hugging Face or sentence-transformers (or
a published name, as in FacebookAI/xlm-roberta-base, where there is a network) becomes one of our
checkpoints; a run's folder, or one of its checkpoints, becomes a folder for Transformers. Families:
BERT, RoBERTa and XLM-R (also XL and XXL), XLM, ModernBERT and mmBERT, EuroBERT.

    --inspect   print what a folder of either kind holds, and convert nothing;
                --inspect=all also prints each tensor
    --average   the mean of several checkpoints of a run becomes a new one
    --ties      what TIES makes of models that were trained on from the source
    --verify    run both models on random ids and on text and print the largest
                differences; where the target exists already, only that. Ends
                with status 1 where they are more than what rounding makes

A converted checkpoint is trained further with its own `model.gin`, evaluated as any other, and
converted back.
"""

import argparse
import importlib
import math
import os
import traceback
from collections.abc import Sequence

import ml_dtypes
import numpy as np
from absl import logging

from xl_flax import cli
from xl_flax.checkpoints import intact
from xl_flax.checkpoints.description import Description
from xl_flax.checkpoints.load import (
    complete_checkpoints,
    find_checkpoints,
    read_description,
)
from xl_flax.checkpoints.manager import first_line
from xl_flax.checkpoints.remote import bring
from xl_flax.converters import hub, merged, read, sentence_transformers, summary, write
from xl_flax.converters.folders import new_folder
from xl_flax.converters.ours import open_theirs, to_ours, vocabulary_of
from xl_flax.errors import UserError
from xl_flax.files import remote
from xl_flax.files.folders import entries, remove
from xl_flax.files.read import read_text
from xl_flax.progress import progress
from xl_flax.text_table import wrapped

DTYPES = {"float32": np.dtype(np.float32), "bfloat16": np.dtype(ml_dtypes.bfloat16)}
FORMATS = ("huggingface", "sentence-transformers")


def main(argv: Sequence[str]) -> None:
    """Runs the command."""
    args = _parser().parse_args(argv)
    cli.check_paths(args, "tokenizer", "text")
    cli.stage_paths(args, "source", "target")
    _fetch(args)
    for module in args.module_import:
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise UserError(f"--module_import={module}: {error}: is it on PYTHONPATH?") from error
        except (Exception, SystemExit) as error:  # whatever a module does while it is imported
            last = traceback.extract_tb(error.__traceback__)[-1]
            raise UserError(
                f"--module_import={module}: {last.filename}, line {last.lineno}: "
                f"{type(error).__name__}: {first_line(error)}"
            ) from error
    logging.set_verbosity(logging.ERROR)  # Orbax warns of how `save_checkpoint` means it to be
    ours = complete_checkpoints(args.source) and find_checkpoints(args.source)
    source = ours[-1] if ours else _foreign(args.source)
    if args.inspect:
        whole = args.inspect == "all"
        print(summary.of_ours(source, whole) if ours else _inspect(source, args.tokenizer, whole))
        return
    if not args.target:
        raise UserError("--target=FOLDER: where to?")
    if args.average or args.ties:
        _merge(args)
        return
    if not (args.verify and entries(args.target)):
        if ours:
            to_theirs(source, args)
        else:
            if args.format or args.heads:
                raise UserError(
                    "--format and --heads are for what becomes a folder of Hugging Face"
                )
            to_ours(source, args.target, args.tokenizer, DTYPES.get(args.dtype))
        _send(args.target)
        print(f"wrote {remote.shown(args.target)}")
    if args.verify:
        from xl_flax.converters.verify import TEXTS, verify

        checkpoint, folder = (source, args.target) if ours else (args.target, source)
        texts = _lines(args.text) if args.text else [*TEXTS.values()]
        shown, differences = verify(checkpoint, folder, texts)
        print(shown)
        if differences:
            raise UserError(f"{checkpoint} and {folder} differ: {'; '.join(differences)}")


def _fetch(args: argparse.Namespace) -> None:
    """Brings what is remote to its stage, and refuses a remote target that holds something."""
    which = args.average or "latest"
    bring(args.source, "all" if which.startswith("last:") else which)
    where = remote.address(args.target) if args.target else None
    if where is None or args.inspect:
        return
    if not remote.files(where):
        remove(args.target)  # of an upload that failed: it is made again
    elif args.verify:
        bring(args.target)
    else:
        raise UserError(f"{where} exists already; nothing is overwritten: choose another --target")


def _send(target: str) -> None:
    """Uploads what was written; last what makes it a checkpoint, or a model."""
    if where := remote.address(target):
        names = {os.path.join(f, n) for f, _, names in os.walk(target) for n in names}
        names = {os.path.relpath(name, target) for name in names}
        last = names & {intact.CHECKSUMS_FILE, read.CONFIG, "modules.json"}
        remote.upload(target, where, names - last)
        remote.upload(target, where, last)


def to_theirs(checkpoint: str, args: argparse.Namespace) -> None:
    """A checkpoint → a folder of Hugging Face or sentence-transformers."""
    heads = [name.strip() for name in args.heads.split(",")] if args.heads else None
    head = None
    if args.format == "sentence-transformers":
        head = _sentence_head(read_description(checkpoint), heads)
        heads = [name for name in heads if name != head] if heads else None
    model = write.open_checkpoint(checkpoint, heads)
    dtype = DTYPES.get(args.dtype)
    if not 0 < args.shard_gb < math.inf:
        raise UserError(f"--shard_gb={args.shard_gb} must be more than 0")
    shard_bytes = int(args.shard_gb * 1e9)
    needed = sum(tensor.nbytes for tensor in model.tensors(dtype).values())
    with new_folder(args.target, needed) as folder, progress(needed, "writing", "bytes") as done:
        notes = write.write_model(model, folder, head, dtype, shard_bytes, done)
    for note in notes:
        print(wrapped(f"note: {note}"))


def _merge(args: argparse.Namespace) -> None:
    """Several checkpoints → one."""
    if args.average and args.ties:
        raise UserError("--average and --ties are two ways to merge: choose one")
    if args.average:
        checkpoints = merged.average(args.source, args.average, args.target)
    else:
        others = [remote.staged(path.strip()) for path in args.ties.split(",") if path.strip()]
        checkpoints = merged.ties(args.source, others, args.target)
    _send(args.target)
    print(f"wrote {remote.shown(args.target)}, made of {', '.join(checkpoints)}")


def _inspect(source: str, tokenizer_file: str | None, whole: bool) -> str:
    model, heads, _ = open_theirs(source)
    try:
        vocabulary = vocabulary_of(model, tokenizer_file)
    except UserError as error:
        vocabulary = error  # the rest is worth seeing all the same
    return summary.of_theirs(model, heads, vocabulary, whole)


def _sentence_head(description: Description, heads: Sequence[str] | None) -> str:
    sentence_heads = [n for n, s in description.heads.items() if s.get("kind", n) == "sentence"]
    chosen = [n for n in sentence_heads if not heads or n in heads]
    if len(chosen) != 1:
        raise UserError(
            "--format=sentence-transformers needs one sentence head; the checkpoint has "
            + (", ".join(sentence_heads) or "none")
            + ("; choose with --heads=NAME" if chosen else "")
        )
    settings = dict(description.heads[chosen[0]])
    sentence_transformers.check(chosen[0], settings, description.encoder.num_layers)
    return chosen[0]


def _foreign(source: str) -> str:
    """A folder as it is; a published name is fetched."""
    if os.path.isdir(source):
        if not any(os.path.exists(os.path.join(source, n)) for n in (read.CONFIG, "modules.json")):
            raise UserError(
                f"{source} is neither a run with a finished checkpoint nor a model's folder with "
                f"{read.CONFIG}"
            )
        return source
    if os.path.exists(source):
        raise UserError(f"{source} is a file; give the folder that it is in")
    return hub.fetch(source)


def _lines(path: str) -> list[str]:
    lines = [line.strip() for line in read_text(path, "--text names a text file").splitlines()]
    if not any(lines):
        raise UserError(f"--text={path} has no text")
    return [line for line in lines if line]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m xl_flax.convert",
        description=__doc__,
        formatter_class=cli.Help,
    )
    parser.add_argument("--source", required=True, help="a folder of either kind, or a name")
    parser.add_argument("--target", help="the folder to write; it must not exist yet")
    parser.add_argument("--format", choices=FORMATS, help="of a folder for others [huggingface]")
    parser.add_argument("--heads", help="names of the heads to write, as in mlm,pooler [all]")
    parser.add_argument("--dtype", choices=DTYPES, help="of the weights written [as they are]")
    parser.add_argument("--shard_gb", type=float, default=5.0, help="most GB of one file [5]")
    parser.add_argument("--tokenizer", metavar="FILE", help="a vocabulary, instead of the source's")
    parser.add_argument(
        "--inspect",
        nargs="?",
        const="summary",
        choices=("summary", "all"),
        help="print what the source holds; all: with each tensor",
    )
    parser.add_argument(
        "--average",
        metavar="WHICH",
        help="write the mean of a run's checkpoints: last:5, all, or steps as in 500,1000",
    )
    parser.add_argument(
        "--ties",
        metavar="FOLDERS",
        help="write what TIES makes of these, which were trained on from the source",
    )
    parser.add_argument("--verify", action="store_true", help="compare source and target")
    parser.add_argument(
        "--module_import",
        action="append",
        default=[],
        metavar="MODULE",
        help="a module with a family or a head of your own; repeatable",
    )
    parser.add_argument("--text", metavar="FILE", help="what to compare on, a sentence a line")
    return parser


if __name__ == "__main__":
    cli.run(main)
