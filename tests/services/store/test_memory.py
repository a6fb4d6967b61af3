import pytest

from services.store.memory import MemoryStore
from tests.services.store.contract import StoreContract


class TestMemory(StoreContract):
    @pytest.fixture
    def store(self):
        return MemoryStore()
