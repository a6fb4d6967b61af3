import pytest
from tests.services.store.contract import StoreContract

from services.store.files import FileStore


class TestFiles(StoreContract):
    @pytest.fixture
    def store(self, tmp_path):
        return FileStore(tmp_path)
