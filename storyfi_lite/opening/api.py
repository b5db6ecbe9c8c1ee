"""Opens the API loaders: alone, or behind a local model that cannot run or dies. Knows no vendor."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import platformdirs

from storyfi_lite.errors import BadInput
from storyfi_lite.loaders.api import ApiSettings
from storyfi_lite.loaders.base import Loader
from storyfi_lite.loaders.fallback import Choice, FallbackLoader, api_choices
from storyfi_lite.loaders.meter import Caps, Meter, Prices
from storyfi_lite.models.registry import ApiModel, load_registry

if TYPE_CHECKING:
    from storyfi_lite.opening.loader import ModelChoice

Opened = tuple[Loader, Mapping[str, str]]


def open_api_only(provider: str, choice: ModelChoice) -> Opened:
    """The provider's model of the registry; the other provider only if the first cannot be opened. Raises ConfigError."""
    loader = FallbackLoader(_choices(provider, choice), while_running=False)
    return loader, _facts(loader)


def open_with_fallback(provider: str, choice: ModelChoice, open_local: Callable[[], Opened]) -> Opened:
    """The local model; the API when that cannot run or dies. Raises ConfigError with every reason if none opens."""
    card: dict[str, str] = {}

    def local() -> Loader:
        loader, facts = open_local()
        card.update(facts)
        return loader

    loader = FallbackLoader([Choice("local model", local), *_choices(provider, choice)], while_running=True)
    return loader, card or _facts(loader)


def _choices(provider: str, choice: ModelChoice) -> list[Choice]:
    prices = _prices(choice)
    settings: dict[str, ApiSettings] = {
        model.provider: ApiSettings(
            model.key,
            model.multiplier,
            choice.api_base_url if model.provider == "openai" else None,
            prices.get(model.key),
        )
        for model in load_registry().api
    }
    usage = Path(platformdirs.user_state_dir("storyfi-lite")) / "api-usage.json"
    caps = Caps(choice.daily_tokens, choice.daily_usd)
    return api_choices(provider, settings, Meter(usage, caps), choice.api_key_file)


def _prices(choice: ModelChoice) -> dict[str, Prices]:
    """By API model. Raises BadInput for a name that is none."""
    registry = load_registry()
    found = {}
    for name, prompt_usd, completion_usd in choice.api_prices:
        model = registry.find(name)
        if not isinstance(model, ApiModel):
            known = ", ".join(model.key for model in registry.api)
            raise BadInput(f"{model.key} is no API model, it has no price; API models: {known}")
        found[model.key] = Prices(prompt_usd, completion_usd)
    return found


def _facts(loader: Loader) -> Mapping[str, str]:
    claim = loader.claim
    return {"model": claim.model_name, "quantization": "API", "multiplier": f"{claim.multiplier:g}"}
