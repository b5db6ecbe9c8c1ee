"""Opens API loaders: alone, or behind a local model in case that cannot run or dies."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import platformdirs

from storyfi_lite.errors import BadInput, ConfigError, LiteError
from storyfi_lite.loaders.api import ApiLoader
from storyfi_lite.loaders.base import Loader
from storyfi_lite.loaders.client import ApiClient, ApiSettings
from storyfi_lite.loaders.fallback import Choice, FallbackLoader
from storyfi_lite.loaders.keys import API_KEYS, Secret, load_key
from storyfi_lite.loaders.meter import Caps, Meter, Prices
from storyfi_lite.models.registry import ApiModel, Registry
from storyfi_lite.options import ApiOptions, Provider

logger = logging.getLogger(__name__)

Opened = tuple[Loader, Mapping[str, str]]


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

    first = [Choice("local model", partial(open_local, local))] if local else []
    loader = FallbackLoader([*first, *_choices(model, options, registry)])
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


def _choices(model: ApiModel, options: ApiOptions, registry: Registry) -> list[Choice]:
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
    caps = Caps(options.daily_tokens, options.daily_usd)
    return api_choices(settings, Meter(usage, caps), options.key_file)


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
