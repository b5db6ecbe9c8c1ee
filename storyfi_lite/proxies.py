"""Names the proxy setting that is at fault, without its password. Opens no connection.

The HTTP libraries read HTTP_PROXY, HTTPS_PROXY, ALL_PROXY and NO_PROXY themselves; their errors do not say so.
"""

from __future__ import annotations

import os
import re
from urllib.parse import urlsplit
from urllib.request import getproxies_environment, proxy_bypass

from storyfi_lite.errors import ConfigError


def proxy_for(url: str) -> str | None:
    """Return the proxy setting that a call to `url` obeys, as NAME=value without a password; None if there is none."""
    parts = urlsplit(url)
    known = getproxies_environment()
    scheme = parts.scheme if parts.scheme in known else "all"
    if scheme not in known or proxy_bypass(parts.hostname or ""):
        return None
    return _shown(scheme, known[scheme])


def proxy_fault(error: Exception) -> ConfigError:
    """Say which proxy setting a library refused. A library reads all of them, whatever the address."""
    known = {scheme: value for scheme, value in getproxies_environment().items() if scheme != "no"}
    odd = [scheme for scheme, value in known.items() if not value.startswith(("http://", "https://"))]
    words = str(error)
    for value in known.values():
        words = words.replace(value, _masked(value))
    return ConfigError(
        f"the proxy setting {' '.join(_shown(scheme, known[scheme]) for scheme in odd or known)} cannot be used: {words}\n"
        "  name a proxy with http://, or unset it; for socks5://: pip install socksio pysocks"
    )


def _shown(scheme: str, value: str) -> str:
    variable = f"{scheme}_proxy"
    name = variable if os.environ.get(variable) else variable.upper()
    return f"{name}={_masked(value)}"


def _masked(value: str) -> str:
    return re.sub(r"[^/@]*@", "…@", value)
