"""Checkpoints that survive a kill at any moment: tensors as safetensors, everything else as JSON, both under SHA-256. No pickle.

For the path P (without an ending), beside each other:
  P.<8 hex>.safetensors   the tensors, named by their content
  P.json                  {"tensors": {"file", "sha256"}, "state": …, "sha256": of the two}; names the tensors that belong to it
  P.prev.json             the generation before, with its own tensors file; a training goes on from it where the newest is damaged
Tensors are written first and only then named by a JSON, whose rename is the one moment at which the new generation counts.
"""
from __future__ import annotations

import hashlib
import json
import random
import re
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from ..errors import ModelError, RecordError
from ..io import durable, records

OPTIMISER, RANDOM = "optimiser.", "random."  # prefixes of tensor names, so that all of a checkpoint's tensors fit in one dict


def save(path: Path, tensors: dict[str, Tensor], state: dict) -> None:
    """Write the checkpoint P = path (without an ending) durably; the one before is kept as P.prev.json.

    state: JSON values; tuples come back as lists and keys as strings. WorkspaceError where it cannot be written (full
    disk): what was there before is then still there and valid.
    """
    newest, previous = _json_paths(path)
    # clones: safetensors refuses tensors that are shared or not contiguous
    own = {name: t.detach().cpu().clone(memory_format=torch.contiguous_format) for name, t in tensors.items()}
    content = safetensors.torch.save(own)
    digest = hashlib.sha256(content).hexdigest()
    file = f"{path.name}.{digest[:8]}.safetensors"
    # as it will read back (keys as strings), so that its hash will be the same then
    body = json.loads(json.dumps({"tensors": {"file": file, "sha256": digest}, "state": state}))
    text = json.dumps(body | {"sha256": _body_hash(body)})
    try:
        durable.write_bytes(path.with_name(file), content)
        if _is_whole(newest):  # a damaged one must not take the place of a good previous one
            durable.write_bytes(previous, newest.read_bytes())
        durable.write_text(newest, text)
    finally:
        _remove_unnamed(path)


def load(path: Path, newest_only: bool = False) -> tuple[dict[str, Tensor], dict, str | None]:
    """(tensors on the CPU, state, warning) of the checkpoint P = path (without an ending).

    The warning is None, or says why the newest generation was passed over for the one before. ModelError where neither
    is usable; newest_only: where the newest is not, since a training can make up for an older one, but a prediction cannot.
    """
    newest, previous = _json_paths(path)
    if not exists(path):
        raise ModelError(f"{newest}: no checkpoint there; train this member first")
    try:
        return *_read(newest), None
    except ModelError as damage:
        if newest_only:
            raise ModelError(f"{damage}; train this member again") from None
        try:
            found = _read(previous)
        except ModelError as also:
            raise ModelError(f"{damage}; and the one before it: {also}; train this member again") from None
        return *found, f"{damage}; the checkpoint before it ({previous.name}) is used instead"


def usable_files(path: Path) -> tuple[Path, Path]:
    """The record and the tensors of the generation that `load` takes; ModelError where neither is whole."""
    for json_path in _json_paths(path):
        if _is_whole(json_path):
            return json_path, json_path.with_name(_read_record(json_path)["tensors"]["file"])
    raise ModelError(f"{_json_paths(path)[0]}: no checkpoint that is whole there; train this member again")


def exists(path: Path) -> bool:
    """Whether any generation of the checkpoint P = path is there, whole or not."""
    return any(p.exists() for p in _json_paths(path))


def _json_paths(path: Path) -> tuple[Path, Path]:
    return path.with_name(f"{path.name}.json"), path.with_name(f"{path.name}.prev.json")


def _body_hash(body: dict) -> str:
    return hashlib.sha256(json.dumps({k: body[k] for k in ("state", "tensors")}, sort_keys=True).encode()).hexdigest()


def _read_record(json_path: Path) -> dict:
    """The parsed and verified JSON of one generation; ModelError says what is wrong with it."""
    try:
        body = records.read_json(json_path)
    except RecordError as e:
        raise ModelError(str(e)) from None
    stem = json_path.name.removesuffix(".json").removesuffix(".prev")
    match body:
        case {"tensors": {"file": str(file), "sha256": str()}, "state": dict(), "sha256": str(digest)} if digest == _body_hash(body):
            if re.fullmatch(re.escape(stem) + r"\.[0-9a-f]{8}\.safetensors", file):  # never a file of another folder
                return body
    raise ModelError(f"{json_path}: the checkpoint's record is damaged (its SHA-256 does not fit its content)")


def _read(json_path: Path) -> tuple[dict[str, Tensor], dict]:
    """Tensors and state of one generation, both verified."""
    body = _read_record(json_path)
    file = json_path.with_name(body["tensors"]["file"])
    try:
        content = file.read_bytes()  # read once: what is hashed is what is used
    except OSError as e:
        raise ModelError(f"{file}: the checkpoint's tensors cannot be read ({e.strerror})") from None
    digest = hashlib.sha256(content).hexdigest()
    if digest != body["tensors"]["sha256"]:
        wanted = body["tensors"]["sha256"]
        raise ModelError(f"{file}: the checkpoint's tensors are damaged (SHA-256 {digest[:8]}… instead of {wanted[:8]}…)")
    try:
        return safetensors.torch.load(content), body["state"]
    except SafetensorError as e:
        raise ModelError(f"{file}: no safetensors file ({e})") from None


def _is_whole(json_path: Path) -> bool:
    try:
        body = _read_record(json_path)
        return durable.sha256(json_path.with_name(body["tensors"]["file"])) == body["tensors"]["sha256"]
    except (ModelError, OSError):
        return False


def _remove_unnamed(path: Path) -> None:
    """Remove this checkpoint's tensors files that neither generation names; none while a generation cannot be read."""
    named = set()
    for json_path in _json_paths(path):
        if json_path.exists():
            try:
                named.add(_read_record(json_path)["tensors"]["file"])
            except ModelError:
                return
    for file in path.parent.iterdir() if path.parent.is_dir() else []:
        if re.fullmatch(re.escape(path.name) + r"\.[0-9a-f]{8}\.safetensors", file.name) and file.name not in named:
            file.unlink(missing_ok=True)


def optimiser_state(optimiser: torch.optim.Optimizer) -> tuple[dict[str, Tensor], dict]:
    """An optimiser's state as (tensors named optimiser.<parameter>.<value>, JSON of everything else)."""
    whole = optimiser.state_dict()
    tensors, values = {}, {}
    for parameter, entries in whole["state"].items():
        for name, value in entries.items():
            (tensors if isinstance(value, Tensor) else values)[f"{OPTIMISER}{parameter}.{name}"] = value
    return tensors, {"groups": whole["param_groups"], "values": values}


def restore_optimiser(optimiser: torch.optim.Optimizer, tensors: dict[str, Tensor], state: dict) -> None:
    """Inverse of `optimiser_state`; tensors may hold others too. ModelError where the state belongs to another network."""
    entries: dict[int, dict] = {}
    for key, value in (tensors | state["values"]).items():
        if key.startswith(OPTIMISER):
            parameter, name = key.removeprefix(OPTIMISER).split(".", 1)
            entries.setdefault(int(parameter), {})[name] = value
    # JSON has no tuples: Adam's betas come back as a list
    groups = [{k: tuple(v) if isinstance(v, list) and k != "params" else v for k, v in g.items()} for g in state["groups"]]
    try:
        optimiser.load_state_dict({"state": entries, "param_groups": groups})
    except ValueError as e:
        raise ModelError(f"the checkpoint's optimiser state does not fit the network ({e}); train this member again") from None
    for parameter, values in optimiser.state.items():
        for name, value in values.items():
            if isinstance(value, Tensor) and value.ndim and value.shape != parameter.shape:
                raise ModelError(
                    f"the checkpoint's optimiser state '{name}' has shape {tuple(value.shape)} for a parameter of shape "
                    f"{tuple(parameter.shape)}; train this member again"
                )


def random_state() -> tuple[dict[str, Tensor], dict]:
    """The states of torch's, numpy's and Python's global generators as (tensors named random.…, JSON)."""
    version, words, gauss_next = random.getstate()
    kind, keys, position, has_gauss, cached = np.random.get_state()
    tensors = {"torch": torch.get_rng_state(), "numpy": torch.from_numpy(keys.astype(np.int64)), "python": torch.tensor(words)}
    if torch.cuda.is_available():
        tensors |= {f"cuda.{i}": s for i, s in enumerate(torch.cuda.get_rng_state_all())}
    state = {"python": [version, gauss_next], "numpy": [kind, position, has_gauss, cached]}
    return {RANDOM + name: t for name, t in tensors.items()}, state


def restore_random_state(tensors: dict[str, Tensor], state: dict) -> None:
    """Inverse of `random_state`; tensors may hold others too. States of accelerators that are not there are left out."""
    torch.set_rng_state(tensors[RANDOM + "torch"])
    kind, *rest = state["numpy"]
    np.random.set_state((kind, tensors[RANDOM + "numpy"].numpy().astype(np.uint32), *rest))
    version, gauss_next = state["python"]
    random.setstate((version, tuple(tensors[RANDOM + "python"].tolist()), gauss_next))
    for i in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        if f"{RANDOM}cuda.{i}" in tensors:
            torch.cuda.set_rng_state(tensors[f"{RANDOM}cuda.{i}"], i)
