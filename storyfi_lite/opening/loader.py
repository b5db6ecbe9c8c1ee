"""Decides what writes the stories, a local model, an API, or one behind the other, and opens it.

A GPU that llama.cpp can use: a local model. None, and an API key: that API, at half the reward. Neither: the small CPU
model, if it is fast enough. Else a refusal with the three ways out.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import platformdirs

from storyfi_lite.errors import BadInput, ConfigError, LiteError
from storyfi_lite.loaders.api import ApiLoader
from storyfi_lite.loaders.base import Loader
from storyfi_lite.loaders.client import ApiClient, ApiSettings
from storyfi_lite.loaders.fallback import Choice, FallbackLoader
from storyfi_lite.loaders.keys import API_KEYS, Secret, load_key
from storyfi_lite.loaders.meter import Caps, Meter, Prices
from storyfi_lite.machine.hardware import Hardware
from storyfi_lite.models.digest import file_sha256
from storyfi_lite.models.registry import ApiModel, Registry
from storyfi_lite.models.store import Store
from storyfi_lite.opening.local import LocalOpener, Notices
from storyfi_lite.options import ApiOptions, ModelOptions, Provider

if TYPE_CHECKING:
    from storyfi_lite.validator.proof import Prover


logger = logging.getLogger(__name__)

Opened = tuple[Loader, Mapping[str, str]]


def open_loader(options: ModelOptions, notices: Notices, warm_up: bool = False) -> Opened:
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
        return open_api(named, asked, registry)
    if asked.fallback:
        model = wanted_model(asked.fallback, asked, registry)
        return open_api(model, asked, registry, lambda: opener.loader(options, warm_up))
    if asked.model:
        if options.is_explicit:
            raise BadInput(
                f"--api.model {asked.model}, or the local model? "
                "Both, the API where the local model can't run: add --model.fallback_api"
            )
        return open_api(wanted_model(None, asked, registry), asked, registry)
    if not options.is_explicit and (provider := api_without_gpu(opener.hardware, options)):
        notices.note(f"no GPU that llama.cpp can use: answers come from the {provider} API, at half the reward")
        return open_api(registry.default_api(provider), asked, registry)
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


# --- APIs: alone, or behind a local model in case that cannot run or dies ------------------------------------------


def open_api(
    model: ApiModel, options: ApiOptions, registry: Registry, local: Callable[[], Opened] | None = None
) -> Opened:
    """Open this API model, behind the local one, if there is one, in case that cannot run or dies; and behind it the other
    provider's default if there is a key for that. Raises ConfigError if nothing opens."""
    facts: dict[str, str] = {}

    def open_local(local: Callable[[], Opened]) -> Loader:
        loader, found = local()
        facts.update(found)
        return loader

    if options.base_url and model.provider != "openai":
        raise BadInput(f"--api.base-url is for servers that speak OpenAI's API, and {model.key} is Google's")
    others = [provider for provider in API_KEYS if provider != model.provider]
    models = [model, *map(registry.default_api, others)]
    known = {one.key for one in (*registry.api, *models)}
    for name, _, _ in options.prices:
        if name not in known:
            raise BadInput(f"{name} is no API model, it has no price; API models: {', '.join(sorted(known))}")
    prices = {name: Prices(prompt_usd, completion_usd) for name, prompt_usd, completion_usd in options.prices}
    settings = [
        ApiSettings(one, options.base_url if one.provider == "openai" else None, prices.get(one.key)) for one in models
    ]
    usage = Path(platformdirs.user_state_dir("storyfi-lite")) / "api-usage.json"
    meter = Meter(usage, Caps(options.daily_tokens, options.daily_usd))
    first = [Choice("local model", partial(open_local, local))] if local else []
    loader = FallbackLoader([*first, *api_choices(settings, meter, options.key_file)])
    claim = loader.claim
    of_the_api = {"model": claim.model_name, "quantization": "API", "multiplier": f"{claim.multiplier:g}"}
    return loader, facts or of_the_api


def wanted_model(provider: Provider | None, options: ApiOptions, registry: Registry) -> ApiModel:
    """Return the model of `--api.model`, or the provider's default without it. A name that models.yaml does not list is taken
    for Google's if it begins like Google's names, else for OpenAI's or a similar server's. Raises BadInput."""
    name = options.model
    if name is None:
        assert provider is not None
        return registry.default_api(provider)
    listed = {model.key: model for model in registry.api}
    owner: Provider = "gemini" if name.startswith(("gemini", "gemma")) else "openai"
    model = listed.get(name) or ApiModel(key=name, provider=owner)
    if provider not in (None, model.provider):
        raise BadInput(f"--api.model {name} is no model of {provider}: --model.fallback_api {model.provider}")
    return model


def api_client(key: Secret, settings: ApiSettings) -> ApiClient:
    """Make the vendor's client for this model. Raises ConfigError if its package is missing."""
    if settings.model.provider == "gemini":
        from storyfi_lite.loaders.gemini import gemini_client

        return gemini_client(key, settings)
    from storyfi_lite.loaders.openai import OpenAIClient

    return OpenAIClient(key, settings)


def api_loader(settings: ApiSettings, meter: Meter, key_file: Path | None = None) -> ApiLoader:
    """Open an API loader. Raises ConfigError if the key or package is missing, or the vendor says that key or model are bad."""
    model = settings.model
    variable = API_KEYS[model.provider]
    key = load_key(variable, key_file)
    if key is None and settings.base_url is not None:
        key = Secret("no-key-is-needed")  # a server of one's own often has no keys
    if key is None:
        raise ConfigError(
            f"no key for {model.key}: export {variable}=…, "
            f"or write {variable}=… into a file of mode 600 and name it with --api.key-file"
        )
    loader = ApiLoader(api_client(key, settings), meter)
    try:
        loader.look_up()
    except LiteError:
        loader.close()
        raise
    if model.end and settings.base_url is None:
        logger.warning("%s: %s", model.key, model.end)
    return loader


def api_choices(settings: Sequence[ApiSettings], meter: Meter, key_file: Path | None = None) -> list[Choice]:
    """List the first API model, which was chosen, then each other one whose key is there."""

    def choice(one: ApiSettings) -> Choice:
        return Choice(f"{one.model.provider} API", lambda: api_loader(one, meter, key_file))

    others = [one for one in settings[1:] if load_key(API_KEYS[one.model.provider], key_file) is not None]
    return [choice(one) for one in (settings[0], *others)]
