"""Loading a model, giving it an adapter, and writing and checking adapter folders."""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ptalign.config import LoraConfig
from ptalign.errors import DataDamaged, InvalidInput, TrainingFailed, Unsupported
from ptalign.nouns import ModelSpec
from ptalign.training.decoder import Decoder, positions_of
from ptalign.training.tree import Row

WEIGHTS = "adapter_model.safetensors"
TOKEN_SHEET = "token_weights.json"
"""Which tokens were weighed, with every word masked: for people, kept beside an adapter's files."""
LEDGER = "ledger.json"
"""The trajectory: losses, weights, gradient norms and measurements of each step. No text."""
ALLOWED = {WEIGHTS, "adapter_config.json", "README.md", "manifest.json", TOKEN_SHEET, LEDGER}


def load_tokenizer(model: ModelSpec) -> Any:
    """The tokenizer of a model folder; never runs code from the folder."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(model.path, trust_remote_code=False)


def load_model(model: ModelSpec, device: str = "cpu") -> Any:
    """The bare causal language model, frozen, in eval mode.

    Attention is sdpa, or eager where the model soft-caps attention scores, which sdpa ignores.

    Raises:
        Unsupported: transformers cannot load it as a causal LM from safetensors.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        config = AutoConfig.from_pretrained(model.path, trust_remote_code=False)
        capped = getattr(config.get_text_config(), "attn_logit_softcapping", None)
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            model.path,
            dtype=getattr(torch, model.dtype),
            attn_implementation="eager" if capped else "sdpa",
            trust_remote_code=False,
            use_safetensors=True,
        )
    except (ValueError, OSError, KeyError) as error:
        raise Unsupported(
            f"model {model.name!r} does not load as a causal LM under sdpa from safetensors "
            f"({type(error).__name__})"
        ) from error
    return loaded.to(torch.device(device)).eval().requires_grad_(False)


def positions(model: ModelSpec) -> int:
    """How many tokens of a sample the model takes; `sys.maxsize` where it has no limit.

    Only its configuration is read.
    """
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(model.path, trust_remote_code=False)
    except (ValueError, OSError, KeyError):  # `load_model` says what is wrong with it
        return sys.maxsize
    return positions_of(config.get_text_config())


def attach(causal_lm: Any, lora: LoraConfig, seed: int, parent: Path | None = None) -> Decoder:
    """Puts a trainable adapter on the model: a new one, or a parent's to continue.

    Raises:
        InvalidInput: Unknown target modules, or ones that include the output head.
        Unsupported: The parent holds anything but safetensors.
    """
    from peft import LoraConfig as PeftLora
    from peft import PeftModel, get_peft_model

    torch.manual_seed(seed)  # LoRA's start, and its dropout
    if parent is not None:
        refuse_foreign(parent)
        peft = PeftModel.from_pretrained(causal_lm, str(parent), is_trainable=True)
        return Decoder(causal_lm, peft.eval())
    names = linear_names(causal_lm)
    unknown = sorted(set(lora.target_modules) - set(names))
    if unknown:
        mend = f"Use some of {', '.join(names)}."
        raise InvalidInput("lora.target_modules", f"{', '.join(unknown)} cannot be tuned", mend)
    settings = PeftLora(
        r=lora.rank,
        lora_alpha=lora.alpha or 2 * lora.rank,
        lora_dropout=lora.dropout,
        target_modules=sorted(lora.target_modules) or names,
        exclude_modules=_beside_text(causal_lm) or None,
        task_type="CAUSAL_LM",
    )
    try:
        peft = get_peft_model(causal_lm, settings)
    except ValueError as error:
        kind = type(causal_lm).__name__
        raise Unsupported(f"{kind}: PEFT has no LoRA for its layers ({error})") from error
    return Decoder(causal_lm, peft.eval())


def linear_names(causal_lm: Any) -> list[str]:
    """Last name parts of the linear layers that text runs through, but the output head; sorted."""
    names = set(_linears(causal_lm)) - set(_beside_text(causal_lm))
    return sorted({name.rpartition(".")[2] for name in names})


def _beside_text(causal_lm: Any) -> list[str]:
    """Linear layers outside the text decoder, sorted: those of a vision tower and its projector.

    No text reaches them, so they would only be noise in the adapter, without a gradient.
    """
    inside = set(causal_lm.get_decoder().modules())
    return sorted(name for name, module in _linears(causal_lm).items() if module not in inside)


def _linears(causal_lm: Any) -> dict[str, torch.nn.Module]:
    """All linear layers but the output head, by name."""
    from transformers.pytorch_utils import Conv1D  # GPT-2's linear layer

    head = causal_lm.get_output_embeddings()
    return {
        name: module
        for name, module in causal_lm.named_modules()
        if isinstance(module, torch.nn.Linear | Conv1D) and module is not head
    }


def trainable(decoder: Decoder) -> dict[str, Tensor]:
    """The adapter's parameters by name, in a fixed order."""
    named = decoder.peft.named_parameters()
    return {name: p for name, p in sorted(named) if p.requires_grad}


def refuse_foreign(folder: Path) -> None:
    """Refuses an adapter folder that holds anything PEFT might unpickle or run.

    Raises:
        Unsupported: A file is not one of those that ptalign keeps with an adapter.
        DataDamaged: A file is missing or the configuration is not one of a LoRA.
    """
    if not (folder / WEIGHTS).is_file() or not (folder / "adapter_config.json").is_file():
        raise DataDamaged(f"adapter folder {folder.name} lacks its weights or configuration")
    for file in sorted(folder.iterdir()):
        if file.name not in ALLOWED or file.is_symlink():
            raise Unsupported(f"adapter folder holds {file.name!r}: only safetensors and json")
    try:
        config = json.loads((folder / "adapter_config.json").read_text("utf-8"))
    except ValueError as error:
        raise DataDamaged(f"adapter folder {folder.name}: its configuration is no JSON") from error
    if config.get("peft_type") != "LORA" or config.get("auto_mapping"):
        raise Unsupported("only plain LoRA adapters can be loaded")


def save_adapter(decoder: Decoder, folder: Path) -> str:
    """Writes the PEFT folder, whole or not at all.

    Returns:
        SHA-256 of adapter_model.safetensors.
    """
    partial = folder.with_name(f"{folder.name}.partial-{os.getpid()}")
    shutil.rmtree(partial, ignore_errors=True)
    decoder.peft.save_pretrained(str(partial), safe_serialization=True)
    (partial / "README.md").unlink(missing_ok=True)  # PEFT's model card names machine paths
    _clean_config(partial / "adapter_config.json", decoder.causal_lm)
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)
    return sha256_of(folder / WEIGHTS)


def _clean_config(file: Path, causal_lm: Any) -> None:
    """Sorts what PEFT writes in set order and leaves the machine's model path out."""
    config = json.loads(file.read_text("utf-8"))
    for key, value in config.items():
        if isinstance(value, list) and all(isinstance(v, str) for v in value):
            config[key] = sorted(value)
    config["base_model_name_or_path"] = Path(str(causal_lm.config._name_or_path)).name
    file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", "utf-8")


def sha256_of(file: Path) -> str:
    """Hex SHA-256 of a file."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def check_live(decoder: Decoder, folder: Path, row: Row) -> float:
    """Reloads a saved adapter and checks that it changes logits as the trainer saw them.

    Args:
        decoder: The trained model; its adapter is unloaded here, it is of no use afterwards.
        folder: What `save_adapter` wrote.
        row: A few samples with weighted tokens.

    Returns:
        Largest change of a margin that the adapter makes, nats.

    Raises:
        TrainingFailed: The folder is inert, acts differently from what was trained, or makes NaNs.
    """
    from peft import PeftModel

    with torch.no_grad():
        trained, _ = decoder.margins(row)
        with decoder.bare():
            base, _ = decoder.margins(row)
        bare_model = decoder.peft.unload()
        reloaded = Decoder(bare_model, PeftModel.from_pretrained(bare_model, str(folder)).eval())
        reloaded.layout = decoder.layout
        again, _ = reloaded.margins(row)
    change = float((trained - base).abs().max())
    error = float((again - trained).abs().max())
    if not math.isfinite(change):
        raise TrainingFailed("the adapter's logits are not finite; lower learning_rate")
    if change < 1e-4:
        raise TrainingFailed("the adapter is inert: it leaves every checked logit as it was")
    if not error <= max(1e-3, 0.02 * change):  # NaN differs too
        raise TrainingFailed(f"the saved adapter differs from the trained one by {error:.1e} nats")
    return change
