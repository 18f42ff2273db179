import pytest

from torchtune_lite.data import refuse_packed
from torchtune_lite.errors import ConfigError


def test_refuses_packing():
    refuse_packed(False)
    with pytest.raises(ConfigError, match="^packed=True: samples can't be packed yet; set packed=False"):
        refuse_packed(True)
