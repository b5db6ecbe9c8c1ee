"""Opens the operator's wallet at start, and says what is missing and which btcli command mends it.

Only the hotkey is needed; a coldkey has no business on a machine with an open port. The key is loaded once,
at start, so that a password is asked for then or never.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from storyfi_lite.chain.networks import dev_directory
from storyfi_lite.errors import BadInput, ConfigError

if TYPE_CHECKING:
    from bittensor import Wallet


def open_wallet(network: str, name: str, hotkey: str, path: Path | None = None) -> Wallet:
    """Open the bittensor wallet and load its hotkey. On the dev network a missing wallet is made.

    `path` is the wallets' directory; None means bittensor's own, or the dev chain's. Raises ConfigError, or BadInput for a
    name that is a path.
    """
    from bittensor.wallet import DEFAULT_WALLET_PATH, Wallet

    for flag, given in (("--wallet", name), ("--wallet-hotkey", hotkey)):
        if not given or Path(given).name != given:
            raise BadInput(f"{flag} {given!r} is no name; the directory of the wallets goes with --wallet-path")
    dev = dev_directory(network)
    if dev is not None and path is None:
        path = dev / "wallets"
        if hotkey == "default":
            from storyfi_lite.devchain.substrate import dev_wallet

            return dev_wallet(dev, name)
    wallet = Wallet(name, hotkey, str(path or DEFAULT_WALLET_PATH))
    flags = wallet_flags(wallet)
    if not Path(wallet.path).expanduser().joinpath(name).is_dir():
        raise ConfigError(f"there is no wallet {name!r} in {wallet.path}\n  btcli wallet create {flags}")
    if not wallet.hotkey_file.exists_on_device():
        raise ConfigError(f"wallet {name!r} has no hotkey {hotkey!r}\n  btcli wallet new-hotkey {flags}")
    try:
        wallet.get_hotkey()
    except Exception as error:  # the SDK raises half a dozen kinds here, none of which holds the key
        raise ConfigError(
            f"hotkey {hotkey!r} of wallet {name!r} cannot be read: {error}\n"
            f"  btcli wallet regen-hotkey {flags} --overwrite"
        ) from error
    return wallet


def wallet_flags(wallet: Wallet) -> str:
    from bittensor.wallet import DEFAULT_WALLET_PATH

    flags = f"--wallet {wallet.name} --wallet-hotkey {wallet.hotkey_str}"
    return flags if wallet.path == DEFAULT_WALLET_PATH else f"{flags} --wallet-path {wallet.path}"
