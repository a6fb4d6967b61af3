"""How a data folder's sessions are opened: with the right key or not at all, old ones taken over first."""

from __future__ import annotations

from services.errors import ConfigError, ParleyError
from services.settings import Settings
from services.store import sealing, takeover
from services.store.files import FileStore


def open_store(settings: Settings, prepare: bool = True) -> FileStore:
    """The sessions of `settings.data_dir`. `prepare`, at the server's start: encrypt what is plain, take over a seed's.

    ConfigError for a wrong or missing DATA_KEY, or a sessions.json that cannot be read: never an empty store.
    """
    try:
        store = FileStore(settings.data_dir, sealing.open_cipher(settings.data_dir, settings.data_key, make=prepare))
        if prepare:
            sealing.seal_plain(store)
            takeover.take_over(store)
    except ConfigError:
        raise
    except TimeoutError as error:
        raise ConfigError(f"{settings.data_dir} is in use by another process: {error}") from None
    except ParleyError as error:
        raise ConfigError(f"the sessions in {settings.data_dir} cannot be used: {error.message}") from error
    return store
