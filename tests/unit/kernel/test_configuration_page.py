from pathlib import Path

import msgspec
import pytest

from saturnmq.kernel.config import BrokerConfig, ClusterConfig, Limits, NameserverConfig, ProxyConfig, StoreConfig

PAGE = Path(__file__).parents[3] / "docs" / "configuration.md"


@pytest.mark.parametrize("struct", [NameserverConfig, BrokerConfig, StoreConfig, ProxyConfig, ClusterConfig, Limits])
def test_the_page_has_every_setting_and_its_default(struct: type[msgspec.Struct]) -> None:
    page = PAGE.read_text()
    for field in msgspec.structs.fields(struct):
        default = str(field.default).lower() if isinstance(field.default, bool) else field.default
        assert f"| `{field.encode_name}` | {f'`{default}`' if default != '' else 'none'} |" in page
