"""Opens API loaders: alone, or behind a local model in case that cannot run or dies."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import platformdirs

from storyfi_lite.errors import BadInput
from storyfi_lite.loaders.base import Loader
from storyfi_lite.loaders.client import ApiSettings
from storyfi_lite.loaders.fallback import Choice, FallbackLoader, api_choices
from storyfi_lite.loaders.keys import API_KEYS
from storyfi_lite.loaders.meter import Caps, Meter, Prices
from storyfi_lite.models.registry import ApiModel, Registry
from storyfi_lite.options import ApiOptions, Provider

Opened = tuple[Loader, Mapping[str, str]]


def open_api(model: ApiModel, options: ApiOptions, registry: Registry) -> Opened:
    """Open this API model, with the other provider's default behind it if there is a key for that. Raises ConfigError."""
    loader = FallbackLoader(_choices(model, options, registry))
    return loader, _facts(loader)


def open_with_fallback(model: ApiModel, options: ApiOptions, registry: Registry, local: Callable[[], Opened]) -> Opened:
    """Open the local model, with the API behind it in case it cannot run or dies. Raises ConfigError if nothing opens."""
    local_facts: dict[str, str] = {}

    def open_local() -> Loader:
        loader, facts = local()
        local_facts.update(facts)
        return loader

    loader = FallbackLoader([Choice("local model", open_local), *_choices(model, options, registry)])
    return loader, local_facts or _facts(loader)


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


def _facts(loader: Loader) -> Mapping[str, str]:
    claim = loader.claim
    return {"model": claim.model_name, "quantization": "API", "multiplier": f"{claim.multiplier:g}"}
