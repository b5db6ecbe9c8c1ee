"""Decides what writes the stories, a local model, an API, or one behind the other, and opens it.

A GPU that llama.cpp can use: a local model. None, and an API key: that API, at half the reward. Neither: the small CPU
model, if it is fast enough. Else a refusal with the three ways out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from storyfi_lite.errors import BadInput, ConfigError, LiteError
from storyfi_lite.loaders.base import Loader
from storyfi_lite.loaders.keys import API_KEYS, load_key
from storyfi_lite.machine.hardware import Hardware
from storyfi_lite.models.digest import file_sha256
from storyfi_lite.models.registry import ApiModel
from storyfi_lite.models.store import Store
from storyfi_lite.opening import api
from storyfi_lite.opening.local import LocalOpener, Notices
from storyfi_lite.options import ModelOptions, Provider

if TYPE_CHECKING:
    from storyfi_lite.validator.proof import Prover


def open_loader(options: ModelOptions, notices: Notices, warm_up: bool = False) -> tuple[Loader, Mapping[str, str]]:
    """Open a loader that is ready to answer; returns it with facts for the operator. Fetches the file if it is missing. With
    `warm_up` its first real answer is as fast as the later ones.

    Raises BadInput, Unavailable, DoesNotFit, EngineError or ConfigError.
    """
    opener, asked = LocalOpener(notices), options.api
    options = opener.resolve(options)
    registry = opener.registry
    named = registry.find(options.name) if options.name else None
    if options.think_tokens and (asked.model or isinstance(named, ApiModel)):
        raise BadInput("--think is for a local model; an API's model thinks as its vendor has it")
    if isinstance(named, ApiModel):
        if options.quant:
            raise BadInput(f"{named.key} is an API model; it has no quantizations")
        if asked.model:
            raise BadInput(f"--model.name {named.key} and --api.model {asked.model}: name one of them")
        return api.open_api(named, asked, registry)
    if asked.fallback:
        model = api.wanted_model(asked.fallback, asked, registry)
        return api.open_api(model, asked, registry, lambda: opener.loader(options, warm_up))
    if asked.model:
        if options.is_explicit:
            raise BadInput(
                f"--api.model {asked.model}, or the local model? "
                "Both, the API where the local model can't run: add --model.fallback_api"
            )
        return api.open_api(api.wanted_model(None, asked, registry), asked, registry)
    if not options.is_explicit and (provider := api_without_gpu(opener.hardware, options)):
        notices.note(f"no GPU that llama.cpp can use: answers come from the {provider} API, at half the reward")
        return api.open_api(registry.default_api(provider), asked, registry)
    if asked.base_url:
        raise BadInput(
            "--api.base-url is for an API, and a local model answers here\n"
            "  --api.model NAME, or --model.fallback_api openai"
        )
    return opener.loader(options, warm_up)


def open_claimed_prover(options: ModelOptions, model_name: str, quantization: str, notices: Notices) -> Prover:
    """Load the file that the options name, else the one that an answer claims. What it claims is a name of the registry: never a
    path or a repository, where a stranger would choose what is read. Raises what LocalOpener.prover raises."""
    opener = LocalOpener(notices)
    if options.is_explicit:
        return opener.prover(options)
    try:
        return opener.prover(replace(options, name=opener.registry.find(model_name).key, quant=quantization))
    except BadInput as error:
        raise BadInput(f"{error}\n  --model.path FILE names the file to replay with") from None


def open_other_provers(sha256: str, vocab_size: int, notices: Notices) -> Iterator[tuple[str, Prover]]:
    """Load the registry's files that are here one after the other, but for the one of this sha256 and those of another vocabulary's
    size; yields each with its name, and closes it. One that cannot be loaded is noted and left out."""
    opener = LocalOpener(notices)
    for spec, file, path in Store().complete_files(opener.registry):
        if spec.architecture.vocab_size == vocab_size and file_sha256(path) != sha256:
            try:
                prover = opener.prover_of(spec, file, path)
            except LiteError as error:
                notices.note(f"{spec.key} {file.quant} is not tried: {error}")
                continue
            with prover:
                yield f"{file.quant} of {spec.key}", prover


def api_without_gpu(hardware: Hardware, options: ModelOptions) -> Provider | None:
    """Choose an API if this machine has no usable GPU and there is a key; None means a local model. Raises ConfigError for a
    GPU that lies idle because of llama.cpp's build: half the reward should be nobody's surprise."""
    if hardware.fault:
        raise ConfigError(f"{hardware.fault}\n  or say what to run: --model.name, --model.path, --model.fallback_api")
    if hardware.usable_gpus:
        return None
    if options.api.base_url:
        return "openai"
    return next((name for name, key in API_KEYS.items() if load_key(key, options.api.key_file)), None)
