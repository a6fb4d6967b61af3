import pytest
from tests.services.store.contract import StoreContract

from services.store.memory import MemoryStore


class TestMemory(StoreContract):
    @pytest.fixture
    def store(self):
        return MemoryStore()
