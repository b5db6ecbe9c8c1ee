"""Opens the API loaders: alone, or behind a local model that cannot run or dies. Knows no vendor."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import platformdirs

from storyfi_lite.errors import BadInput
from storyfi_lite.loaders.api import ApiSettings
from storyfi_lite.loaders.base import Loader
from storyfi_lite.loaders.fallback import Choice, FallbackLoader, api_choices
from storyfi_lite.loaders.meter import Caps, Meter, Prices
from storyfi_lite.models.registry import ApiModel, Registry
from storyfi_lite.options import ApiOptions, Provider

Opened = tuple[Loader, Mapping[str, str]]


def open_api(provider: Provider, options: ApiOptions, registry: Registry) -> Opened:
    """The provider's model of the registry; the other provider only if the first cannot be opened. Raises ConfigError."""
    loader = FallbackLoader(_choices(provider, options, registry), while_running=False)
    return loader, _facts(loader)


def open_with_fallback(options: ApiOptions, registry: Registry, open_local: Callable[[], Opened]) -> Opened:
    """The local model; the API when that cannot run or dies. Raises ConfigError with every reason if none opens."""
    assert options.fallback is not None
    local_facts: dict[str, str] = {}

    def local() -> Loader:
        loader, facts = open_local()
        local_facts.update(facts)
        return loader

    choices = [Choice("local model", local), *_choices(options.fallback, options, registry)]
    loader = FallbackLoader(choices, while_running=True)
    return loader, local_facts or _facts(loader)


def _choices(provider: Provider, options: ApiOptions, registry: Registry) -> list[Choice]:
    prices = _prices(options, registry)
    settings: dict[str, ApiSettings] = {
        model.provider: ApiSettings(
            model.key,
            model.multiplier,
            options.base_url if model.provider == "openai" else None,
            prices.get(model.key),
        )
        for model in registry.api
    }
    usage = Path(platformdirs.user_state_dir("storyfi-lite")) / "api-usage.json"
    caps = Caps(options.daily_tokens, options.daily_usd)
    return api_choices(provider, settings, Meter(usage, caps), options.key_file)


def _prices(options: ApiOptions, registry: Registry) -> dict[str, Prices]:
    """By API model. Raises BadInput for a name that is none."""
    found = {}
    for name, prompt_usd, completion_usd in options.prices:
        model = registry.find(name)
        if not isinstance(model, ApiModel):
            known = ", ".join(model.key for model in registry.api)
            raise BadInput(f"{model.key} is no API model, it has no price; API models: {known}")
        found[model.key] = Prices(prompt_usd, completion_usd)
    return found


def _facts(loader: Loader) -> Mapping[str, str]:
    claim = loader.claim
    return {"model": claim.model_name, "quantization": "API", "multiplier": f"{claim.multiplier:g}"}
